"""One small registry: methods, adapters and scan backends are all found by name through it."""

import difflib
import re
from collections.abc import Iterator
from typing import Generic, TypeVar

from mtrkit.errors import OptionError, UnknownNameError
from mtrkit.plugins import load_plugins

T = TypeVar("T")


class Registry(Generic[T]):
    """Names and what they stand for, in natural order (``vim_9`` before ``vim_10``).

    Args:
        kind: What the entries are called in messages, such as ``"method"``.
        plugins: Whether other packages add entries, which are imported before a name is said to be unknown.
    """

    def __init__(self, kind: str, plugins: bool = False) -> None:
        self.kind = kind
        self._plugins = plugins
        self._entries: dict[str, T] = {}

    def add(self, name: str, entry: T) -> None:
        """Register ``entry``. A name that is taken raises :class:`OptionError`."""
        if name in self._entries:
            raise OptionError(f"a {self.kind} named {name!r} is registered already; choose another name")
        self._entries[name] = entry

    def remove(self, name: str) -> None:
        """Forget ``name``, so that a test or a notebook can register it again."""
        self.get(name)
        del self._entries[name]

    def get(self, name: str) -> T:
        """Return the entry, or raise :class:`UnknownNameError` with the nearest known name."""
        if name not in self._entries:
            self._load_plugins()
        if name in self._entries:
            return self._entries[name]
        near = difflib.get_close_matches(str(name), self._entries, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise UnknownNameError(f"no {self.kind} named {name!r}; known: {', '.join(self.names())}.{hint}")

    def names(self) -> list[str]:
        """All names in natural order."""
        self._load_plugins()
        return sorted(self._entries, key=_natural)

    def __iter__(self) -> Iterator[T]:
        self._load_plugins()
        return iter([*self._entries.values()])

    def _load_plugins(self) -> None:
        if self._plugins:
            load_plugins()


def _natural(name: str) -> list[tuple[int, str]]:
    parts = re.split(r"(\d+)", name)
    return [(int(part), "") if part.isdigit() else (-1, part) for part in parts]
