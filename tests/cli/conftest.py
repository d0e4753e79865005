"""Runs of the command line in this process, and a small folder of real images."""

from typing import NamedTuple

import pytest
from PIL import Image

from mtrkit.cli.main import main
from mtrkit.data import bundled_images

MODEL = "vim_micro_patch4_32"


class Ran(NamedTuple):
    """What a command answered."""

    code: int
    out: str
    err: str


@pytest.fixture
def mtrkit_run(capsys):
    """Run ``mtrkit`` with these arguments; exits by argparse count as return codes."""

    def run(*arguments):
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as exit:
            code = exit.code
        return Ran(code, *capsys.readouterr())

    return run


@pytest.fixture
def photos(tmp_path):
    """A folder per class with two images each."""
    images, labels, classes = bundled_images()
    for index in [*range(0, 1000, 100), *range(50, 1000, 100)]:
        folder = tmp_path / "photos" / classes[labels[index]]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(images[index]).save(folder / f"{index}.png")
    return tmp_path / "photos"
