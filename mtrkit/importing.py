"""Do something when an optional module is imported, now or later, without importing it."""

import importlib.util
import sys
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

Act = Callable[[Any], None]


def when_imported(name: str, act: Act) -> None:
    """Call ``act(module)`` as soon as the module ``name`` has been imported: at once if it has been already."""
    module = sys.modules.get(name)
    if module is not None:
        act(module)
        return
    _watcher.acts[name] = act
    if _watcher not in sys.meta_path:
        sys.meta_path.insert(0, _watcher)


class _Watcher(MetaPathFinder):
    """Lets the other finders find a module, and has its loader act once the module is there."""

    def __init__(self) -> None:
        self.acts: dict[str, Act] = {}

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        act = self.acts.pop(fullname, None)
        if act is None:
            return None
        spec = importlib.util.find_spec(fullname)
        if spec is None or spec.loader is None:
            self.acts[fullname] = act
            return None
        _act_behind(spec.loader, fullname, act)
        return spec


def _act_behind(loader: Any, name: str, act: Act) -> None:
    run = loader.exec_module

    def exec_module(module: ModuleType) -> None:
        run(module)
        if module.__name__ == name:  # one loader may load several modules
            act(module)

    loader.exec_module = exec_module


_watcher = _Watcher()
