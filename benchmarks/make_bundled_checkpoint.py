"""Make the files with weights that mtrkit bundles: the weights alone, with what one has to know to use them.

    python benchmarks/make_bundled_checkpoint.py runs/micro/vim_micro_patch4_stride2_32.safetensors --dtype float16
    python benchmarks/make_bundled_checkpoint.py vim_d96x12_patch4_32_cifar10.pth
    python benchmarks/make_bundled_checkpoint.py --describe

A file of examples/train_reference.py says itself what it is; the other, in the layout of the official training code,
is described here. The same input gives the same bytes. ``--describe`` writes family and config again into the files
that are there, and leaves every byte of their tensors as it is.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from mtrkit.models import checkpoint_metadata, create_model, load_state_dict, write_metadata
from mtrkit.models.releases import BUNDLED

INPUT = {
    "classes": ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"],
    "input": "RGB in [0, 1], 32x32, no resize",
    "mean": [0.4914, 0.4822, 0.4465],
    "std": [0.247, 0.2435, 0.2616],
}
OFFICIAL_CODE = {
    "architecture": "vim_micro_patch4_32",
    "training": "from scratch on the 50 000 CIFAR-10 training images (Krizhevsky, 2009) with the code of "
    "hustvl/Vim, 9 epochs, batch 128, AdamW; top-1 74.08 % on the 10 000 test images",
    "license": "Apache-2.0 for these weights; the images are not included",
}


def described(source: Path) -> dict[str, Any]:
    """What the file says of itself, or what is known of the one that says nothing."""
    if source.suffix != ".safetensors":
        return OFFICIAL_CODE | INPUT
    with safe_open(source, "pt") as file:
        return json.loads(file.metadata()["about"]) | INPUT


def main() -> None:
    """Convert one file and check that the model takes the result."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("source", type=Path, nargs="?", help="of train_reference.py or of the official training code")
    parser.add_argument("--describe", action="store_true", help="write metadata into the files that are there")
    parser.add_argument("--dtype", choices=["float32", "float16"], default="float32")
    parser.add_argument("--out", type=Path, help="default: where mtrkit looks for it")
    arguments = parser.parse_args()
    if arguments.describe:
        for name, file in BUNDLED.items():
            write_metadata(file, checkpoint_metadata(create_model(name)))
        return
    metadata, dtype = described(arguments.source), getattr(torch, arguments.dtype)
    out = arguments.out or BUNDLED[metadata["architecture"]]
    weights = {name: value.to(dtype).contiguous() for name, value in load_state_dict(arguments.source).items()}
    out.parent.mkdir(parents=True, exist_ok=True)
    save_file(weights, out, {"about": json.dumps(metadata)})
    write_metadata(out, checkpoint_metadata(create_model(metadata["architecture"])))
    out.chmod(0o644)  # safetensors leaves it to its owner alone, and a wheel keeps the mode
    create_model(metadata["architecture"], out)
    print(f"{out}: {len(weights)} tensors, {out.stat().st_size} bytes")


if __name__ == "__main__":
    main()
