"""Programs of torch: read by a process without mtrkit, and compiled ahead of time if there is a compiler."""

import json
import subprocess
import sys

import pytest
import torch

import mtrkit
from tests.export.models import IMAGES, answer, vim
from tests.test_matrix import has_what_it_reads

METHODS = [method for method in mtrkit.list_methods() if has_what_it_reads(method, "vim")]

ALONE = """
import sys, torch
program = torch.export.load(sys.argv[1])
images, wanted = torch.load(sys.argv[2])
with torch.no_grad():
    for count in (1, 3):
        torch.testing.assert_close(program.module()(images[:count]), wanted[:count], rtol=0, atol=1e-4)
assert not any(name.split(".")[0] == "mtrkit" for name in sys.modules)
assert not hasattr(torch.ops.mtrkit, "selective_scan")
"""


def has_compiler():
    from torch._inductor.cpp_builder import get_cpp_compiler

    try:
        return bool(get_cpp_compiler())
    except Exception:
        return False


@pytest.mark.parametrize("method", [None, *METHODS])
def test_every_method(method, tmp_path):
    model = vim(method)
    done = mtrkit.export(model, tmp_path / "model.pt2", IMAGES[:2])
    program = torch.export.load(done.path).module()
    batch = torch.cat([IMAGES, IMAGES.flip(3)])
    with torch.no_grad():
        for images in (batch[:1], batch):
            torch.testing.assert_close(program(images), answer(model, images), rtol=0, atol=1e-4)


@pytest.mark.parametrize("method", [None, "runs"])
def test_a_process_without_mtrkit_reads_it(method, tmp_path):
    model = vim(method)
    mtrkit.export(model, tmp_path / "model.pt2", IMAGES)
    torch.save((IMAGES, answer(model)), tmp_path / "expected.pt")
    command = [sys.executable, "-I", "-c", ALONE, str(tmp_path / "model.pt2"), str(tmp_path / "expected.pt")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_what_the_file_says_of_itself(tmp_path):
    done = mtrkit.export(vim("mtr"), tmp_path / "model.pt2", IMAGES)
    files = {"mtrkit.json": ""}
    torch.export.load(done.path, extra_files=files)
    said = json.loads(files["mtrkit.json"])
    assert said == done.metadata and said["method"] == "mtr" and said["mtrkit"] == mtrkit.__version__
    assert "opset" not in said


def test_a_disabled_reduction_is_not_in_the_file(tmp_path):
    model = vim("mtr")
    with mtrkit.reduction_disabled(model):
        done = mtrkit.export(model, tmp_path / "model.pt2", IMAGES)
    assert done.metadata["method"] == "none" and "tokens" not in done.metadata


@pytest.mark.slow
@pytest.mark.skipif(not has_compiler(), reason="no C++ compiler")
@pytest.mark.filterwarnings("default")  # torch's own, of its compiler
def test_compiled_ahead_of_time(tmp_path):
    model = vim("mtr")
    done = mtrkit.export(model, tmp_path / "model.pt2", IMAGES, format="aotinductor")
    compiled = torch._inductor.aoti_load_package(str(done.path))
    with torch.no_grad():
        for images in (IMAGES[:1], IMAGES):
            torch.testing.assert_close(compiled(images), answer(model, images), rtol=0, atol=1e-4)
    assert compiled.get_metadata()["method"] == "mtr"
