"""What people see: tables that fold and lose no digit, warnings in one line, names of classes, and who says what."""

import csv
import json
import os
import re
import sys

import pytest

import mtrkit
from mtrkit.cli import main as cli
from mtrkit.cli.console import print_table
from mtrkit.cli.tables import column_widths, records, wrap
from mtrkit.measure.labels import class_labels
from mtrkit.methods import METHODS
from mtrkit.methods.describe import describe_options
from mtrkit.native.library import library
from tests.cli.conftest import MODEL
from tests.helpers.running import ROOT, environment

NUMBERS = re.compile(r"\S*\d\S*")
SEEN = {
    "list": ("list",),
    "method": ("list", "methods", "rmeeto"),
    "info": ("info", MODEL),
    "eval": ("eval", MODEL, "--data", "bundled", "--limit", 20, "--rounds", 1, "--out", "eval.json"),
    "compare": ("compare", "--model", MODEL, "--data", "bundled", "--limit", 20, "--rounds", 1, "--ratio", 0.3)
    + ("--method", "mtr", "rmeeto:layers=even", "--out", "compare.json"),
}


@pytest.mark.parametrize("command", SEEN)
def test_tables_fold_and_lose_no_number(mtrkit_run, monkeypatch, tmp_path, command):
    monkeypatch.chdir(tmp_path)
    wide = mtrkit_run(*SEEN[command])
    assert wide.code == 0, wide.err
    for width in (80, 40):
        monkeypatch.setenv("COLUMNS", str(width))
        folded = mtrkit_run(*SEEN[command]).out  # what was timed is read from the file
        longest = max(folded.splitlines(), key=len)
        assert len(longest) <= width or len(longest.split()) == 1, longest
        lost = {word for text in NUMBERS.findall(wide.out) for word in wrap(text, 1) if word not in folded}
        assert not lost
        assert "…" not in folded


def test_the_usual_tables_are_tables_at_eighty_columns(mtrkit_run, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    bench = ("bench", MODEL, "--batch-size", 1, "--method", "neighbor", "--rounds", 1, "--seconds", 0)
    for command, tables in ((SEEN["eval"], 1), (SEEN["compare"], 2), (bench, 1)):
        lines = mtrkit_run(*command).out.splitlines()
        assert sum("────" in line for line in lines) == tables, lines
        assert sum("speed-up" in line for line in lines) == tables


def test_columns_fold_only_where_words_end():
    rows = [("rmeeto:layers=even", "12.3 (10.0–14.6)"), ("mtr", "5.0 (4.0–6.0)")]
    assert column_widths(("method", "top-1 %"), rows, [0], 40) == [18, 16]
    assert column_widths(("method", "top-1 %"), rows, [0], 29) == [11, 16]
    assert column_widths(("method", "top-1 %"), rows, [0], 28) is None
    assert wrap("rmeeto:layers=even", 11) == ["rmeeto:", "layers=even"]
    assert wrap("1,000 of 2,000", 6) == ["1,000", "of", "2,000"]
    assert list(records(("method", "top-1 %"), rows, 26))[:2] == ["method   rmeeto:", "         layers=even"]
    assert list(records(("method", "top-1 %"), rows, 12))[:3] == ["method", "  rmeeto:", "  layers=even"]


def test_a_pipe_gets_the_width_that_a_table_needs(capsys):
    print_table(("a", "b"), [("1" * 150, "2" * 150)], text=())
    assert "1" * 150 + "  " + "2" * 150 in capsys.readouterr().out


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such terminals")
def test_a_real_terminal_of_forty_columns():
    import fcntl
    import pty
    import struct
    import subprocess
    import termios

    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 40, 0, 0))
    settings = environment(TERM="xterm")
    settings.pop("COLUMNS", None)
    command = [sys.executable, "-m", "mtrkit", "info", MODEL]
    with subprocess.Popen(command, cwd=ROOT, env=settings, stdout=theirs, stderr=subprocess.PIPE) as process:
        os.close(theirs)
        text = b""
        while piece := _read(ours):
            text += piece
    os.close(ours)
    lines = re.sub(r"\x1b\[[\d;]*m", "", text.decode()).splitlines()
    assert process.returncode == 0 and "tokens: 65," in "\n".join(lines)
    assert max(map(len, lines)) <= 40


def _read(terminal):
    try:
        return os.read(terminal, 4096)
    except OSError:  # the other side is closed
        return b""


def test_a_warning_is_one_line_and_comes_once(mtrkit_run, monkeypatch):
    monkeypatch.setattr(cli, "_said", set())
    command = ("info", MODEL, "--checkpoint", "pretrained")
    first, again = mtrkit_run(*command, "--method", "neighbor"), mtrkit_run(*command, "--method", "mtr")
    assert first.err == "mtrkit: warning: small (D = 96): 'neighbor' can lose much accuracy, 'runs' less\n"
    assert len(first.err.rstrip()) <= 80 and again.err == ""


