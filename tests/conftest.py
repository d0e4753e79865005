"""Every test starts from a seed, on two threads, with fresh memory full of NaN; and what many want."""

import os
from collections.abc import Callable

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read when torch loads; spinning starves a shared machine

import pytest
import torch

from mtrkit.schedule import MambaShape


@pytest.fixture(autouse=True)
def _repeatable():
    os.environ.pop("COLUMNS", None)  # to which pytest's workers set what commands would fold to
    torch.manual_seed(0)
    torch.set_num_threads(2)
    torch.use_deterministic_algorithms(True)  # also fills torch.empty with NaN
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def photos(tmp_path):
    """A folder per class with two images each."""
    from PIL import Image

    from mtrkit.data import bundled_images

    images, labels, classes = bundled_images()
    for index in [*range(0, 1000, 100), *range(50, 1000, 100)]:
        folder = tmp_path / "photos" / classes[labels[index]]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(images[index]).save(folder / f"{index}.png")
    return tmp_path / "photos"


def _vim(dim: int, depth: int = 24, tokens: int = 197, classes: int = 1000, special: int = 1) -> MambaShape:
    return MambaShape(
        depth=depth,
        dim=dim,
        inner=2 * dim,
        state=16,
        dt_rank=-(-dim // 16),
        conv=4,
        tokens=tokens,
        special=special,
        patches=tokens - special,
        patch_macs=dim * 3 * 16 * 16,
        head_macs=dim * classes,
    )


@pytest.fixture(scope="session")
def vim() -> Callable[..., MambaShape]:
    """Vim or VideoMamba of a width: 192, 384, 768 are Ti, S, B."""
    return _vim
