"""Images per second of models × methods × ratios × batch sizes × dtypes, eager or compiled: for RTX, A100, H100 or a CPU.

    python benchmarks/throughput.py --out throughput_cpu
    python benchmarks/throughput.py --models vim_tiny_patch16_224 vim_small_patch16_224 deit_tiny_patch16_224 \\
        --batch-size 1 16 128 --dtype float32 bfloat16 --compile no yes --out throughput_h100

Before anything is timed, each model has to give the logits of the reference scan. Dense and reduced models are then timed
in turns (benchmarks/README.md has the protocol). benchmarks/results/NAME.json gets everything, with the conditions,
NAME.csv the columns of timm's published results, NAME.md a table and NAME.png a plot. ViTs of timm (``deit_*``,
``vit_*``) stand beside, reduced by `tome`. Weights are random: speed does not depend on them.
"""

import argparse
import csv
import itertools
import json
import sys
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

import mtrkit
from mtrkit.measure import Precision, describe_machine, forward_pass, input_size_of, interleave, peak_memory, summarise
from mtrkit.measure.candidates import DENSE, Candidate, MethodChoice, candidates
from mtrkit.scan import use_scan_backend

RESULTS = Path(__file__).parent / "results"
COLUMNS = {  # of timm's result files, from ours
    "model": "name",
    "infer_samples_per_sec": "images_per_second",
    "infer_step_time": "milliseconds",
    "infer_batch_size": "batch_size",
    "infer_img_size": "image_size",
    "infer_gmacs": "gflops",
    "param_count": "million_parameters",
}
AGREE = 1e-3  # of the logits' norm, float32, through all blocks


def parse() -> argparse.Namespace:
    """What to time, and how often."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["vim_tiny_patch16_224", "deit_tiny_patch16_224"])
    parser.add_argument("--method", nargs="+", default=["mtr", "runs"])
    parser.add_argument("--ratio", nargs="+", type=float, default=[0.05, 0.1, 0.3, 0.5])
    parser.add_argument("--batch-size", nargs="+", type=int, default=[1, 4, 16])
    parser.add_argument("--dtype", nargs="+", default=["float32"])
    parser.add_argument("--compile", nargs="+", choices=("no", "yes"), default=["no"])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=0.2, help="least time per model and round")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, help="CPU threads")
    parser.add_argument("--out", required=True, metavar="NAME", help="of the files under benchmarks/results/")
    return parser.parse_args()


def build(name: str, device: str) -> nn.Module:
    """A model with random weights, ours or timm's."""
    torch.manual_seed(0)
    own = name in mtrkit.list_models()
    model = mtrkit.create_model(name) if own else timm.create_model(name, pretrained=False)
    return model.eval().to(device)


def reductions(name: str, methods: list[str]) -> list[MethodChoice]:
    """What the model can be reduced by."""
    chosen = methods if name in mtrkit.list_models() else ["tome"]
    return [MethodChoice(method, method, {}) for method in chosen]


@torch.no_grad()
def check(model: nn.Module, device: str) -> float:
    """How far the logits are from those of the reference scan, which has to be near 0."""
    images = torch.randn(2, *input_size_of(model), device=device)
    found = model(images)
    with use_scan_backend("reference"):
        wanted = model(images)
    apart = ((found - wanted).norm() / wanted.norm()).item()
    if not apart < AGREE:
        raise SystemExit(
            f"the logits are {apart:.2g} of their norm away from those of the reference scan; nothing is timed"
        )
    return apart


def measure(args: argparse.Namespace, name: str, dtype: str, compiled: bool, batch: int) -> list[dict[str, Any]]:
    """Rows of one model, dense first."""
    precision, device = Precision(dtype), torch.device(args.device)
    model = precision.cast(build(name, args.device))
    found = candidates(model, reductions(name, args.method), args.ratio)
    images = torch.randn(batch, *input_size_of(model), device=device, dtype=precision.weights)
    torch.compiler.reset()
    run = {
        candidate.name: forward_pass(
            torch.compile(candidate.model, dynamic=False) if compiled else candidate.model, images, precision
        )
        for candidate in found
    }
    taken = list(interleave(run, device, rounds=args.rounds, seconds=args.seconds))
    held = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers(), images))
    memory = {candidate: peak_memory(step, device, held) for candidate, step in run.items()}
    common = {"model": name, "dtype": dtype, "compiled": compiled, "batch_size": batch, "image_size": images.shape[-1]}
    common["million_parameters"] = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    return [row(candidate, taken, common, memory[candidate.name]) for candidate in found]