def test_predictions_from_random_weights_say_so(mtrkit_run, photos, tmp_path):
    photo = next(photos.glob("ship/*.png"))
    random = mtrkit_run("info", MODEL, "--input", photo)
    assert "the weights are random, so its answers mean nothing" in random.out
    known = mtrkit_run("info", MODEL, "--checkpoint", "pretrained", "--input", photo)
    assert "(ship) dense" in known.out and "random" not in known.out
    out = ("--out", tmp_path / "tokens.png")
    drawn = mtrkit_run("draw", MODEL, photo, "--checkpoint", "random", *out)
    assert drawn.code == 0 and "weights are random" in drawn.out
    assert "weights are random" not in mtrkit_run("draw", MODEL, photo, *out).out
    told = mtrkit_run("eval", MODEL, "--checkpoint", "random", "--data", "bundled", "--limit", 5, "--rounds", 0)
    assert "the weights are random" in told.out


def test_random_weights_are_the_same_in_every_run(mtrkit_run, tmp_path):
    run = ("eval", MODEL, "--checkpoint", "random", "--data", "bundled", "--limit", 5, "--rounds", 0, "--ratio", 0)
    assert [mtrkit_run(*run, "--out", tmp_path / "rows.csv").code for _ in range(2)] == [0, 0]
    with (tmp_path / "rows.csv").open(newline="") as file:
        assert [row["checkpoint"] for row in csv.DictReader(file)] == ["random"]
    compared = mtrkit_run("compare", "--model", f"{MODEL}=random", "--data", "bundled", "--limit", 5, "--rounds", 0)
    assert compared.code == 0, compared.err


def test_names_of_classes():
    pytest.importorskip("timm.data", exc_type=ImportError)
    imagenet = class_labels("vim_tiny_patch16_224", "vim_t.pth", 1000)
    assert (len(imagenet), imagenet[281], imagenet[0]) == (1000, "tabby", "tench")
    assert class_labels(MODEL, "pretrained", 10)[8] == "ship"
    assert class_labels(MODEL, "own.pth", 10) is None  # ten classes of somebody's own
    assert class_labels("vim_tiny_patch16_224", None, 1000) is None
    assert class_labels("videomamba_tiny_patch16_224_f8", "k400.pth", 400) is None


@pytest.mark.parametrize("name", mtrkit.list_methods())
def test_every_option_of_a_method_is_told(mtrkit_run, name):
    method, ran = METHODS.get(name), mtrkit_run("list", "methods", name)
    assert ran.code == 0
    for option in describe_options(method):
        assert option.name in ran.out and str(option.default) in ran.out
        assert len(option.meaning) > 10 and "``" not in option.meaning and ":class:" not in option.meaning, option
        assert option.default == getattr(method.config(), option.name)
    assert ("takes --threshold" in ran.out) == method.config().counts_links


def test_lists_can_be_asked_for_apart(mtrkit_run):
    models = mtrkit_run("list", "models", "vim_nano*").out
    assert "vim_nano_patch4_stride2_32" in models and MODEL not in models and "rmeeto" not in models
    ran = mtrkit_run("list", "families", "nothing")
    assert ran.code == 2 and "none of the families" in ran.err and "hustvl_vim" in ran.err
    assert "Did you mean 'mtr'" in mtrkit_run("list", "methods", "mrt").err


@pytest.mark.parametrize(
    ("given", "layers"),
    [(["even"], [2, 4, 6, 8, 10]), (["odd"], [1, 3, 5, 7, 9, 11]), (["every4"], [4, 8]), (["5+10"], [5, 10])],
)
def test_layers_by_a_word(mtrkit_run, given, layers):
    ran = mtrkit_run("info", MODEL, "--ratio", 0.1, "--layers", *given, "--json")
    assert ran.code == 0 and json.loads(ran.out)["layers"] == layers
    both = mtrkit_run("info", MODEL, "--layers", "even", "3")
    assert both.code == 2 and "stand alone" in both.err


def test_who_runs_without_the_compiled_scan_is_told(mtrkit_run, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert "torch operations" not in mtrkit_run("info", MODEL).out
    monkeypatch.setattr(library(), "missing", "no compiled library _native.so in this installation")
    for command in (("info", MODEL), ("doctor",), ("demo", "--limit", 2, "--rounds", 1)):
        ran = mtrkit_run(*command)
        assert ran.code == 0, ran.err
        assert "the scan runs as torch operations" in ran.out and "pip install --force-reinstall" in ran.out


def test_demo_of_another_method(mtrkit_run, tmp_path):
    run = ("demo", "--limit", 4, "--rounds", 1, "--out", tmp_path / "demo.png", "--threads", 1)
    ran = mtrkit_run(*run, "--method", "runs:layers=even", "--ratio", 0.5)
    assert ran.code == 0, ran.err
    assert "method: runs:layers=even" in ran.out and " 1 threads" in ran.out and "picture of ratio 0.5" in ran.out
    assert "ms per batch" in ran.out and "0.2 " not in ran.out
    assert mtrkit_run(*run, "--ratio", 0).code == 2
