"""Wrong use: exit code 2, a message that names what was given and what to do, and no traceback."""

import zipfile
from importlib.util import find_spec

import pytest
from PIL import Image

from mtrkit.cli.files import check_target
from mtrkit.errors import CheckpointError, InputError
from tests.cli.conftest import MODEL

MISTAKES = {
    "unknown model": (("info", "vim_tiny"), "known: "),
    "unknown method": (("info", MODEL, "--method", "mrt"), "Did you mean 'mtr'?"),
    "unknown option": (("info", MODEL, "--option", "metrics=1"), "has no option 'metrics'"),
    "wrong option": (("info", MODEL, "--option", "similarity=euclid"), "cosine"),
    "ratio of one": (("bench", MODEL, "--ratio", 1), "ratio"),
    "negative ratio": (("eval", MODEL, "--data", "bundled", "--ratio", -0.1), "ratio"),
    "ratio out of reach": (("info", MODEL, "--ratio", 0.95), "ratio"),
    "layer past the end": (("info", MODEL, "--layers", 12), "from 1 to 11"),
    "missing checkpoint": (("eval", MODEL, "--data", "bundled", "--checkpoint", "no.pth"), "no.pth"),
    "checkpoint of another model": (("info", "vim_tiny_patch16_224", "--checkpoint", "CHECKPOINT"), "does not fit"),
    "missing data": (("eval", MODEL, "--data", "nowhere"), "nowhere is not a folder"),
    "missing image": (("draw", MODEL, "nobody.png"), "nobody.png does not exist"),
    "nothing to draw": (("draw", MODEL, "a.png", "--ratio", 0), "above 0"),
    "format of picture": (("draw", MODEL, "a.png", "--out", "a.gif"), ".png"),
    "suffix of results": (("bench", MODEL, "--out", "results.txt"), ".json or .csv"),
    "folder of results": (("bench", MODEL, "--out", "nowhere/results.csv"), "nowhere is not a folder"),
    "missing calibration": (("eval", MODEL, "--data", "bundled", "--calibration", "no.safetensors"), "no.safetensors"),
    "suffix of calibration": (("calibrate", MODEL, "--data", "bundled", "--out", "c.pth"), "written as .safetensors"),
    "nothing to calibrate": (
        ("calibrate", MODEL, "--data", "bundled", "--out", "c.safetensors", "--ratio", 0),
        "above 0 and below 1",
    ),
    "missing device": (("bench", MODEL, "--device", "cuda:99"), "--device cuda:99"),
    "device that does not compute": (("bench", MODEL, "--device", "meta"), "--device meta cannot be used here"),
    "folder of the demo's picture": (("demo", "--out", "nowhere/demo.png"), "nowhere is not a folder"),
    "format of the demo's picture": (("demo", "--out", "demo.gif"), ".png"),
    "threshold and r": (("info", MODEL, "--method", "runs", "--threshold", 0.9, "--r", 3), "r and threshold both say"),
    "ratio and r": (("info", MODEL, "--ratio", 0.2, "--r", 3), "ratio and r both say"),
    "r here and there": (("info", MODEL, "--r", 3, "--method", "rmeeto:r=5"), "--r and r= of 'rmeeto' both say"),
    "r of every method": (("bench", MODEL, "--option", "r=5"), "r of every method says how much to remove"),
    "whole image as crop": (("eval", MODEL, "--data", "bundled", "--crop", 0), "crop"),
    "method without thresholds": (("info", MODEL, "--method", "mtr", "--threshold", 0.9), "threshold= says nothing"),
    "thresholds for other layers": (
        ("info", MODEL, "--method", "runs", "--threshold", "0.9,0.8"),
        "one number for each of the layers",
    ),
    "no such reference beside a calibration": (
        ("compare", "--model", MODEL, "--data", "bundled", "--against", "rmeeto", "--calibration", "no.safetensors"),
        "no.safetensors",
    ),
    "no such reference": (
        ("compare", "--model", MODEL, "--data", "bundled", "--against", "rmeeto"),
        "--against rmeeto is not among what is compared: dense, mtr",
    ),
}
VIM = "vim_tiny_patch16_224"  # whose weights would have to be fetched
LOCAL = {
    "missing image": (("draw", VIM, "nobody.png"), "nobody.png does not exist"),
    "no image": (("draw", VIM, "text.png"), "text.png cannot be read as an image"),
    "a video": (("draw", VIM, "clip.mp4"), "clip.mp4 is a video, and the model takes images"),
    "missing data": (("eval", VIM, "--data", "nowhere"), "nowhere is not a folder"),
    "empty data": (("eval", VIM, "--data", "empty"), "empty has no images"),
    "missing shards": (("eval", VIM, "--data", "x-{0..3}.tar"), "x-0.tar is not a file"),
    "wrong layer": (("eval", VIM, "--data", "bundled", "--layers", 24), "from 1 to 23"),
    "unknown method": (("draw", VIM, "image.png", "--method", "mrt"), "Did you mean 'mtr'?"),
    "ratio out of reach": (("draw", VIM, "image.png", "--ratio", 0.99), "ratio"),
    "size that cannot be": (("draw", VIM, "image.png", "--input-size", 8), "smaller than one patch"),
    "foreign file": (("eval", VIM, "--data", "bundled", "--out", "text.csv"), "no results of mtrkit"),
    "foreign table": (
        ("compare", "--model", VIM, "--data", "bundled", "--table", "notes.md"),
        "notes.md is there already and was not written by mtrkit",
    ),
    "folder of a plot": (
        ("compare", "--model", VIM, "--data", "bundled", "--plot", "nowhere/a.png"),
        "nowhere is not a folder",
    ),
    "second model": (("compare", "--model", VIM, f"{MODEL}=no.pth", "--data", "bundled"), "no.pth does not exist"),
    "picture over a photo": (("draw", VIM, "image.png", "--out", "image.png"), "not written by mtrkit"),
    "calibration over weights": (
        ("calibrate", VIM, "--data", "bundled", "--out", "weights.safetensors"),
        "weights.safetensors is there already and was not written by mtrkit",
    ),
    "export over a model": (
        ("export", VIM, "--checkpoint", "pretrained", "--out", "model.onnx"),
        "model.onnx is there already",
    ),
    "missing calibration": (("eval", VIM, "--data", "bundled", "--calibration", "no.safetensors"), "no.safetensors"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistake_is_explained(mtrkit_run, monkeypatch, tmp_path, mistake):
    from mtrkit.models.releases import BUNDLED

    monkeypatch.chdir(tmp_path)
    arguments, expected = MISTAKES[mistake]
    ran = mtrkit_run(*(str(BUNDLED[MODEL]) if argument == "CHECKPOINT" else argument for argument in arguments))
    assert ran.code == 2
    assert ran.err.startswith("mtrkit: error: ") and expected in ran.err, ran.err
    assert "Traceback" not in ran.err


@pytest.mark.parametrize("mistake", LOCAL)
def test_what_is_wrong_here_is_found_before_anything_is_fetched(mtrkit_run, monkeypatch, tmp_path, mistake):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("mtrkit.models.releases.download", lambda *_: pytest.fail("something was fetched"))
    (tmp_path / "empty").mkdir()
    Image.new("RGB", (224, 224)).save(tmp_path / "image.png")
    precious = {"text.png": "no image", "text.csv": "name,score\n", "notes.md": "# Notes\n", "clip.mp4": ""}
    precious |= {"model.onnx": "a model", "weights.safetensors": "weights"}
    for name, text in precious.items():
        (tmp_path / name).write_text(text)
    arguments, expected = LOCAL[mistake]
    ran = mtrkit_run(*arguments)
    assert ran.code == 2 and expected in ran.err, ran.err
    assert "Traceback" not in ran.err
    assert {name: (tmp_path / name).read_text() for name in precious} == precious


def test_weights_are_fetched_if_nothing_is_wrong(mtrkit_run, monkeypatch, tmp_path):
    fetched = []

    def download(repo, file):
        fetched.append(f"{repo}/{file}")
        raise CheckpointError("offline")

    monkeypatch.setattr("mtrkit.models.releases.download", download)
    Image.new("RGB", (224, 224)).save(tmp_path / "image.png")
    ran = mtrkit_run("draw", VIM, tmp_path / "image.png", "--out", tmp_path / "tokens.png")
    assert ran.code == 2 and "offline" in ran.err
    assert fetched == ["hustvl/Vim-tiny-midclstok/vim_t_midclstok_76p1acc.pth"]


def test_own_files_are_written_again(mtrkit_run, photos, tmp_path):
    photo = next(photos.glob("cat/*.png"))
    for name in ("a.png", "a.jpg", "a.webp"):
        codes = [mtrkit_run("draw", MODEL, photo, "--out", tmp_path / name).code for _ in range(2)]
        assert codes == [0, 0], name
    table = ("compare", "--model", MODEL, "--data", "bundled", "--limit", 4, "--rounds", 0, "--ratio", 0.3)
    plots = ("--plot", tmp_path / "p.png", tmp_path / "p.svg") if find_spec("matplotlib") else ()
    for _ in range(2):
        ran = mtrkit_run(*table, "--table", tmp_path / "t.md", *plots)
        assert ran.code == 0, ran.err
    fit = ("calibrate", MODEL, "--data", "bundled", "--limit", 20, "--layers", 1, "--out", tmp_path / "c.safetensors")
    assert [mtrkit_run(*fit).code for _ in range(2)] == [0, 0]


@pytest.mark.parametrize("name", ["mtrkit_holiday.png", "plot.png", "plot.svg", "notes.md"])
def test_files_of_the_users_own_are_kept(name, tmp_path):
    """A picture of that name, figures that matplotlib has drawn, and notes with a command in them."""
    file = tmp_path / name
    if name == "notes.md":
        file.write_text("What I ran:\n\n    mtrkit compare --model vim\n")
    elif name.startswith("mtrkit"):
        Image.new("RGB", (4, 4)).save(file)
    else:
        pytest.importorskip("matplotlib.figure").Figure().savefig(file)
    with pytest.raises(InputError, match="was not written by mtrkit"):
        check_target(file, (file.suffix,), "files")


def test_exported_files_are_known_again(tmp_path):
    (tmp_path / "a.onnx").write_bytes(b"\x08\x08...r\x10\n\x06mtrkit\x12\x050.1.0")
    check_target(tmp_path / "a.onnx", (".onnx",), "models")
    for name, mine in (("mtrkit.json", True), ("other.json", False)):
        file = tmp_path / f"{name}.pt2"
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr(f"archive/extra/{name}", "{}")
        if mine:
            check_target(file, (".pt2",), "models")
        else:
            with pytest.raises(InputError, match="was not written by mtrkit"):
                check_target(file, (".pt2",), "models")


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("foo",),
        ("bench",),
        ("bench", MODEL, "--batch-size", "0"),
        ("bench", MODEL, "--dtype", "int8"),
        ("info", MODEL, "--input-size", "big"),
        ("info", MODEL, "--option", "similarity"),
        ("info", MODEL, "--ratio", "x"),
        ("info", MODEL, "--threshold", "high"),
        ("info", MODEL, "--layers", "every0"),
        ("list", "things"),
    ],
    ids=" ".join,
)
def test_usage_is_shown(mtrkit_run, arguments):
    ran = mtrkit_run(*arguments)
    assert ran.code == 2 and ran.err.startswith("usage: mtrkit")


