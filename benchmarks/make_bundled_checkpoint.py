"""Convert the pretrained small Vim from the official training layout to the file that mtrkit bundles.

    python benchmarks/make_bundled_checkpoint.py vim_d96x12_patch4_32_cifar10.pth

Only the weights are kept, in float32, with what one has to know to use them. The same input gives the same
bytes.
"""

import argparse
import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from mtrkit.models import create_model, load_state_dict
from mtrkit.models.releases import BUNDLED

NAME = "vim_micro_patch4_32"
ABOUT = {
    "architecture": NAME,
    "classes": ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"],
    "input": "RGB in [0, 1], 32x32, no resize",
    "mean": [0.4914, 0.4822, 0.4465],
    "std": [0.247, 0.2435, 0.2616],
    "training": "from scratch on the 50 000 CIFAR-10 training images (Krizhevsky, 2009) with the code of "
    "hustvl/Vim, 9 epochs, batch 128, AdamW; top-1 74.08 % on the 10 000 test images",
    "license": "Apache-2.0 for these weights; the images are not included",
}


def main() -> None:
    """Convert one file and check that the model takes the result."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("source", type=Path, help="checkpoint in the layout of the official training code")
    parser.add_argument("--out", type=Path, default=BUNDLED[NAME])
    arguments = parser.parse_args()
    state = load_state_dict(arguments.source)
    weights = {name: value.to(torch.float32).contiguous() for name, value in state.items()}
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    # One entry: safetensors writes several in random order.
    save_file(weights, arguments.out, {"about": json.dumps(ABOUT)})
    arguments.out.chmod(0o644)  # safetensors leaves it to its owner alone, and a wheel keeps the mode
    create_model(NAME, arguments.out)
    print(f"{arguments.out}: {len(weights)} tensors, {arguments.out.stat().st_size} bytes")


if __name__ == "__main__":
    main()
