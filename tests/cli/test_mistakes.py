"""Wrong use: exit code 2, a message that names what was given and what to do, and no traceback."""

import pytest

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
    "suffix of calibration": (("calibrate", MODEL, "--data", "bundled", "--out", "c.pth"), ".safetensors file"),
    "nothing to calibrate": (
        ("calibrate", MODEL, "--data", "bundled", "--out", "c.safetensors", "--ratio", 0),
        "above 0 and below 1",
    ),
    "missing device": (("bench", MODEL, "--device", "cuda:99"), "--device cuda:99"),
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
