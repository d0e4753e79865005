"""The same sizes beside what else a user could run: ViTs, MambaVision, and Mamba layers without mtrkit's scan.

    python benchmarks/peers.py --out peers_cpu.json

Three comparisons, each timed in turns: Vim-Ti dense and reduced beside DeiT-Ti, dense and reduced by ToMe, at the same
share of FLOPs removed; MambaVision-T of its own package, whose scan runs on mtrkit; and a Mamba of transformers with
its own code for CPUs and with mtrkit's scan. Weights are random.
"""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

import mtrkit
from mtrkit.measure import Precision, describe_machine, forward_pass, interleave, summarise, twin

RESULTS = Path(__file__).parent / "results"
Group = dict[str, Callable[[], object]]


def parse() -> argparse.Namespace:
    """How much to remove, and how often to time."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ratio", type=float, default=0.3)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--text", type=int, default=512, help="tokens of the language model")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", required=True, help="name of a JSON file under benchmarks/results/")
    return parser.parse_args()


def vision(args: argparse.Namespace) -> Group:
    """Vim-Ti and DeiT-Ti, dense and reduced, and MambaVision-T if its package is there."""
    models: dict[str, nn.Module] = {"DeiT-Ti": timm.create_model("deit_tiny_patch16_224", img_size=args.image_size)}
    models["DeiT-Ti, tome"] = mtrkit.apply_reduction(twin(models["DeiT-Ti"]), "tome", ratio=args.ratio)
    models["Vim-Ti"] = mtrkit.create_model("vim_tiny_patch16_224", img_size=args.image_size)
    for method in ("mtr", "runs"):
        models[f"Vim-Ti, {method}"] = mtrkit.apply_reduction(twin(models["Vim-Ti"]), method, ratio=args.ratio)
    images = torch.randn(args.batch_size, 3, args.image_size, args.image_size)
    return {name: forward_pass(model.eval(), images, Precision("float32")) for name, model in models.items()}


def mamba_vision(args: argparse.Namespace) -> Group:
    """MambaVision-T dense and reduced; its scan runs on mtrkit."""
    with mtrkit.as_mamba_ssm():
        from mambavision import create_model

        model = create_model("mamba_vision_T", pretrained=False).eval()
    reduced = mtrkit.apply_reduction(twin(model), "tome", ratio=0.15)
    images = torch.randn(args.batch_size, 3, 224, 224)
    found = {"MambaVision-T": model, "MambaVision-T, tome 0.15": reduced}
    return {name: forward_pass(one, images, Precision("float32")) for name, one in found.items()}


def language(args: argparse.Namespace) -> Group:
    """A Mamba of transformers: its own loop over the tokens, and the same weights as mtrkit runs them."""
    from transformers import MambaConfig, MambaModel

    model = MambaModel(MambaConfig(hidden_size=256, num_hidden_layers=8, vocab_size=1000)).eval()
    reduced = mtrkit.apply_reduction(twin(model), "hsa", ratio=args.ratio, input_size=(args.text,))
    still = mtrkit.apply_reduction(twin(model), "hsa", ratio=0, input_size=(args.text,))
    text = torch.randint(1000, (1, args.text))
    found = {"transformers' own loop": model, "mtrkit, ratio 0": still, f"mtrkit, hsa {args.ratio:g}": reduced}
    return {name: forward_pass(one, text, Precision("float32")) for name, one in found.items()}


def measure(passes: Group, rounds: int, batch: int) -> list[dict[str, Any]]:
    """Rows of one group, in proportion to its first."""
    first = next(iter(passes))
    taken = list(interleave(passes, torch.device("cpu"), rounds=rounds, seconds=0.2))
    rows = []
    for name in passes:
        timing = summarise(taken, name, first, batch)
        rows.append({"name": name, "per_second": timing.images_per_second, f"times_{first}": timing.speedup})
    return rows


def main() -> int:
    """Time, print and write what can be run here."""
    args = parse()
    groups: dict[str, Any] = {}
    for build, batch in ((vision, args.batch_size), (mamba_vision, args.batch_size), (language, 1)):
        try:
            passes = build(args)
        except ImportError as error:
            groups[build.__name__] = f"not run: {error}"
            continue
        groups[build.__name__] = measure(passes, args.rounds, batch)
        for row in groups[build.__name__]:
            sys.stdout.write(", ".join(f"{key} {value}" for key, value in row.items()) + "\n")
    conditions = describe_machine(torch.device("cpu")) | {"command": " ".join(["python", *sys.argv])}
    (RESULTS / args.out).write_text(json.dumps({"conditions": conditions, "groups": groups}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
