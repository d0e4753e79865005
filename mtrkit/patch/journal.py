"""Record every change to a module with its undo, and take all of them back in reverse."""

from typing import Any


class Journal:
    """Attributes set on instances of modules, or of what patches them, with what was there before.

    Only entries of a module's own ``__dict__`` are touched, never parameters, buffers or submodules, so
    that names, order and the state dict stay as they are.
    """

    def __init__(self) -> None:
        self._entries: list[tuple[object, str, Any, bool, Any]] = []

    def set(self, module: object, name: str, value: Any) -> None:
        """Give ``module`` an attribute of its own that hides its class's."""
        own = vars(module)
        self._entries.append((module, name, value, name in own, own.get(name)))
        own[name] = value

    def undo(self) -> None:
        """Put everything back, the latest change first; a second call does nothing.

        What others have put in the place of a change since then is theirs, and stays.
        """
        for module, name, value, was_there, previous in reversed(self._entries):
            own = vars(module)
            if own.get(name) is not value:
                continue
            if was_there:
                own[name] = previous
            else:
                del own[name]

    def redo(self) -> None:
        """Make every change again, after :meth:`undo` or in the middle of it."""
        for module, name, value, *_ in self._entries:
            vars(module)[name] = value
