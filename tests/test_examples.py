"""The examples run as they are printed."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

import mtrkit
from mtrkit.data import bundled_images
from mtrkit.models.releases import BUNDLED
from tests.helpers.running import ROOT, run_python

NAME = "vim_nano_patch4_stride2_32"


def run(name, *arguments):
    """Run an example as a user does."""
    return run_python(ROOT / "examples" / name, *arguments)


def test_apply_and_remove():
    done = run("01_apply_and_remove.py")
    assert done.returncode == 0, done.stderr
    assert "bit for bit" in done.stdout and "speed-up promised" in done.stdout


def test_choose_a_ratio():
    done = run("02_choose_a_ratio.py", "--limit", "20", "--loss", "1")
    assert done.returncode == 0, done.stderr
    assert "chosen: ratio=0.3" in done.stdout


def test_get_the_accuracy_back(tmp_path):
    done = run("04_get_the_accuracy_back.py", "--out", tmp_path / "run", "--epochs", "0.08")
    assert done.returncode == 0, done.stderr
    assert "reduced and re-trained" in done.stdout and "(1 steps" in done.stdout
    assert (tmp_path / "run" / "model.safetensors").exists()


def test_dyvm(tmp_path):
    done = run("09_dyvm.py", "--out", tmp_path / "run", "--epochs", "0.08")
    assert done.returncode == 0, done.stderr
    assert "held-out images:" in done.stdout and "of the scans run, as measured" in done.stdout


def test_official_vim_says_what_is_missing():
    done = run("03_official_vim.py", "no_such_repository:model")
    assert done.returncode == 1
    assert "no_such_repository" in done.stderr and "clone of hustvl/Vim" in done.stderr
    assert "Traceback" not in done.stderr


def test_official_vim_with_a_model_of_its_form():
    done = run("03_official_vim.py", "tests.standins.hustvl_vim:VisionMamba", "--ratio", "0.2")
    assert done.returncode == 0, done.stderr
    assert "hustvl_vim" in done.stdout and "logits: (2, 10)" in done.stdout


def test_export():
    for package in ("onnxruntime", "onnxscript"):
        pytest.importorskip(package)
    done = run("07_export.py")
    assert done.returncode == 0, done.stderr
    by_onnx, by_torch = (line.partition(":")[2] for line in done.stdout.splitlines() if line.startswith("classes by"))
    assert by_onnx.strip() == by_torch.strip() and "'method': 'mtr', 'ratio': '0.3'" in done.stdout


def test_process_pool():
    done = run("08_process_pool.py", "--workers", "1")
    assert done.returncode == 0, done.stderr
    answers = [line.partition(": ") for line in done.stdout.splitlines()]
    right = [name for image, _, name in answers if name == bundled_images().classes[int(image) // 100]]
    assert len(answers) == 10 and len(right) > 6


def test_segment():
    done = run("segment.py", "--size", "128", "--rounds", "1")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("(1, 192, 8, 8)") == 4 and "prediction: (1, 128, 128)" in done.stdout
    assert "speed-up" in done.stdout and "random weights" in done.stdout


def test_segment_a_picture_of_ones_own(photos):
    photo = next(photos.rglob("*.png"))
    done = run("segment.py", "--image", photo, "--size", "64", "--rounds", "1", "--ratio", "0.1")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("(1, 192, 4, 4)") == 4


@pytest.fixture
def dataset(photos):
    """A data set of twenty images, the same for training and for looking at."""
    folder = photos.parent / "dataset"
    for part in ("train", "val"):
        shutil.copytree(photos, folder / part)
    return folder


def test_train_with_a_teacher_and_go_on(dataset, tmp_path):
    small = ("--data", dataset, "--batch-size", "4", "--holdout", "4", "--workers", "0")
    done = run("train_teacher.py", *small, "--out", tmp_path, "--widths", "8", "8", "8", "--epochs", "0.5")
    assert done.returncode == 0, done.stderr
    assert "held-out top-1" in done.stdout and torch.export.load(tmp_path / "teacher.pt2")

    def train(out, *more):
        recipe = ("--coarse-epochs", "0.5", "--fine-epochs", "0.25", "--decay-epochs", "0.25")
        done = run("train_reference.py", NAME, *small, *recipe, "--out", tmp_path / out, *more)
        assert done.returncode == 0, done.stderr
        return load_file(tmp_path / out / f"{NAME}.safetensors"), (tmp_path / out / "card.json").read_text()

    lesson = ("--teacher", tmp_path / "teacher.pt2")
    first, card = train("first", *lesson)
    assert json.loads(card)["recipe"]["teacher"] == "teacher.pt2" and json.loads(card)["n"] == 20
    assert mtrkit.create_model(NAME, tmp_path / "first" / f"{NAME}.safetensors")
    for stage in ("coarse", "fine"):
        run_of = json.loads((tmp_path / "first" / stage / "run.json").read_text())["run"]
        assert (run_of["recipe"]["ema"], run_of["recipe"]["ema_warmup"]) == (0.998, True)
    assert same(train("again", *lesson)[0], first)
    assert same(train("first", *lesson)[0], first)  # it had ended, and nothing is left to do
    start = ("--initial-checkpoint", tmp_path / "first" / f"{NAME}.safetensors")
    assert not same(train("second", *lesson, *start)[0], first) and not same(train("alone")[0], first)


FRONT, POOLED = "videomamba_micro_patch4_stride2_32", "vim_micro_patch4_stride2_avgpool_32"


@pytest.mark.parametrize("name", [NAME, POOLED, FRONT])
def test_train_from_a_relative(name, dataset, tmp_path):
    relative = mtrkit.create_model("vim_micro_patch4_stride2_32")
    about = json.dumps({"architecture": "vim_micro_patch4_stride2_32"})
    save_file(relative.state_dict(), tmp_path / "relative.safetensors", {"about": about})
    recipe = ("--coarse-epochs", "0", "--fine-epochs", "0.25", "--batch-size", "4", "--holdout", "4", "--lr", "1e-30")
    start = ("--initial-checkpoint", tmp_path / "relative.safetensors")
    done = run("train_reference.py", name, "--data", dataset, "--out", tmp_path, *recipe, *start)
    assert done.returncode == 0, done.stderr
    model = mtrkit.create_model(name, tmp_path / f"{name}.safetensors")
    if name == FRONT:  # its directions are summed, not averaged
        for block in relative.layers:
            block.mixer.out_proj.weight.data.div_(2)
    pairs = list(zip((0, 2, 3, 5, 6, 8, 9, 11) if name == NAME else range(12), model.layers, strict=True))
    assert all(near(block.state_dict(), relative.layers[place].state_dict()) for place, block in pairs)
    before, token, behind = relative.pos_embed.split((112, 1, 113), dim=1)
    tables = {NAME: (before, token, behind), POOLED: (before, behind), FRONT: (token, before, behind)}
    assert near({"pos_embed": model.pos_embed}, {"pos_embed": torch.cat(tables[name], dim=1)})


def test_train_with_another_model_as_teacher(dataset, tmp_path):
    recipe = ("--coarse-epochs", "0", "--fine-epochs", "0.25", "--batch-size", "4", "--holdout", "4")
    for out, lesson in (("taught", ("--teacher", BUNDLED["vim_micro_patch4_stride2_32"])), ("alone", ())):
        done = run("train_reference.py", NAME, "--data", dataset, "--out", tmp_path / out, *recipe, *lesson)
        assert done.returncode == 0, done.stderr
    taught, alone = (load_file(tmp_path / out / f"{NAME}.safetensors") for out in ("taught", "alone"))
    assert not same(taught, alone)


def near(weights, others):
    """The same bits, but that a step at a rate of 1e-30 moves what is zero."""
    return all(torch.allclose(weight, others[name], rtol=0, atol=1e-20) for name, weight in weights.items())


def same(weights, others):
    return all(torch.equal(weight, others[name]) for name, weight in weights.items())


def test_own_family():
    done = run("own_family.py")
    assert done.returncode == 0, done.stderr
    assert "on signal_mamba, input 1×512" in done.stdout and "bit for bit" in done.stdout
    assert [line.split()[0] for line in done.stdout.splitlines()[:4]] == ["dense", "mtr", "tome", "rmeeto"]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["05_grad_cam.py", "06_hidden_attention.py"])
def test_maps_of_dense_and_reduced_models(name, tmp_path):
    if name == "05_grad_cam.py":
        pytest.importorskip("pytorch_grad_cam")
    done = run(name, "--out", tmp_path / "map.png", "--images", "2")
    assert done.returncode == 0, done.stderr
    correlations = [float(line.split()[-1]) for line in done.stdout.splitlines() if "correlation" in line]
    assert len(correlations) == 2 and min(correlations) > 0.3
    assert (tmp_path / "map.png").stat().st_size > 1000
