"""The ways in which scans can run, as fixtures: every registered backend, and the code paths of the native one."""

from typing import NamedTuple

import pytest
import torch

from mtrkit.native import library as lib
from mtrkit.scan.dispatch import BACKENDS

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


class Way(NamedTuple):
    """A backend by name, and a device that it takes."""

    backend: str
    device: str


def every_way():
    """One name per backend, and one per code path of the native one."""
    for backend in BACKENDS:
        yield from [f"native-{path}" for path in PATHS] if backend.name == "native" else [backend.name]


def take_way(name, dtype, monkeypatch):
    """Make a backend ready, or skip with its own reason."""
    backend, _, path = name.partition("-")
    if path:
        take_path(path, monkeypatch)
    entry = BACKENDS.get(backend)
    available, reason = entry.status()
    refused = {device: entry.refuses(device, dtype) for device in ("cpu", "cuda")}
    device = "cuda" if refused["cpu"] else "cpu"
    if not available or refused[device] or (device == "cuda" and not torch.cuda.is_available()):
        pytest.skip(refused[device] or reason if available else reason)
    return Way(backend, device)


@pytest.fixture(params=list(every_way()))
def way(request, monkeypatch):
    """Every registered backend, on every code path that it has, on a device that it takes."""
    return take_way(request.param, torch.float32, monkeypatch)
