"""Redo the tables of the papers on the small reference models, with one command.

    python benchmarks/laboratory.py --data cifar10/val                                    # in the repository's root
    python benchmarks/laboratory.py --data cifar10/val --only methods mtr_indicator

Every table is one ``mtrkit compare`` on the same images. Raw rows go to benchmarks/results/laboratory/, tables and
plots to docs/laboratory/. What is measured already is not measured again: remove a result file to redo it.
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
    parser.add_argument(
        "--model",
        nargs="+",
        default=["vim_micro_patch4_32"],
        help="NAME[=CHECKPOINT] to reduce, then smaller dense ones",
    )
    parser.add_argument("--limit", type=int, default=2000, help="images for the ablations (default: 2000)")
    parser.add_argument("--only", nargs="+", choices=[table.name for table in TABLES], help="default: all")
    return parser.parse_args()


def arguments(table: Table, args: argparse.Namespace) -> list[str]:
    """The ``mtrkit compare`` that makes one table."""
    name, compares_models = args.model[0].partition("=")[0], table.name == "methods"
    results, docs = RESULTS / name, DOCS / name
    for folder in (results, docs):
        folder.mkdir(parents=True, exist_ok=True)
    command = ["compare", "--model", *(args.model if compares_models else args.model[:1]), "--data", args.data]
    command += ["--title", table.title, "--out", f"{results / table.name}.json", "--table", f"{docs / table.name}.md"]
    command += ["--method", *table.methods, "--ratio", *map(str, table.ratios or (0,))]
    command += ["--r", *map(str, table.removals)] if not table.ratios else []
    if not compares_models:
        return [*command, "--limit", str(args.limit), "--rounds", "0"]
    for flag, stem in (("--plot", docs / "flops"), ("--speed-plot", docs / "speed")):
        command += [flag, f"{stem}.png", f"{stem}.svg"]
    return command


def main() -> int:
    """Make the tables that were asked for."""
    args = parse()
    for table in TABLES:
        if (args.only is None or table.name in args.only) and (code := mtrkit(arguments(table, args))):
            return code
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
