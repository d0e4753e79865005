"""The examples run as they are printed."""

from tests.running import ROOT, run_python


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


def test_official_vim_says_what_is_missing():
    done = run("03_official_vim.py", "no_such_repository:model")
    assert done.returncode == 1
    assert "no_such_repository" in done.stderr and "clone of hustvl/Vim" in done.stderr
    assert "Traceback" not in done.stderr


def test_official_vim_with_a_model_of_its_form():
    done = run("03_official_vim.py", "tests.hustvl_vim:VisionMamba", "--ratio", "0.2")
    assert done.returncode == 0, done.stderr
    assert "hustvl_vim" in done.stdout and "logits: (2, 10)" in done.stdout


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


def test_own_family():
    done = run("own_family.py")
    assert done.returncode == 0, done.stderr
    assert "on signal_mamba, input 1×512" in done.stdout and "bit for bit" in done.stdout
    assert [line.split()[0] for line in done.stdout.splitlines()[:4]] == ["dense", "mtr", "tome", "rmeeto"]
