"""Peak of memory of one pass and of one training step, dense and reduced, as torch counts its own allocations.

    python benchmarks/memory.py                        # to benchmarks/results/memory_cpu.json

Weights and images are counted too. How busy the machine is does not matter, as nothing is timed.
"""

import argparse
import json
import shlex
import sys
from pathlib import Path

import torch
from torch import nn

import mtrkit
from mtrkit.measure import describe_machine, input_size_of, peak_memory
from mtrkit.models.releases import BUNDLED

RESULTS = Path(__file__).parent / "results"
MiB = 1 << 20


def measure(name: str, method: str, ratio: float, batch_size: int) -> dict[str, object]:
    """One row."""
    model = mtrkit.create_model(name, "pretrained" if name in BUNDLED else None)
    if ratio:
        mtrkit.apply_reduction(model, method, ratio=ratio)
    images = torch.randn(batch_size, *input_size_of(model))
    held = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers(), images))
    cpu = torch.device("cpu")
    inference = peak_memory(lambda: infer(model.eval(), images), cpu, held)
    training = peak_memory(lambda: train(model.train(), images), cpu, held)
    assert inference and training
    row = {"model": name, "method": method if ratio else "dense", "ratio": ratio, "batch_size": batch_size}
    return row | {"inference_MiB": round(inference / MiB, 1), "training_MiB": round(training / MiB, 1)}


@torch.inference_mode()
def infer(model: nn.Module, images: torch.Tensor) -> None:
    """One forward pass."""
    model(images)


def train(model: nn.Module, images: torch.Tensor) -> None:
    """One forward and backward pass; the gradients are let go."""
    nn.functional.cross_entropy(model(images), torch.zeros(len(images), dtype=torch.long)).backward()
    model.zero_grad()


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", default=["vim_micro_patch4_stride2_32"])
    parser.add_argument("--method", nargs="+", default=["runs", "mtr"])
    parser.add_argument("--ratio", nargs="+", type=float, default=[0.3, 0.4, 0.5])
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=RESULTS / "memory_cpu.json")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    cases = [("", 0.0), *((method, ratio) for method in args.method for ratio in args.ratio)]
    rows = []
    for name in args.model:
        for method, ratio in cases:
            rows.append(measure(name, method, ratio, args.batch_size))
            print(rows[-1], flush=True)
    about = {"command": shlex.join(["python", *sys.argv])} | describe_machine(torch.device("cpu"))
    args.out.write_text(json.dumps(about | {"rows": rows}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
