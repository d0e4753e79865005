"""Redo the tables of the papers on the small reference models, with one command.

    python benchmarks/laboratory.py --data cifar10/val --tuning-data cifar10/train        # in the repository's root
    python benchmarks/laboratory.py --data cifar10/val --only methods mtr_indicator

Every table is one ``mtrkit compare``, but for leave_one_out, the script of that name. The table of methods is made of
each model, with those behind it beside it as they are, and the one of keeping time of each alone; the rest, and speeds,
of the first; the ablations by which a default is chosen on images for tuning as well, into a folder of their own. Raw
rows go to benchmarks/results/laboratory/, tables and plots to docs/laboratory/. What is measured already, for this or
another table, is not measured again: remove a result file to redo it.
"""

import argparse
from pathlib import Path

import leave_one_out
from tables import METHODS, TABLES, TIME, Table

from mtrkit.cli.main import main as mtrkit
from mtrkit.measure.candidates import ModelChoice

PICTURE = "tokens"
RESULTS, DOCS = Path("benchmarks/results/laboratory"), Path("docs/laboratory")
MODELS = (
    "vim_micro_patch4_stride2_32",
    "vim_micro_patch4_stride2_avgpool_32",
    "videomamba_micro_patch4_stride2_32",
    "vim_nano_patch4_stride2_32",
    "vim_micro_patch4_32",
)


def parse() -> argparse.Namespace:
    """Which models, which images, which tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder per class: images that nothing was tuned on")
    parser.add_argument("--tuning-data", help="the same: training images that the models did not see")
    parser.add_argument("--model", nargs="+", default=MODELS, help="NAME[=CHECKPOINT], the largest first")
    parser.add_argument("--limit", type=int, default=500, help="images for each table (default: 500)")
    parser.add_argument("--main-limit", type=int, default=1000, help="for the first model's methods (default: 1000)")
    parser.add_argument(
        "--tuning-limit", type=int, default=400, help="for tuning, of the 2000 that training holds out (default: 400)"
    )
    names = [*(table.name for table in TABLES), PICTURE, leave_one_out.__name__]
    parser.add_argument("--only", nargs="+", choices=names, default=names, help="default: all")
    return parser.parse_args()


def folders(model: str, part: str = "") -> tuple[Path, Path]:
    """Where the rows and the tables of one model, NAME[=CHECKPOINT], go."""
    name = ModelChoice.parse(model).name
    both = RESULTS / name / part, DOCS / name / part
    for folder in both:
        folder.mkdir(parents=True, exist_ok=True)
    return both


def compare(table: Table, results: Path, docs: Path, models: list[str], data: str, limit: int) -> list[str]:
    """The ``mtrkit compare`` that makes one table."""
    command = ["compare", "--model", *models, "--data", data, "--limit", str(limit), "--title", table.title]
    command += ["--out", str(results), "--table", f"{docs / table.name}.md"]
    command += ["--method", *table.methods, "--ratio", *map(str, table.ratios or (0,))]
    return command + (["--r", *map(str, table.removals)] if not table.ratios else [])


def methods(models: list[str], data: str, limit: int, timed: bool) -> list[str]:
    """Every method on the first of the models, with plots."""
    results, docs = folders(models[0])
    command = compare(METHODS, results / "methods.json", docs, models, data, limit)
    command += ["--plot", f"{docs}/flops.png", f"{docs}/flops.svg"]
    if not timed:
        return [*command, "--rounds", "0"]
    return [*command, "--batch-size", "16", "--speed-plot", f"{docs}/speed.png", f"{docs}/speed.svg"]


def ablation(table: Table, model: str, data: str, limit: int, part: str = "") -> list[str]:
    """One ablation; all of a model share a file of rows, since many have rows in common."""
    results, docs = folders(model, part)
    return [*compare(table, results / "ablations.json", docs, [model], data, limit), "--rounds", "0"]


def picture(model: str) -> list[str]:
    """What each method does to one image (MTR, figure 3)."""
    name, checkpoint = ModelChoice.parse(model)
    command = ["draw", name, "--checkpoint", checkpoint, "bundled:705"]
    methods = ("evit", "pumer", "utr", "hsa", "mtr", "runs")
    return [*command, "--method", *methods, "--out", f"{folders(model)[1]}/{PICTURE}.webp"]


def worth_of_tokens(model: str, data: str, limit: int) -> int:
    """The table of leave_one_out.py, unless it is there; one image in 25 does, each a sample of its tokens."""
    results, docs = folders(model)
    out, table = results / "leave_one_out.json", docs / "leave_one_out.md"
    wanted = ["--model", model, "--data", data, "--limit", str(limit // 25), "--out", str(out), "--table", str(table)]
    return 0 if out.exists() else leave_one_out.main(wanted)


def main() -> int:
    """Make the tables that were asked for."""
    args = parse()
    wanted = [table for table in TABLES if table.name in args.only]
    commands, models = [], list(args.model)
    if METHODS in wanted:
        commands.append(methods(models, args.data, args.main_limit, timed=True))
        commands += [methods(models[i:], args.data, args.limit, timed=False) for i in range(1, len(models))]
    for table in wanted:
        if table.tunes and args.tuning_data:
            commands.append(ablation(table, models[0], args.tuning_data, args.tuning_limit, "tuning"))
        if table is not METHODS:
            asked = models if table is TIME else models[:1]
            commands += [ablation(table, model, args.data, args.limit) for model in asked]
    if PICTURE in args.only:
        commands.append(picture(models[0]))
    failed = next((code for code in map(mtrkit, commands) if code), 0)
    if failed or leave_one_out.__name__ not in args.only:
        return failed
    return worth_of_tokens(models[0], args.data, args.limit)


if __name__ == "__main__":
    raise SystemExit(main())
