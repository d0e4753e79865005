"""The numbers of README.md and docs/, from the raw results: what stands there between two markers.

    python benchmarks/readme_tables.py            # writes the pages anew; a test asks that they are as this writes them

A block begins with <!-- NAME: python benchmarks/readme_tables.py --> and ends with <!-- end -->.
"""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mtrkit.measure import Accuracy, paired_difference
from mtrkit.measure.evaluation import right_images
from mtrkit.measure.report import as_markdown

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PAGES = ("README.md", "docs/results.md", "docs/finetune.md")
MICRO = "vim_micro_patch4_stride2_32"
COMMAND = "python benchmarks/readme_tables.py"
BLOCK = re.compile(rf"(<!-- (?P<name>\w+): {re.escape(COMMAND)} -->\n).*?(?=<!-- end -->)", re.DOTALL)

Row = dict[str, Any]


def read(name: str) -> Any:
    """The rows of a file of results."""
    return json.loads((RESULTS / name).read_text(encoding="utf-8"))


def newest(rows: list[Row]) -> dict[tuple[str, float], Row]:
    """(method, ratio) → its latest row, of the first model."""
    chosen = [row for row in rows if row["model"] == rows[0]["model"]]
    return {(row["method"], float(row["ratio"])): row for row in sorted(chosen, key=lambda row: row["time"])}


def accuracy_rows() -> dict[tuple[str, float], Row]:
    """Keeping time, measured by benchmarks/runs.py."""
    return newest(read(f"runs/{MICRO}/compare.json"))


def speed_rows() -> dict[tuple[str, float], Row]:
    """Vim-Ti, measured by mtrkit bench."""
    return newest(read("bench_runs_vim_tiny_cpu.json"))


def lost(row: Row, dense: Row) -> str:
    """Points of top-1, with their paired interval."""
    return str(paired_difference(right_images(row), right_images(dense))).replace("-", "−")


def pitch() -> str:
    """What and how much, and in the next line what it costs."""
    small, fast = accuracy_rows(), speed_rows()[("runs", 0.4)]
    dense, row = small[("dense", 0.0)], small[("runs", 0.4)]
    return (
        f"With 0.4 of its FLOPs removed by `runs`, Vim-Ti classifies 224×224 images ×{fast['speedup']:.2f} as fast on "
        f"{fast['threads']} CPU cores.<br>\n"
        f"The cost: {lost(row, dense)} points of {100 * dense['top1']:.1f} % top-1 for our small reference model on "
        f"{row['n']} CIFAR-10 images.\n"
    )


def results(most: float = 0.4) -> str:
    """Accuracy, speed and memory side by side, up to a ratio."""
    rows, fast = accuracy_rows(), speed_rows()
    held = {(row["method"], row["ratio"]): row for row in read("memory_cpu.json")["rows"]}
    columns = ["", "FLOPs removed", "top-1, %", "change, points", "speed-up", "Vim-Ti speed-up"]
    columns += ["memory of a pass", "of a training step"]
    cells = []
    for (method, ratio), row in rows.items():
        if ratio > most:
            continue
        kept, tiny = held.get((method, ratio)), fast.get((method, ratio))
        cells.append(
            [
                method if method == "dense" else "`runs`, calibrated" if "," in method else f"`{method}`",
                f"{ratio:g}" if ratio else "",
                f"{100 * row['top1']:.1f}",
                lost(row, rows[("dense", 0.0)]) if ratio else "",
                f"×{row['speedup']:.2f}" if ratio else "",
                f"×{tiny['speedup']:.2f}" if tiny and ratio else "",
                f"{kept['inference_MiB']:.0f} MiB" if kept else "",
                f"{kept['training_MiB']:.0f} MiB" if kept else "",
            ]
        )
    return as_markdown(columns, cells)


def speed() -> str:
    """Images per second of Vim-Ti, and how much of what the FLOPs promise comes."""
    rows = speed_rows()
    shown = ("images/s", "speed-up", "share")
    columns = ["ratio", *(f"{method}, {what}" for method in ("`mtr`", "`runs`") for what in shown)]
    cells = [["0", f"{rows['dense', 0.0]['images_per_second']:.1f}", "", "", "", "", ""]]
    for ratio in sorted({ratio for _, ratio in rows if ratio}):
        both = [rows[method, ratio] for method in ("mtr", "runs")]
        found = [(f"{r['images_per_second']:.1f}", f"×{r['speedup']:.2f}", f"{r['share']:.2f}") for r in both]
        cells.append([f"{ratio:g}", *found[0], *found[1]])
    return as_markdown(columns, cells)


def accuracy() -> str:
    """Of mtr with its defaults, with the interval of the accuracy itself."""
    rows = read("eval_micro_val.json")
    cells = [f"{Accuracy(int(row['correct']), int(row['n']))}" for row in rows]
    return as_markdown(["ratio", *(f"{float(row['ratio']):g}" for row in rows)], [["top-1 (95 % interval)", *cells]])


def memory() -> str:
    """Of one pass and of a training step."""
    rows = read("memory_cpu.json")["rows"]
    named = [row["method"] if not row["ratio"] else f"`{row['method']}`, {row['ratio']:g}" for row in rows]
    numbers = [[f"{row[kind]:.1f} MiB" for kind in ("inference_MiB", "training_MiB")] for row in rows]
    cells = [[name, *both] for name, both in zip(named, numbers, strict=True)]
    return as_markdown(["", "one pass", "training step"], cells)


def retrained() -> str:
    """What re-training brings back of mtr at 0.4 and 0.5, how long it took, and where DyVM comes to."""
    folder, found = f"retrain/{MICRO}", []
    for ratio in (40, 50):
        before, after = (read(f"{folder}/mtr_{ratio}_{kind}.json") for kind in ("as_it_is", "retrained"))
        change = f"from {100 * before['top1']:.1f} to {100 * after['top1']:.1f} %"
        found.append(f"at {ratio / 100:g} {change} in {after['minutes']:.0f} minutes")
    dense, dyvm = (read(f"{folder}/{name}.json") for name in ("mtr_0_as_it_is", "dyvm_35_retrained"))
    gone = 100 * (1 - dyvm["gflops"] / dense["gflops"])
    trained, whole = " and ".join(found), f"dense {100 * dense['top1']:.1f} %"
    last = f"DyVM comes to {100 * dyvm['top1']:.1f} % with {gone:.0f} % of the FLOPs gone."
    return f"Training with the reduction in place brings `mtr` {trained} on two CPU cores ({whole}). {last}\n"


BLOCKS: dict[str, Callable[[], str]] = {
    "pitch": pitch,
    "results": results,
    "all_results": lambda: results(most=1),
    "speed": speed,
    "accuracy": accuracy,
    "memory": memory,
    "retrained": retrained,
}


def filled(page: str) -> str:
    """A page with every block as the results have it."""
    return BLOCK.sub(lambda found: found[1] + BLOCKS[found["name"]](), page)


def main() -> None:
    """Write the pages."""
    for name in PAGES:
        page = ROOT / name
        page.write_text(filled(page.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