def test_corrupt_image_is_named(mtrkit_run, photos):
    victim = next(photos.glob("dog/*.png"))
    victim.write_bytes(victim.read_bytes()[:200])
    ran = mtrkit_run("eval", MODEL, "--data", photos, "--ratio", 0, "--rounds", 1)
    assert ran.code == 2 and str(victim) in ran.err
    victim.write_text("<html>404</html>")
    ran = mtrkit_run("draw", MODEL, victim)
    assert ran.code == 2 and str(victim) in ran.err


def test_folders_must_be_the_classes(mtrkit_run, photos):
    for file in (photos / "ship").iterdir():
        file.unlink()
    (photos / "ship").rmdir()
    ran = mtrkit_run("eval", MODEL, "--data", photos)
    assert ran.code == 2 and "10 classes" in ran.err and "9 folders" in ran.err


def test_foreign_file_is_not_overwritten(mtrkit_run, tmp_path):
    for name, text in (("a.json", '{"precious": 1}'), ("b.csv", "name,age\nme,9\n"), ("c.json", "oops")):
        (tmp_path / name).write_text(text)
        ran = mtrkit_run("bench", MODEL, "--out", tmp_path / name)
        assert ran.code == 2 and "no results of mtrkit" in ran.err
        assert (tmp_path / name).read_text() == text
