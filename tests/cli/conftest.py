"""Runs of the command line in this process."""

import signal
from typing import NamedTuple

import pytest

from mtrkit.cli.main import main

MODEL = "vim_micro_patch4_32"


class Ran(NamedTuple):
    """What a command answered."""

    code: int
    out: str
    err: str


@pytest.fixture
def interruptible():
    """Ctrl-C raises, also where the tests run in a shell's background, which ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def mtrkit_run(capsys, monkeypatch):
    """Run ``mtrkit`` with these arguments; exits by argparse count as return codes."""
    monkeypatch.delenv("COLUMNS", raising=False)

    def run(*arguments):
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as exit:
            code = exit.code
        return Ran(code, *capsys.readouterr())

    return run
