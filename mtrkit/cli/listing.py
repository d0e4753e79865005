"""List the reduction methods, the model families they fit or not, the models there are, and the scan backends.

`mtrkit list methods NAME` gives the options of a method, their defaults and what they mean; for the others NAME is a
pattern, as in `mtrkit list models 'vim_*'`.
"""

import argparse
import inspect
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

from mtrkit.adapters import ADAPTERS, UNSUPPORTED
from mtrkit.cli.console import Output
from mtrkit.errors import UnknownNameError
from mtrkit.methods import METHODS, Method
from mtrkit.methods.describe import Option, describe_options
from mtrkit.models.registry import MODELS, list_models
from mtrkit.scan import scan_backends

EPILOG = """examples:
  mtrkit list
  mtrkit list methods rmeeto
  mtrkit list models 'vim_*'
  mtrkit list methods --json
"""


class Kind(NamedTuple):
    """What can be listed: its headings, the name of each entry's fields, and the entries."""

    headings: tuple[str, ...]
    fields: tuple[str, ...]
    entries: Callable[[], list[tuple[str, ...]]]


def _methods() -> list[tuple[str, ...]]:
    return [(name, METHODS.get(name).summary, METHODS.get(name).source) for name in METHODS.names()]


def _families() -> list[tuple[str, ...]]:
    return [(name, ADAPTERS.get(name).summary) for name in ADAPTERS.names()]


def _refused() -> list[tuple[str, ...]]:
    return [(family.name, family.summary, family.reason) for family in UNSUPPORTED]


def _models() -> list[tuple[str, ...]]:
    docs = {name: inspect.getdoc(MODELS.get(name)) or "" for name in list_models()}
    return [(name, doc.partition("\n")[0].replace("``", "")) for name, doc in docs.items()]


def _backends() -> list[tuple[str, ...]]:
    return [(status.name, "yes" if status.available else "no", status.reason) for status in scan_backends()]


KINDS = {
    "methods": Kind(("method", "what it does", "paper"), ("method", "summary", "source"), _methods),
    "families": Kind(("family", "which models"), ("family", "summary"), _families),
    "refused": Kind(("not reduced", "which models", "why"), ("family", "summary", "reason"), _refused),
    "models": Kind(("model", "what it is"), ("model", "summary"), _models),
    "backends": Kind(("scan backend", "runs here", "why"), ("backend", "runs", "reason"), _backends),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What to list."""
    parser.add_argument("kind", nargs="?", choices=list(KINDS), help="what to list (default: all)")
    parser.add_argument("name", nargs="?", metavar="NAME", help="of a method; a pattern for the others")


def run(args: argparse.Namespace) -> int:
    """Print the tables that were asked for."""
    out = Output(args.json)
    if args.kind == "methods" and args.name is not None:
        _tell_method(out, METHODS.get(args.name))
        return 0
    chosen = {kind: _chosen(kind, args.name) for kind in KINDS if args.kind in (None, kind)}
    for kind, entries in chosen.items():
        headings = KINDS[kind].headings
        out.table(headings, entries, text=range(len(headings)))
    if args.kind in (None, "methods"):
        out.say("", "Options of a method, their defaults and what they mean: mtrkit list methods NAME")
    out.document({kind: [_fields(kind, entry) for entry in entries] for kind, entries in chosen.items()})
    return 0


def _chosen(kind: str, pattern: str | None) -> list[tuple[str, ...]]:
    entries = KINDS[kind].entries()
    found = [entry for entry in entries if pattern is None or fnmatchcase(entry[0], pattern)]
    if not found:
        known = ", ".join(entry[0] for entry in entries)
        raise UnknownNameError(f"none of the {kind} is called {pattern!r}; known: {known}")
    return found


def _fields(kind: str, entry: Sequence[str]) -> dict[str, Any]:
    return dict(zip(KINDS[kind].fields, entry, strict=True))


def _tell_method(out: Output, method: Method) -> None:
    """One method with all its options."""
    options = describe_options(method)
    links = method.config().counts_links
    out.say(
        f"{method.name}: {method.summary}",
        f"source: {method.source}",
        f"removes at most {method.max_share:.0%} of the tokens in one place"
        + ("; takes --threshold" if links else "; takes no --threshold with these defaults"),
    )
    rows = [(option.name, _default(option), option.values, option.meaning) for option in options]
    out.table(("option", "default", "values", "meaning"), rows, text=(0, 1, 2, 3))
    told = {"method": method.name, "summary": method.summary, "source": method.source, "max_share": method.max_share}
    out.document(told | {"takes_threshold": links, "options": options})


def _default(option: Option) -> str:
    other = option.default_on_attention
    return str(option.default) if other == option.default else f"{option.default} ({other} on ViTs)"
