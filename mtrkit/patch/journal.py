"""Record every change to a module with its undo, and take all of them back in reverse."""

from typing import Any

from torch import nn


class Journal:
    """Attributes set on module instances, with what was there before.

    Only entries of a module's own ``__dict__`` are touched, never parameters, buffers or submodules, so
    that names, order and the state dict stay as they are.
    """

    def __init__(self) -> None:
        self._entries: list[tuple[nn.Module, str, bool, Any]] = []

    def set(self, module: nn.Module, name: str, value: Any) -> None:
        """Give ``module`` an attribute of its own that hides its class's."""
        own = vars(module)
        self._entries.append((module, name, name in own, own.get(name)))
        own[name] = value

    def undo(self) -> None:
        """Put everything back, the latest change first; a second call does nothing."""
        while self._entries:
            module, name, was_there, previous = self._entries.pop()
            if was_there:
                vars(module)[name] = previous
            else:
                vars(module).pop(name, None)
