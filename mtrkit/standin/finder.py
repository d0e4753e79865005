"""The import machinery of the stand-ins: a finder for the names it is given, and modules that say what they lack.

Every stand-in counts as a package. Python then looks for a missing name of ``from … import …`` as a submodule too, so
that the finder can say what is missing; otherwise its own error would not name mtrkit.
"""

import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from mtrkit.errors import StandInError, StandInNameError
from mtrkit.standin.names import MODULES


class StandInModule(ModuleType):
    """A module of the table in ``names.py``."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # Python asks for what a module may have, such as __wrapped__
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        raise StandInNameError(_lacks(f"{self.__name__}.{name}"))


class Finder(MetaPathFinder, Loader):
    """Finds stand-ins for the modules in ``names``, and for those below them; every other import passes by."""

    def __init__(self) -> None:
        self.names: set[str] = set()

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if not self._below(fullname):
            return None
        if fullname not in MODULES:
            raise StandInError(_lacks(fullname), name=fullname.partition(".")[0])
        return ModuleSpec(fullname, self, origin="mtrkit", is_package=True)

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return StandInModule(spec.name, "Stands in for the module of this name: see mtrkit.as_mamba_ssm.")

    def exec_module(self, module: ModuleType) -> None:
        vars(module).update(MODULES[module.__name__])

    def _below(self, fullname: str) -> bool:
        return any(fullname == name or fullname.startswith(f"{name}.") for name in self.names)


def is_stand_in(name: str) -> bool:
    """Whether the module of this name is imported, and one of ours."""
    return isinstance(sys.modules.get(name), StandInModule)


def _lacks(name: str) -> str:
    package = name.partition(".")[0]
    found = [f"{module}.{item}" for module, items in MODULES.items() for item in items if not item.startswith("_")]
    here = ", ".join(item for item in found if item.startswith(f"{package}."))
    return f"mtrkit stands in for {package} here (mtrkit.as_mamba_ssm) and does not have {name}. It has {here}"
