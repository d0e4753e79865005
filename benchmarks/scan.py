"""How fast a Vim-Ti runs on mtrkit's scan, against the scan written in torch and against a dense DeiT-Ti.

    python benchmarks/scan.py                    # one table, about three minutes on two CPU cores
    python benchmarks/scan.py --out scan.json    # and benchmarks/results/scan.json with the conditions

All rows are measured in turns within one run, since timings on a shared machine drift: a round times each
once, and the table shows medians over rounds. Models are untrained (speed does not depend on the weights),
float32. The reference is the scan as mamba_ssm's ``selective_scan_ref`` computes it, on the whole batch and in the
memory order in which mamba_ssm's mixers call it, tokens being neighbours: exp(ΔA) and ΔBu are materialised as
(B, E, L, N), then a Python loop runs over the tokens.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import timm
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import mtrkit
from mtrkit.measure import describe_machine, input_size_of
from mtrkit.scan import causal_conv1d, selective_scan, use_scan_backend
from mtrkit.scan.backend import Backend
from mtrkit.scan.dispatch import BACKENDS
from mtrkit.types import Scan

RESULTS = Path(__file__).parent / "results"

VIM, DEIT = "vim_tiny_patch16_224", "deit_tiny_patch16_224"
BARS = {
    "forward: native / reference": 17.0,
    "forward: native / DeiT-Ti": 0.70,
    "training: native / reference": 10.0,
}


def materialised_scan(scan: Scan) -> tuple[Tensor, Tensor]:
    """The scan in the manner of ``selective_scan_ref``, for one group of B and C."""
    u, delta, A, B, C, D, z, bias, softplus, reverse = scan
    x, step, gate, B, C = (t if t is None else t.flip(-1) if reverse else t for t in (u, delta, z, B[:, 0], C[:, 0]))
    if bias is not None:
        step = step + bias[:, None]
    if softplus:
        step = F.softplus(step)
    decay = torch.exp(torch.einsum("bel,en->beln", step, A))
    update = torch.einsum("bel,bnl,bel->beln", step, B, x)
    h = A.new_zeros((x.shape[0], *A.shape))
    outputs = []
    for t in range(x.shape[2]):
        h = decay[:, :, t] * h + update[:, :, t]
        outputs.append(torch.einsum("ben,bn->be", h, C[:, :, t]))
    y = torch.stack(outputs, dim=2)
    if D is not None:
        y = y + x * D[:, None]
    if gate is not None:
        y = y * F.silu(gate)
    return (y.flip(-1) if reverse else y), h


def forward_step(model: nn.Module, images: Tensor, backend: str = "auto") -> Callable[[], None]:
    """One inference pass."""

    def run() -> None:
        with torch.no_grad(), use_scan_backend(backend):
            model(images)

    return run


def training_step(model: nn.Module, images: Tensor, backend: str) -> Callable[[], None]:
    """One forward and backward pass, without the optimizer."""

    def run() -> None:
        with use_scan_backend(backend):
            model.zero_grad()
            model(images).square().mean().backward()

    return run


def kernel_steps(batch: int) -> dict[str, Callable[[], None]]:
    """One direction's scan and convolution alone, at Vim-Ti's sizes and in the mixers' memory order."""
    E, N, L = 384, 16, 197
    x, z = torch.randn(batch, L, 2 * E).transpose(1, 2).chunk(2, dim=1)
    delta, rows = torch.randn(batch, L, E).transpose(1, 2), torch.randn(batch, L, 12 + 2 * N).transpose(1, 2)
    A, D, bias, weight = -torch.rand(E, N) * N, torch.randn(E), torch.randn(E) - 3, torch.randn(E, 4)
    B, C = rows[:, 12 : 12 + N], rows[:, 12 + N :]
    return {
        f"scan, one direction, batch {batch}": lambda: selective_scan(x, delta, A, B, C, D, z, bias, True),
        f"convolution, one direction, batch {batch}": lambda: causal_conv1d(x, weight, D),
    }


