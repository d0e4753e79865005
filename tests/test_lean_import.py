"""Importing mtrkit needs torch and numpy alone, touches no GPU and takes no time to speak of."""

import subprocess
import sys

PROBE = """
import importlib.abc, sys, time
import numpy, torch

class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {absent!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Absent())
before = set(sys.modules)
start = time.perf_counter()
import mtrkit
seconds = time.perf_counter() - start
assert not torch.cuda.is_initialized()
others = {{name.partition(".")[0] for name in set(sys.modules) - before if not name.startswith("mtrkit")}}
third_party = {{n for n in others if n not in sys.stdlib_module_names and not n.startswith("_")}}
assert not third_party - {{"torch", "numpy"}}, third_party
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


def probe(then=""):
    """Import mtrkit in a fresh interpreter in which every optional package is missing."""
    code = PROBE.format(absent=set(ABSENT), then=then)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_import_is_lean():
    probe()


def test_patching_works_without_any_optional_package():
    probe(PATCH)
