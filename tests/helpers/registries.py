"""What a test registers is gone after it: the order of the tests must not change what they find."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from mtrkit.adapters.base import ADAPTERS
from mtrkit.methods import METHODS
from mtrkit.models.registry import MODELS
from mtrkit.scan.dispatch import BACKENDS


@contextmanager
def as_before(ours: Callable[[str, str], bool]) -> Iterator[None]:
    """Put methods, families, models, scan backends and the path back, and forget modules.

    Args:
        ours: Whether a module that was imported meanwhile is forgotten, by its name and file: one that registers
            something would not do so when it is imported again.
    """
    registries, modules, path = (METHODS, ADAPTERS, MODELS, BACKENDS), set(sys.modules), [*sys.path]
    entries = [dict(registry._entries) for registry in registries]
    yield
    for registry, before in zip(registries, entries, strict=True):
        registry._entries.clear()
        registry._entries.update(before)
    for name in set(sys.modules) - modules:
        if ours(name, getattr(sys.modules[name], "__file__", None) or ""):
            del sys.modules[name]
    sys.path[:] = path
