"""How fast exported models run: mtrkit's own path, onnxruntime, programs of torch.export, and AOTInductor.

    python benchmarks/export.py                                   # all, to benchmarks/results/export_cpu.json
    python benchmarks/export.py --runtimes native onnx --rounds 3 --models vim_tiny_patch16_224

Every model is exported dense and reduced; the time of the export counts the comparison that mtrkit.export makes. Then
all runtimes of a case run in turns within one process, since timings on a shared machine drift, and the table shows the
least time of any round. Weights are the bundled ones if there are any, otherwise random: speed does not depend on them.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

import mtrkit
from mtrkit.models.releases import BUNDLED

MODELS = ["vim_micro_patch4_stride2_32", "vim_tiny_patch16_224"]
RUNTIMES = ["native", "onnx", "pt2", "aotinductor"]
RESULTS = Path(__file__).parent / "results"
Run = Callable[[Tensor], object]


def build(name: str, method: str, ratio: float) -> nn.Module:
    """The model, reduced unless the ratio is 0."""
    model = mtrkit.create_model(name, "pretrained" if name in BUNDLED else None).eval()
    return mtrkit.apply_reduction(model, method, ratio=ratio) if ratio else model


def load(kind: str, path: Path, threads: int) -> Run:
    """The exported file, as a function of images."""
    if kind == "pt2":
        return torch.export.load(path).module()
    if kind == "aotinductor":
        return torch._inductor.aoti_load_package(str(path))
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda images: session.run(None, {"input": images.numpy()})


def export_all(model: nn.Module, kinds: list[str], images: Tensor, threads: int) -> tuple[dict[str, Run], list[dict]]:
    """Every runtime's function, and what its export took."""
    runs: dict[str, Run] = {"native": model}
    exports = []
    with tempfile.TemporaryDirectory() as folder:
        for kind in kinds:
            if kind == "native":
                continue
            path = Path(folder) / f"{kind}{'.onnx' if kind == 'onnx' else '.pt2'}"
            start = time.perf_counter()
            done = mtrkit.export(model, path, images, format=kind)
            seconds = time.perf_counter() - start
            exports.append({"runtime": kind, "seconds": seconds, "MB": path.stat().st_size / 1e6, "error": done.error})
            print(f"  {kind}: exported in {seconds:.0f} s, error {done.error:.1e}", flush=True)
            runs[kind] = load(kind, path, threads)
    return runs, exports


@torch.no_grad()
def times(runs: dict[str, Run], images: Tensor, rounds: int) -> dict[str, list[float]]:
    """Seconds of every runtime in every round, after one that does not count.

    Threads of onnxruntime look for new work for a while after a run, which would slow down who comes next: so there is
    a pause, and a run of one image by which the caches and the runtime's own threads are awake again.
    """
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds + 1):
        for name, run in runs.items():
            time.sleep(0.2)
            run(images[:1])
            start = time.perf_counter()
            run(images)
            if number:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def measure(args: argparse.Namespace) -> list[dict]:
    """One row per model, ratio and batch size."""
    rows = []
    for name in args.models:
        for ratio in args.ratios:
            model = build(name, args.method, ratio)
            size = model.pretrained_cfg["input_size"]
            print(f"{name}, {'dense' if not ratio else f'{args.method} {ratio:g}'}", flush=True)
            runs, exports = export_all(model, args.runtimes, torch.randn(2, *size), args.threads)
            for batch in args.batch_sizes:
                seconds = times(runs, torch.randn(batch, *size), args.rounds)
                least = {kind: 1e3 * min(found) for kind, found in seconds.items()}
                middle = {kind: 1e3 * statistics.median(found) for kind, found in seconds.items()}
                row = {"model": name, "ratio": ratio, "batch": batch, "least_ms": least, "median_ms": middle}
                rows.append(row | {"exports": exports, "load": os.getloadavg()[0]})
                print("  batch", batch, {kind: round(value, 1) for kind, value in least.items()}, flush=True)
    return rows


def show(results: dict) -> None:
    """Print the table of docs/export.md."""
    kinds = results["runtimes"]
    print("\n| model | ratio | batch |", " | ".join(f"{kind}, ms" for kind in kinds), "| onnx / native |")
    print("|---|--:|--:|", "--:|" * len(kinds), "--:|", sep="")
    for row in results["rows"]:
        least = row["least_ms"]
        against = f"×{least['onnx'] / least['native']:.2f}" if "onnx" in least else ""
        cells = " | ".join(f"{least[kind]:.1f}" for kind in kinds)
        print(f"| {row['model']} | {row['ratio']:g} | {row['batch']} | {cells} | {against} |")


def main() -> None:
    """Parse the command line, measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--runtimes", nargs="+", default=RUNTIMES, choices=RUNTIMES)
    parser.add_argument("--method", default="mtr")
    parser.add_argument("--ratios", nargs="+", type=float, default=[0.0, 0.3])
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[1, 16])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=RESULTS / "export_cpu.json")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    results = {
        "command": " ".join(["python", *sys.argv]),
        "machine": f"{platform.machine()}, {os.cpu_count()} CPUs, {args.threads} threads used, float32",
        "torch": torch.__version__,
        "mtrkit": mtrkit.__version__,
        "runtimes": args.runtimes,
        "rows": measure(args),
    }
    show(results)
    args.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
