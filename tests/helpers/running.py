"""Run Python in a process of its own, with the same mtrkit that the tests import."""

import os
import subprocess
import sys
from pathlib import Path

import mtrkit

ROOT = Path(__file__).parents[2]


def run_python(*arguments):
    """Output, errors and return code of ``python`` with these arguments, in the root of the checkout."""
    environment = os.environ | {"PYTHONPATH": str(Path(mtrkit.__file__).parents[1])}
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
