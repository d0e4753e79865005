"""The other tests of this folder in Triton's interpreter: the kernels' arithmetic, on a machine without a GPU."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mtrkit.triton import availability

HERE = Path(__file__).parent
FILES = [str(HERE / f"test_{name}.py") for name in ("scan", "mixer", "tokens")]


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
@pytest.mark.skipif(availability.interpreted(), reason="this is the interpreter already")
def test_all_of_them():
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    command = [sys.executable, "-m", "pytest", "-rs", "-p", "no:cacheprovider", "-p", "no:xdist", *FILES]
    done = subprocess.run(command, env=environment, cwd=HERE.parents[1], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    assert " passed" in done.stdout and "skipped" not in done.stdout, done.stdout[-2000:]
