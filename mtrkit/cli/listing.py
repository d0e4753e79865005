"""List the reduction methods, the model families they fit or not, the models there are, and the scan backends."""

import argparse
import dataclasses
import inspect

from mtrkit.adapters import ADAPTERS, UNSUPPORTED
from mtrkit.cli.console import print_table
from mtrkit.methods import METHODS
from mtrkit.models import list_models
from mtrkit.models.registry import MODELS
from mtrkit.scan import scan_backends

EPILOG = """examples:
  mtrkit list
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """It takes none."""
    del parser


def run(args: argparse.Namespace) -> int:
    """Print five tables."""
    del args
    methods = [METHODS.get(name) for name in METHODS.names()]
    print_table(
        ("method", "what it does", "paper", "options"),
        [(m.name, m.summary, m.source, ", ".join(f.name for f in dataclasses.fields(m.config))) for m in methods],
        text=(0, 1, 2, 3),
    )
    adapters = [ADAPTERS.get(name) for name in ADAPTERS.names()]
    print_table(("family", "which models"), [(adapter.name, adapter.summary) for adapter in adapters], text=(0, 1))
    refused = [(family.name, family.summary, family.reason) for family in UNSUPPORTED]
    print_table(("not reduced", "which models", "why"), refused, text=(0, 1, 2))
    models = [(name, (inspect.getdoc(MODELS.get(name)) or "").partition("\n")[0]) for name in list_models()]
    print_table(("model", "what it is"), models, text=(0, 1))
    backends = [(status.name, "yes" if status.available else "no", status.reason) for status in scan_backends()]
    print_table(("scan backend", "runs here", "why"), backends, text=(0, 1, 2))
    return 0
