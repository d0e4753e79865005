"""Every snippet of README and docs runs, and every command line is one that the program takes."""

import shlex
from pathlib import Path

import pytest

from mtrkit.cli.main import COMMANDS, main
from tests.helpers.running import ROOT, run_python
from tests.helpers.snippets import commands, missing_checkpoints, pages, snippets

pytestmark = pytest.mark.skipif(not (ROOT / "docs").is_dir(), reason="the pages lie in the repository only")


def test_python_runs():
    """In one process for all pages; ``tests/helpers/snippets.py`` has the rules."""
    done = run_python("-m", "tests.helpers.snippets")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count(": ran") > 10


def test_what_is_not_run_says_why():
    reasons = [snippet.why_not for page in pages() for snippet in snippets(page) if snippet.why_not is not None]
    assert all(len(reason.split()) > 3 for reason in reasons)
    assert len(reasons) < sum(len(snippets(page)) for page in pages()) / 3


@pytest.mark.parametrize("page", [page for page in pages() if commands(page)])
def test_command_lines(page, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    for command in commands(page):
        program, *arguments = shlex.split(command)
        if "--import" in arguments:
            Path(arguments[arguments.index("--import") + 1]).touch()
        if program == "python":
            check_script(command, arguments)
        elif len(arguments) == 1:
            assert arguments[0] in COMMANDS, command
        else:
            monkeypatch.setattr(f"mtrkit.cli.{COMMANDS[arguments[0]][0]}.run", lambda args: 0)
            try:
                assert main(arguments) == 0, command
            except SystemExit:
                pytest.fail(f"{command}\n{capsys.readouterr().err}")


def check_script(command, arguments):
    """The script is there, and knows the options that are given."""
    script = ROOT / arguments[0]
    assert script.is_file(), command
    flags = {argument for argument in arguments[1:] if argument.startswith("--")}
    assert not [flag for flag in flags if f'"{flag}"' not in script.read_text(encoding="utf-8")], command


def test_what_a_page_is_given():
    code = 'mtrkit.create_model("a", "b.pth")\ncreate_model("c", checkpoint="d.safetensors")\nf("g", "h.pth")'
    assert list(missing_checkpoints(code)) == [("a", "b.pth"), ("c", "d.safetensors")]