def measure(steps: dict[str, Callable[[], None]], rounds: int) -> dict[str, list[float]]:
    """Seconds of every step in every round; in a round each runs once. The slow reference needs no warm-up."""
    for name, step in steps.items():
        if "reference" not in name:
            step()
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def ratio(seconds: dict[str, list[float]], fast: str, slow: str) -> float:
    """How many times as many images per second ``fast`` does, as the median over rounds."""
    return statistics.median(s / f for f, s in zip(seconds[fast], seconds[slow], strict=True))


def run(batch: int, train_batch: int, rounds: int) -> dict[str, object]:
    """Measure everything and return rows, ratios and bars."""
    vim, deit = mtrkit.create_model(VIM).eval(), timm.create_model(DEIT, pretrained=False).eval()
    images, few = (torch.randn(count, *input_size_of(vim)) for count in (batch, train_batch))
    forward = {
        "Vim-Ti, native scan": forward_step(vim, images, "native"),
        "DeiT-Ti": forward_step(deit, torch.randn(batch, *input_size_of(deit))),
        "Vim-Ti, reference scan": forward_step(vim, images, "materialised"),
    }
    training = {
        "Vim-Ti, native scan": training_step(vim, few, "native"),
        "Vim-Ti, reference scan": training_step(vim, few, "materialised"),
    }
    fast = measure(dict(list(forward.items())[:2]), 3 * rounds)
    slow, train = measure(forward, rounds), measure(training, rounds)
    kernels = measure(kernel_steps(batch), 10 * rounds)
    rows = [(f"forward, batch {batch}", name, batch / statistics.median(s)) for name, s in slow.items()]
    rows += [(f"training step, batch {train_batch}", n, train_batch / statistics.median(s)) for n, s in train.items()]
    ratios = {
        "forward: native / reference": ratio(slow, "Vim-Ti, native scan", "Vim-Ti, reference scan"),
        "forward: native / DeiT-Ti": ratio(fast, "Vim-Ti, native scan", "DeiT-Ti"),
        "training: native / reference": ratio(train, "Vim-Ti, native scan", "Vim-Ti, reference scan"),
    }
    milliseconds = {name: 1e3 * statistics.median(s) for name, s in kernels.items()}
    return {"images_per_second": rows, "ratios": ratios, "bars": BARS, "kernel_milliseconds": milliseconds}


def show(results: dict[str, object]) -> None:
    """Print one table."""
    told = results["conditions"]
    title = f"{told['device']}, {told['threads']} threads, scan {told['scan']}"
    table = Table("what", "model and scan", "images/s", title=title)
    for what, name, speed in results["images_per_second"]:
        table.add_row(what, name, f"{speed:.1f}")
    for name, milliseconds in results["kernel_milliseconds"].items():
        table.add_row("kernel", name, f"{milliseconds:.2f} ms")
    for name, value in results["ratios"].items():
        table.add_row("ratio", name, f"x{value:.2f} (bar x{results['bars'][name]:g})")
    Console().print(table)


def main() -> None:
    """Parse the command line, measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=16, help="images per forward pass")
    parser.add_argument("--train-batch", type=int, default=1, help="images per training step")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of the slowest rows; others get more")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", help="name of a JSON file to write under benchmarks/results/")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    native = BACKENDS.get("native")
    plain = Backend(
        "materialised", native.status, native.refuses, materialised_scan, native.conv, native.softplus, True
    )
    BACKENDS.add("materialised", plain)
    conditions = describe_machine(torch.device("cpu")) | {
        "command": " ".join(["python", *sys.argv]),
        "rounds": args.rounds,
    }
    results = {"conditions": conditions, **run(args.batch, args.train_batch, args.rounds)}
    show(results)
    if args.out:
        (RESULTS / args.out).write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
