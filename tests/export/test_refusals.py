"""What cannot be exported says so in a sentence, and leaves no file."""

import sys

import pytest
import torch
from torch import nn

import mtrkit
from mtrkit.errors import ExportError, InputError, OptionError
from tests.export.models import IMAGES, vim


class Looks(nn.Module):
    """A model that decides by the values that it sees."""

    def forward(self, x):
        return x if x.sum() > 0 else -x


class Draws(nn.Module):
    """A model that gives another answer each time."""

    def forward(self, x):
        return x + torch.rand_like(x)


class Names(nn.Module):
    """A model that answers by a dictionary."""

    def forward(self, x):
        return {"features": x}


class Fixed(nn.Module):
    """A model for batches of three."""

    def forward(self, x):
        return x + x.new_ones(3, 1, 1, 1)


@torch.library.custom_op("mtrkit_tests::twice", mutates_args=())
def twice(x: torch.Tensor) -> torch.Tensor:
    return x * 2


twice.register_fake(torch.empty_like)


class Foreign(nn.Module):
    """A model with an operator that torch does not have."""

    def forward(self, x):
        return twice(x)


BAD = {
    "training": (lambda: vim().train(), ExportError, r"training mode; call model.eval\(\)"),
    "half": (lambda: vim().bfloat16(), ExportError, "bfloat16"),
    "looks": (lambda: Looks().eval(), ExportError, "cannot be captured"),
    "draws": (lambda: Draws().eval(), ExportError, "from the model's"),
    "names": (lambda: Names().eval(), ExportError, "returns a dict"),
    "fixed": (lambda: Fixed().eval(), ExportError, "batches of any size"),
    "foreign": (lambda: Foreign().eval(), ExportError, "mtrkit_tests|cannot be written"),
}


@pytest.mark.parametrize("format", ["onnx", "pt2"])
@pytest.mark.parametrize("bad", BAD)
def test_models(bad, format, tmp_path):
    build, error, message = BAD[bad]
    with pytest.raises(error, match=message):
        mtrkit.export(build(), tmp_path / f"model.{format}", IMAGES)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["model.pth", "model", "missing/model.onnx"])
def test_names(name, tmp_path):
    with pytest.raises(OptionError):
        mtrkit.export(vim(), tmp_path / name, IMAGES)


def test_formats_that_do_not_fit_the_name(tmp_path):
    with pytest.raises(OptionError, match="ends in .onnx"):
        mtrkit.export(vim(), tmp_path / "model.pt2", IMAGES, format="onnx")


def test_old_opsets(tmp_path):
    with pytest.raises(OptionError, match="opset=17"):
        mtrkit.export(vim(), tmp_path / "model.onnx", IMAGES, opset=17)


@pytest.mark.parametrize("input", [IMAGES[:0], (), "image"])
def test_inputs(input, tmp_path):
    with pytest.raises(InputError):
        mtrkit.export(vim(), tmp_path / "model.onnx", input)


def test_missing_packages(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ExportError, match=r'onnxscript; run: pip install "mtrkit\[export\]"'):
        mtrkit.export(vim(), tmp_path / "model.onnx", IMAGES)
