"""``mtrkit finetune``, run as a user would."""

import json

import pytest
import torch
from PIL import Image

import mtrkit
from mtrkit.cli.finetune import HELP
from mtrkit.cli.main import main
from mtrkit.data import bundled_images
from mtrkit.dyvm import DyVMCheckpoint, measure_scan_share
from mtrkit.errors import OptionError
from mtrkit.finetune import Recipe
from mtrkit.finetune.curve import read_curve
from mtrkit.measure import batches, open_images, predict, preprocess_for, score

MODEL = "vim_micro_patch4_32"
QUICK = [
    *("--batch-size", "8", "--epochs", "0.5", "--auto-augment", "none", "--mixup", "0", "--cutmix", "0"),
    *("--repeats", "1", "--workers", "0", "--threads", "2", "--device", "cpu", "--ratio", "0.4", "--method", "runs"),
]


@pytest.fixture(scope="module")
def ten_classes(tmp_path_factory):
    """Four bundled images of each of the ten classes."""
    root = tmp_path_factory.mktemp("ten")
    images, labels, classes = bundled_images()
    for label, name in enumerate(classes):
        (root / name).mkdir()
        for number, index in enumerate((labels == label).nonzero()[0][:4]):
            Image.fromarray(images[index]).save(root / name / f"{number}.png")
    return root


def test_every_part_of_the_recipe_is_an_option():
    assert [*HELP] == [*Recipe().as_dict()]


def test_trains_and_leaves_a_checkpoint_that_the_model_takes(ten_classes, tmp_path, capsys):
    out = tmp_path / "run"
    command = ["finetune", MODEL, "--data", str(ten_classes), "--out", str(out), "--held-out", "10", *QUICK]
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert "runs(" in printed and "2 steps" in printed and "model.safetensors" in printed
    rows = read_curve(out / "log.csv")
    assert [row["step"] for row in rows] == [1, 2] and rows[-1]["held_out"] is not None
    model = mtrkit.create_model(MODEL, out / "model.safetensors").eval()
    mtrkit.apply_reduction(model, "runs", ratio=0.4)
    held = open_images(ten_classes).spread(10)
    assert score(predict(model, held, preprocess_for(model.pretrained_cfg)), held).share == rows[-1]["held_out"]
    assert json.loads((out / "run.json").read_text())["made by"]["torch"]
    assert main(command) == 0  # the same again: nothing is left to do
    assert [row["step"] for row in read_curve(out / "log.csv")] == [1, 2]


def test_a_dry_run_says_what_it_would_be_and_writes_nothing(ten_classes, tmp_path, capsys):
    assert (
        main(["finetune", MODEL, "--data", str(ten_classes), "--out", str(tmp_path / "run"), "--dry-run", *QUICK]) == 0
    )
    printed = capsys.readouterr().out
    assert "40 images, 2 steps" in printed and "tokens 65," in printed and "minutes" in printed
    assert not (tmp_path / "run").exists()


def test_dyvm_has_a_recipe_of_its_own(ten_classes, tmp_path, capsys):
    command = ["finetune", MODEL, "--data", str(ten_classes), "--out", str(tmp_path), "--batch-size", "8", "--dry-run"]
    assert main([*command, "--method", "dyvm"]) == 0
    assert f"{30 * 5} steps" in capsys.readouterr().out  # R-MeeTo's has 3 epochs


def test_mistakes_are_said_in_words(ten_classes, tmp_path, capsys):
    out = tmp_path / "run"
    assert main(["finetune", MODEL, "--data", str(ten_classes), "--out", str(out), *QUICK, "--batch-size", "64"]) == 2
    assert "40 images are fewer than one batch of 64" in capsys.readouterr().err
    own = ["finetune", MODEL, "--data", str(ten_classes), "--out", str(out), *QUICK, "--method", "dyvm"]
    assert main([*own, "--distill", "0.5"]) == 2
    assert "dyvm's loss has a teacher of its own; leave out --distill and --teacher" in capsys.readouterr().err
    amount = own[: own.index("--ratio")] + own[own.index("--ratio") + 2 :]
    assert main([*amount, "--ratio", "0.5"]) == 2
    assert "dyvm says how much by keep and block_target; leave out --ratio and --r" in capsys.readouterr().err
    if not torch.cuda.is_available():
        assert main([*amount, "--device", "cuda"]) == 2
        assert "--device cuda cannot be used here" in capsys.readouterr().err
    assert not out.exists()


def _trains_on_with_its_choices(data, before, quick, held):
    """With a checkpoint the weights learn alone, and what chooses is written again beside them."""
    after, file = before.with_name("after"), before / "dyvm.safetensors"
    command = ["finetune", MODEL, "--checkpoint", str(before / "model.safetensors"), "--data", str(data), *quick]
    command += ["--lr", "1e-2"]
    assert main([*command, "--out", str(after), "--method", f"dyvm:checkpoint={file}", "--held-out", "10"]) == 0
    old, new = (DyVMCheckpoint.load(folder / "dyvm.safetensors") for folder in (before, after))
    assert all(torch.equal(value, old.parts.state_dict()[name]) for name, value in new.parts.state_dict().items())
    model = mtrkit.create_model(MODEL, after / "model.safetensors").eval()
    with pytest.raises(OptionError, match="other weights"):
        mtrkit.apply_reduction(model, "dyvm", checkpoint=old)
    mtrkit.apply_reduction(model, "dyvm", checkpoint=new)
    found = score(predict(model, held, preprocess_for(model.pretrained_cfg)), held).share
    assert found == read_curve(after / "log.csv")[-1]["held_out"]


def test_trains_dyvm_and_writes_what_it_adds(ten_classes, tmp_path, capsys):
    out = tmp_path / "run"
    quick = QUICK[: QUICK.index("--ratio")]
    method = ["--method", "dyvm:keep=0.9,block_target=0.8", "--held-out", "10"]
    command = ["finetune", MODEL, "--data", str(ten_classes), "--out", str(out), *quick, *method]
    assert main(command) == 0
    assert "dyvm(" in capsys.readouterr().out
    torch.manual_seed(7)
    assert main(command) == 0  # the same run, whatever was drawn before: nothing is left to do
    model = mtrkit.create_model(MODEL, out / "model.safetensors").eval()
    mtrkit.apply_reduction(model, "dyvm", checkpoint=out / "dyvm.safetensors")
    held = open_images(ten_classes).spread(10)
    share = mtrkit.reduction_info(model).scan_share  # as the run has measured it
    pixels = torch.cat(list(batches(held, preprocess_for(model.pretrained_cfg), 10)))
    assert share is not None and share == measure_scan_share(model, pixels)
    found = score(predict(model, held, preprocess_for(model.pretrained_cfg)), held).share
    assert found == read_curve(out / "log.csv")[-1]["held_out"]
    _trains_on_with_its_choices(ten_classes, out, quick, held)
    other = tmp_path / "other"
    wrong = ["finetune", MODEL, "--data", str(ten_classes), "--out", str(other), *quick, "--method", "dyvm:share=0.9"]
    assert main(wrong) == 2 and "keep, block_target, layers and noise" in capsys.readouterr().err
