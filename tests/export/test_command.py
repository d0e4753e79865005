"""``mtrkit export`` as a user runs it."""

import json

import torch

import mtrkit
from tests.cli.conftest import mtrkit_run  # noqa: F401, a fixture
from tests.cli.test_json import check

MODEL = "vim_nano_patch4_stride2_32"


def test_export(mtrkit_run, tmp_path):  # noqa: F811
    command = ("export", MODEL, "--checkpoint", "pretrained", "--ratio", "0.2", "--out", tmp_path / "model.pt2")
    ran = mtrkit_run(*command, "--json")
    assert ran.code == 0, ran.err
    found = json.loads(ran.out)
    check(found, "export")
    assert (found["metadata"]["method"], found["metadata"]["ratio"]) == ("mtr", "0.2") and found["error"] < 1e-3
    images = torch.randn(3, 3, 32, 32)
    model = mtrkit.apply_reduction(mtrkit.create_model(MODEL, "pretrained").eval(), "mtr", ratio=0.2)
    with torch.no_grad():
        found = torch.export.load(tmp_path / "model.pt2").module()(images)
        torch.testing.assert_close(found, model(images), rtol=0, atol=1e-3)


def test_what_does_not_say_what_to_write(mtrkit_run, tmp_path):  # noqa: F811
    ran = mtrkit_run("export", MODEL, "--out", tmp_path / "model.bin")
    assert ran.code == 2 and "written as .onnx, .pt2" in ran.err and not list(tmp_path.iterdir())