def row(
    candidate: Candidate, taken: list[dict[str, float]], common: dict[str, Any], memory: int | None
) -> dict[str, Any]:
    """One model as it was timed."""
    timing = summarise(taken, candidate.name, DENSE, common["batch_size"])
    kind = "" if candidate.info is None else f".{candidate.method}_{candidate.ratio:g}"
    return common | {
        "name": common["model"] + kind,
        "method": candidate.method,
        "ratio": candidate.ratio,
        "gflops": candidate.gflops,
        "images_per_second": timing.images_per_second,
        "milliseconds": 1e3 * common["batch_size"] / timing.images_per_second,
        "speedup": timing.speedup,
        "speedup_quartiles": timing.speedup_quartiles,
        "promised": candidate.promised,
        "share": timing.speedup / candidate.promised,
        "peak_memory": memory,
    }


def write(name: str, conditions: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    """All four files, after each group of rows, so that an interruption keeps what there is."""
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps({"conditions": conditions, "rows": rows}, indent=1) + "\n")
    with (RESULTS / f"{name}.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(COLUMNS)
        for row in rows:
            table.writerow([row[key] for key in COLUMNS.values()])
    lines = [
        f"Images per second on {conditions['device']}, {conditions['threads']} threads, torch {conditions['torch']}, "
        f"commit {conditions['commit']}: `{conditions['command']}`.",
        "",
        "| model | dtype | batch | method | ratio | images/s | ms | speed-up | promised | share | peak MiB |",
        "|---" * 11 + "|",
        *map(line, rows),
    ]
    (RESULTS / f"{name}.md").write_text("\n".join(lines) + "\n")


def line(row: dict[str, Any]) -> str:
    """A row of the table."""
    dtype = row["dtype"] + (", compiled" if row["compiled"] else "")
    memory = "" if row["peak_memory"] is None else f"{row['peak_memory'] / 2**20:.0f}"
    return (
        f"| {row['model']} | {dtype} | {row['batch_size']} | {row['method']} | {row['ratio']:g} "
        f"| {row['images_per_second']:.4g} | {row['milliseconds']:.4g} | ×{row['speedup']:.2f} "
        f"| ×{row['promised']:.2f} | {row['share']:.2f} | {memory} |"
    )


def plot(name: str, rows: list[dict[str, Any]]) -> None:
    """Share of the promise over the ratio, a line per model, dtype and batch size; needs matplotlib."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    kinds = itertools.groupby(rows, key=lambda row: (row["model"], row["dtype"], row["compiled"], row["batch_size"]))
    for (model, dtype, compiled, batch), group in kinds:
        reduced = [row for row in group if row["method"] != DENSE]
        for method in dict.fromkeys(row["method"] for row in reduced):
            points = [(row["ratio"], row["share"]) for row in reduced if row["method"] == method]
            label = f"{model}, {method}, {dtype}{', compiled' if compiled else ''}, batch {batch}"
            axes.plot(*zip(*points, strict=True), marker="o", label=label)
    axes.axhline(1, color="0.5", linewidth=1)
    axes.set(xlabel="share of the FLOPs removed", ylabel="speed-up as a share of what FLOPs promise")
    axes.legend(fontsize=6)
    figure.savefig(RESULTS / f"{name}.png", dpi=120)


def main() -> int:
    """Check, time and write."""
    args = parse()
    if args.threads:
        torch.set_num_threads(args.threads)
    conditions = describe_machine(torch.device(args.device)) | {"command": " ".join(["python", *sys.argv])}
    conditions["apart_from_reference"] = {name: check(build(name, args.device), args.device) for name in args.models}
    rows: list[dict[str, Any]] = []
    for name, dtype, compiled, batch in itertools.product(args.models, args.dtype, args.compile, args.batch_size):
        rows += measure(args, name, dtype, compiled == "yes", batch)
        write(args.out, conditions, rows)
    plot(args.out, rows)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
