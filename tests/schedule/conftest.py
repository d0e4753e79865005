"""The shapes that the papers give figures for."""

from collections.abc import Callable

import pytest

from mtrkit.schedule import MambaShape


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
