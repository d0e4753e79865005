"""Importing mtrkit needs torch and numpy alone, touches no GPU, and loads nothing but its own small files.

What makes an import slow is what else it loads: timm, the compiler of torch, sympy. None of them comes with mtrkit,
installed or not.
"""

import subprocess
import sys

PROBE = """
import importlib.abc, sys
import numpy, torch

class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {absent!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Absent())
before = set(sys.modules)
import mtrkit
assert not torch.cuda.is_initialized()
added = {{name for name in set(sys.modules) - before if name.partition(".")[0] != "mtrkit"}}
others = {{name for name in added if name.partition(".")[0] not in sys.stdlib_module_names}}
assert not others, f"loaded with mtrkit: {{sorted(others)}}"
{then}
"""
ABSENT = [
    "timm",
    "torchvision",
    "triton",
    "mamba_ssm",
    "causal_conv1d",
    "rich",
    "matplotlib",
    "PIL",
    "safetensors",
]
PATCH = """
import torch
model = mtrkit.VisionMamba(img_size=32, patch_size=4, embed_dim=32, depth=6, num_classes=10).eval()
x = torch.randn(2, 3, 32, 32)
with torch.no_grad():
    dense = model(x)
    reduced = mtrkit.apply_reduction(model, ratio=0.3)(x)
assert not torch.equal(dense, reduced)
"""


def probe(then="", absent=ABSENT):
    """Import mtrkit in a fresh interpreter in which these packages are missing."""
    code = PROBE.format(absent=set(absent), then=then)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_import_is_lean():
    probe()


def test_import_loads_no_optional_package_that_is_installed():
    probe(absent=())


def test_patching_works_without_any_optional_package():
    probe(PATCH)
