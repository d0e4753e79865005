"""The bundled pretrained models on bundled real images: they know them, and answers change more the more is removed."""

import importlib
import json
import shutil
import sys

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

import mtrkit
from mtrkit.models import write_metadata
from mtrkit.models.releases import BUNDLED
from tests.helpers.running import ROOT
from tests.models.shared import real_images

FLOORS = {0.05: 15.4, 0.2: 8.4, 0.5: 2.4}  # dB of the dense logits over the difference, 1 below those seen


@torch.no_grad()
def test_logits_lose_more_the_more_is_removed():
    model = mtrkit.create_model("vim_micro_patch4_32", checkpoint="pretrained")
    images, _ = real_images(16)
    dense = model(images)
    decibels = []
    for ratio, floor in FLOORS.items():
        mtrkit.apply_reduction(model, ratio=ratio)
        noise = (model(images) - dense).square().mean()
        decibels.append(float(10 * torch.log10(dense.square().mean() / noise)))
        assert decibels[-1] > floor, (ratio, decibels)
    assert decibels == sorted(decibels, reverse=True)
    assert torch.equal(mtrkit.remove_reduction(model)(images), dense)


@pytest.mark.parametrize("name", BUNDLED)
@torch.inference_mode()
def test_every_bundled_model_knows_the_images(name):
    images, labels = real_images(10)
    model = mtrkit.create_model(name, checkpoint="pretrained")
    assert (model(images).argmax(dim=1) == labels).float().mean() > 0.65
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())


def test_metadata_are_written_and_nothing_else(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    script = importlib.import_module("make_bundled_checkpoint")
    name, file = "vim_nano_patch4_stride2_32", tmp_path / "x.safetensors"
    shutil.copy(BUNDLED[name], file)
    for metadata in ({"family": "x"}, {"config": "y" * 5}):
        write_metadata(file, metadata)
    before, after = load_file(BUNDLED[name]), load_file(file)
    assert list(before) == list(after) and all(torch.equal(after[key], before[key]) for key in before)
    with safe_open(file, "pt") as opened, safe_open(BUNDLED[name], "pt") as original:
        assert opened.metadata() == original.metadata() | {"family": "x", "config": "yyyyy"}
    monkeypatch.setattr(script, "BUNDLED", {name: file})
    monkeypatch.setattr(sys, "argv", ["make_bundled_checkpoint", "--describe"])
    script.main()
    assert file.read_bytes() == BUNDLED[name].read_bytes()
    assert json.loads(safe_open(file, "pt").metadata()["config"])["depth"] == 8
