"""Methods, adapters and models of other packages: by entry points, or from a module that the user names.

A package says in its ``pyproject.toml`` which module registers what it adds::

    [project.entry-points."mtrkit.plugins"]
    my_package = "my_package.for_mtrkit"

The module is imported when a name is looked up that mtrkit does not have, or when all names are asked for.
"""

import importlib
import importlib.util
import os
import sys
import threading
import warnings
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

from mtrkit.errors import MtrkitError, OptionError, PluginWarning

GROUP = "mtrkit.plugins"

_lock = threading.RLock()  # a plug-in that looks names up while it is imported finds those that are there
_loaded = False


def load_plugins() -> None:
    """Import the modules of all entry points, once per process.

    Warns:
        PluginWarning: One cannot be imported; the others are there all the same.
    """
    global _loaded
    with _lock:
        if _loaded:
            return
        _loaded = True
        for point in entry_points(group=GROUP):
            _load(point)


def _load(point: EntryPoint) -> None:
    try:
        point.load()
    except Exception as error:  # somebody else's module can fail in any way
        package = "" if point.dist is None else f" of {point.dist.name}"
        warnings.warn(
            PluginWarning(
                f"the plug-in {point.value}{package} cannot be imported and was left out "
                f"({type(error).__name__}: {error}); update or uninstall it"
            ),
            stacklevel=4,
        )


def import_plugin(given: str) -> None:
    """Import a module that registers what it adds.

    Args:
        given: Its name, which may be that of a module in the working directory; or the path of a ``.py`` file.

    Raises:
        OptionError: It is not there, or fails; the message says how.
    """
    try:
        if given.endswith(".py"):
            _import_file(Path(given))
        else:
            _import_name(given)
    except MtrkitError:
        raise
    except Exception as error:
        raise OptionError(f"{given} cannot be imported ({type(error).__name__}: {error})") from error


def _import_name(name: str) -> None:
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # last, so that nothing there hides an installed module
    importlib.import_module(name)


def _import_file(path: Path) -> None:
    if not path.is_file():
        raise OptionError(f"{path} does not exist; give a Python file, or the name of a module")
    name = f"mtrkit_plugin_{path.stem}"  # random.py must not become the module `random`
    there = sys.modules.get(name)
    if there is not None and there.__file__ == str(path.resolve()):
        return
    spec = importlib.util.spec_from_file_location(name, path.resolve())
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
