"""``mtrkit draw``: pictures, animations and pages of images, bundled ones, and clips."""

import pytest
import torch
from PIL import Image

import mtrkit
from mtrkit.vis import data_of
from tests.cli.conftest import MODEL

FAST = ("--rounds", 0)


def test_reductions_by_images(mtrkit_run, tmp_path):
    out = tmp_path / "tokens.png"
    ran = mtrkit_run(
        "draw", MODEL, "bundled:13", "bundled:310", "--method", "runs", "mtr", "--ratio", 0.2, 0.3, "--out", out
    )
    assert ran.code == 0, ran.err
    assert all(f"{method} at ratio {ratio}" in ran.out for method in ("runs", "mtr") for ratio in (0.2, 0.3))
    assert "bundled image 13 (airplane)" in ran.out and "airplane 8" in ran.out
    with Image.open(out) as picture:
        assert picture.height > 8 * 320  # a row for each of four reductions of two images


def test_importance_differs_from_tokens(mtrkit_run, tmp_path):
    pictures = [tmp_path / f"{map}.png" for map in ("tokens", "importance")]
    for out in pictures:
        ran = mtrkit_run("draw", MODEL, "bundled:13", "--map", out.stem, "--out", out)
        assert ran.code == 0, ran.err
    assert pictures[0].read_bytes() != pictures[1].read_bytes()
    ran = mtrkit_run("draw", MODEL, "bundled:13", "--map", "importance", "--method", "runs", "--out", pictures[0])
    assert ran.code == 2 and "runs at ratio 0.3 has no importance" in ran.err


def test_a_page_alone_writes_no_picture(mtrkit_run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ran = mtrkit_run("draw", MODEL, "bundled:13", "--page", "tokens.html", *FAST)
    assert ran.code == 0, ran.err
    assert [path.name for path in tmp_path.iterdir()] == ["tokens.html"]
    data = data_of((tmp_path / "tokens.html").read_text(encoding="utf-8"))
    assert [done["amount"] for done in data["passes"]] == [f"ratio {ratio}" for ratio in (0.1, 0.2, 0.3, 0.4, 0.5)]
    assert data["dense"]["images_per_second"] is None and "Speed" not in [
        n for n, text in data["about"].items() if text
    ]


def test_ratios_out_of_reach_are_left_out_of_the_slider(mtrkit_run, tmp_path):
    page = tmp_path / "tokens.html"
    ran = mtrkit_run("draw", MODEL, "bundled:13", "--layers", 11, "--page", page, *FAST)
    assert ran.code == 2 and "removes up to" in ran.err, ran.out
    ran = mtrkit_run("draw", MODEL, "bundled:13", "--layers", 6, 7, "--page", page, *FAST)
    assert ran.code == 0 and "the slider ends at 0.3: ratio=0.4 is out of reach" in ran.out, ran.err
    assert len(data_of(page.read_text(encoding="utf-8"))["passes"]) == 3


def test_tokens_by_layer_make_a_slider_too(mtrkit_run, tmp_path):
    page = tmp_path / "tokens.html"
    ran = mtrkit_run("draw", MODEL, "bundled:13", "--r", 4, 8, "--page", page, *FAST)
    assert ran.code == 0, ran.err
    data = data_of(page.read_text(encoding="utf-8"))
    assert [done["amount"] for done in data["passes"]] == ["r=4", "r=8"]
    assert [done["stages"][0]["after"] for done in data["passes"]] == [61, 57]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("bundled:1000",), "bundled:0 to bundled:999"),
        (("bundled:x",), "bundled:0 to bundled:999"),
        (("bundled:1", "--out", "a.gif"), "takes images; write a .png"),
        (("bundled:1", "--out", "a.txt"), "give one of these suffixes"),
        (("bundled:1", "--page", "a.png"), "pages are written as .html"),
        (("bundled:1", "--page", "nowhere/a.html"), "nowhere is not a folder"),
        (("bundled:1", "--ratio", "0"), "above 0"),
    ],
)
def test_mistakes(mtrkit_run, tmp_path, monkeypatch, arguments, expected):
    monkeypatch.chdir(tmp_path)
    ran = mtrkit_run("draw", MODEL, *arguments)
    assert ran.code == 2 and expected in ran.err, ran.err
    assert not list(tmp_path.iterdir())


@pytest.fixture
def clip(tmp_path):
    """A clip of 16 frames, and weights of a small model of clips with 4."""
    av = pytest.importorskip("av", reason="videos need PyAV")
    path = tmp_path / "clip.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=8)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for index in range(16):
            frame = av.VideoFrame.from_image(Image.new("RGB", (64, 48), (15 * index, 60, 200 - 12 * index)))
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    weights = tmp_path / "weights.pth"
    torch.save(mtrkit.create_model(CLIPS, img_size=(32, 48)).state_dict(), weights)
    return path, weights


CLIPS = "videomamba_tiny_patch16_224_f8"


def test_clips(mtrkit_run, clip, tmp_path):
    path, weights = clip
    run = ("draw", CLIPS, "--checkpoint", weights, "--input-size", "32x48", path, "--method", "rmeeto", "--r", 4)
    sheet, animation, page = (tmp_path / name for name in ("clip.png", "clip.webp", "clip.html"))
    for out in (sheet, animation):
        ran = mtrkit_run(*run, "--out", out)
        assert ran.code == 0, ran.err
    with Image.open(sheet) as picture:
        assert picture.height > 8 * 208
    with Image.open(animation) as moving:
        assert moving.n_frames == 8 and moving.height < 600
    ran = mtrkit_run(*run, "--page", page, *FAST)
    assert ran.code == 0, ran.err
    data = data_of(page.read_text(encoding="utf-8"))
    assert data["grid"] == {"rows": 2, "columns": 3, "frames": 8}
    assert data["inputs"][0]["times"] == pytest.approx([(2 * part + 1) / 8 for part in range(8)])
    assert len(data["inputs"][0]["frames"]) == 8
