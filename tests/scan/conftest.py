"""The ways in which the native backend can run on a CPU, as one fixture."""

import pytest

from mtrkit.native import library as lib

PATHS = (*lib.LEVELS, "torch")


def take_path(name, monkeypatch):
    """Run the native backend on one instruction set, on the best one here, or as torch operations."""
    if name == "torch":
        monkeypatch.setattr(lib.library(), "missing", "hidden by a test")
        return
    if lib.library().missing:
        pytest.skip(f"no compiled library: {lib.library().missing}")
    if name == "best":
        return
    if lib.LEVELS.index(name) > lib.library().best_level:
        pytest.skip(f"this CPU has no {name}")
    monkeypatch.setattr(lib, "_level", lib.LEVELS.index(name))


@pytest.fixture(params=PATHS)
def path(request, monkeypatch):
    take_path(request.param, monkeypatch)
    return request.param


@pytest.fixture
def compiled(monkeypatch):
    """The compiled kernel at its best level; skips where it was not built."""
    take_path("best", monkeypatch)
