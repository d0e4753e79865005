"""Run Python in a process of its own, with the same mtrkit that the tests import."""

import os
import subprocess
import sys
from pathlib import Path

import mtrkit

ROOT = Path(__file__).parents[2]
HOME = Path(mtrkit.__file__).parents[1]  # of the mtrkit that the tests import: the checkout's, or the installed one


def environment(**settings):
    """The variables for another process: it imports this mtrkit, and the tests of this checkout."""
    return os.environ | {"PYTHONPATH": f"{HOME}{os.pathsep}{ROOT}"} | settings


def run_python(*arguments):
    """Output, errors and return code of ``python`` with these arguments, in the root of the checkout."""
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment())
