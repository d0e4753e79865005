"""Files that commands write to be looked at: --page, and whether a file can be written where it is asked for."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from mtrkit.cli.console import say
from mtrkit.errors import InputError

PAGES = (".html", ".htm")


def add_page(parser: argparse.ArgumentParser, what: str) -> None:
    """--page, which shows what ``what`` says."""
    parser.add_argument("--page", type=Path, metavar="FILE", help=f"an .html file: {what}")


def save_page(path: Path, page: str) -> None:
    """Write a page and say so."""
    path.write_text(page, encoding="utf-8")
    say(f"page: {path} ({path.stat().st_size / 1e6:.2f} MB); open it in a browser")


def check_target(path: Path, suffixes: Sequence[str], what: str) -> None:
    """Raise :class:`InputError` unless a file can be written here, with one of the suffixes."""
    if path.suffix.lower() not in suffixes:
        raise InputError(
            f"{path}: {what} are written as {', '.join(dict.fromkeys(suffixes))}; give one of these suffixes"
        )
    if not path.absolute().parent.is_dir():
        raise InputError(f"{path.parent} is not a folder; make it first, or write elsewhere")
