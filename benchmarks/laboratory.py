"""Redo the tables of the papers on the small reference models, with one command.

    python benchmarks/laboratory.py --data cifar10/val --tuning-data cifar10/train        # in the repository's root
    python benchmarks/laboratory.py --data cifar10/val --only methods mtr_indicator

Every table is one ``mtrkit compare`` on the same images; those by which a default is chosen are made on images for
tuning as well, into a folder of their own. Raw rows go to benchmarks/results/laboratory/, tables and plots to
docs/laboratory/. What is measured already is not measured again: remove a result file to redo it.
"""

import argparse
from pathlib import Path

from tables import TABLES, Table

from mtrkit.cli.main import main as mtrkit

RESULTS, DOCS = Path("benchmarks/results/laboratory"), Path("docs/laboratory")


def parse() -> argparse.Namespace:
    """Which model, which images, which tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder per class: images that nothing was tuned on")
    parser.add_argument("--tuning-data", help="the same: training images that the models did not see")
    parser.add_argument(
        "--model",
        nargs="+",
        default=["vim_micro_patch4_32"],
        help="NAME[=CHECKPOINT] to reduce, the largest first: those behind it stand beside it as they are",
    )
    parser.add_argument("--limit", type=int, default=2000, help="images for the ablations (default: 2000)")
    parser.add_argument("--only", nargs="+", choices=[table.name for table in TABLES], help="default: all")
    return parser.parse_args()


def arguments(table: Table, models: list[str], data: str, limit: int, tuning: bool) -> list[str]:
    """The ``mtrkit compare`` that makes one table of the first model."""
    name, compares_models = models[0].partition("=")[0], table.name == "methods"
    results, docs = (folder / name / ("tuning" if tuning else "") for folder in (RESULTS, DOCS))
    for folder in (results, docs):
        folder.mkdir(parents=True, exist_ok=True)
    command = ["compare", "--model", *(models if compares_models else models[:1]), "--data", data]
    command += ["--title", table.title, "--out", f"{results / table.name}.json", "--table", f"{docs / table.name}.md"]
    command += ["--method", *table.methods, "--ratio", *map(str, table.ratios or (0,))]
    command += ["--r", *map(str, table.removals)] if not table.ratios else []
    if not compares_models:
        return [*command, "--limit", str(limit), "--rounds", "0"]
    for flag, stem in (("--plot", docs / "flops"), ("--speed-plot", docs / "speed")):
        command += [flag, f"{stem}.png", f"{stem}.svg"]
    return command


def main() -> int:
    """Make the tables that were asked for."""
    args = parse()
    wanted = [table for table in TABLES if args.only is None or table.name in args.only]
    commands = []
    for models in (args.model[index:] for index in range(len(args.model))):
        for table in wanted:
            if table.tunes and args.tuning_data:
                commands.append(arguments(table, models, args.tuning_data, args.limit, tuning=True))
            commands.append(arguments(table, models, args.data, args.limit, tuning=False))
    return next((code for code in map(mtrkit, commands) if code), 0)


if __name__ == "__main__":
    raise SystemExit(main())
