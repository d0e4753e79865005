"""``mtrkit.as_mamba_ssm``: put the stand-ins where the real packages do not import, and take them away again."""

import importlib
import importlib.util
import logging
import os
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from types import ModuleType, TracebackType

import torch

from mtrkit.scan import scan_backends
from mtrkit.standin.finder import Finder, StandInModule, is_stand_in
from mtrkit.standin.names import EXTENSIONS, MODULES, OUTSIDE, PACKAGES, TRITON

_logger = logging.getLogger(__name__)
_lock = threading.RLock()
_finder = Finder()
_holders: Counter[str] = Counter()  # how many handles want each name stood in for
_displaced: dict[str, dict[str, ModuleType]] = {}  # by name, the real modules whose places are taken


class StandIns:
    """What :func:`as_mamba_ssm` returns. Leaving its ``with`` block, or ``remove()``, undoes the call.

    Attributes:
        reasons: Per name that mtrkit stands in for, why the real module is not used.
    """

    def __init__(self) -> None:
        self.reasons: dict[str, str] = {}
        self._probed: set[str] = set()
        self._set_aside: dict[str, ModuleType] = {}
        self._active = True

    def remove(self) -> None:
        """Take the stand-ins away, unless another call still wants them; a second time it does nothing."""
        with _lock:
            if not self._active:
                return
            self._active = False
            for name in self._probed:  # real packages that import only over our extensions
                _forget(name)
            for name in self.reasons:
                _release(name)
            _restore(self._set_aside)

    def __enter__(self) -> "StandIns":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()

    def __repr__(self) -> str:
        state = ", ".join(self.reasons) if self._active else "removed"
        return f"<mtrkit stands in for: {state or 'nothing, as all of it imports'}>"


def as_mamba_ssm(force: bool = False) -> StandIns:
    """Let code that imports ``mamba_ssm`` or ``causal_conv1d`` run on mtrkit's scan, on any device, uncompiled.

    A plain call stays in force until ``remove()`` of what it returns; ``with mtrkit.as_mamba_ssm():`` until the end of
    the block. What imports is left alone: the compiled extensions are tried first, then the packages over them, so that
    the Python code of a fork that is installed runs as it is. Where Triton cannot run, what needs it is replaced too,
    and ``mamba_ssm.utils`` if a fork does not import by it. A name that mtrkit does not have raises an error that says
    so. Code that was imported meanwhile keeps what it has.

    Args:
        force: Whether to stand in for all of it, even where it imports. Modules that code has imported before keep
            what they have.

    Returns:
        A handle with ``remove()`` and ``reasons``, which is also a context manager.

    Raises:
        StandInError: (from code inside) a module of mamba_ssm or causal_conv1d that mtrkit does not have.
        StandInNameError: (from code inside) the same for a name.
    """
    with _lock:
        known = set(sys.modules)
        scan_backends()  # looks for the real kernels now, and never again: a stand-in must not be taken for them
        _drop_remains(known)
        handle = StandIns()
        try:
            for name, reason in _wanted(force, handle):
                _hold(name)
                handle.reasons[name] = reason
            _import_all(handle)
        except BaseException:
            handle.remove()
            raise
        return handle


def _wanted(force: bool, handle: StandIns) -> Iterator[tuple[str, str]]:
    """Names to stand in for, each with the reason; the caller takes each before the next is looked at."""
    if force:
        yield from ((name, "force=True") for name in (*EXTENSIONS, *PACKAGES))
        return
    for name in EXTENSIONS:
        if reason := _why_not(name, handle):
            yield name, reason
    reason = _why_no_triton()
    if reason and _is_installed("mamba_ssm"):
        yield from ((name, reason) for name in TRITON)
    for name in PACKAGES:
        reason = _why_not(name, handle)
        if reason and name == "mamba_ssm" and _is_installed(name):
            yield from ((outside, reason) for outside in OUTSIDE)
            reason = _why_not(name, handle)
        if reason:
            _warn(name, reason)
            yield name, reason


def _warn(name: str, reason: str) -> None:
    """Say that what is there is not used."""
    if _is_installed(name):
        _logger.warning("mtrkit stands in for %s, which is installed: %s", name, reason)


def _why_not(name: str, handle: StandIns) -> str:
    """Why the real module cannot be imported; empty if it can be."""
    if is_stand_in(name):
        return "another call stands in for it"
    if not _is_installed(name):
        return "it is not installed"
    if name in sys.modules and not _lacks_extension(name):
        return ""
    handle._set_aside |= _take(name)
    known = set(sys.modules)
    try:
        importlib.import_module(name)
    except Exception as error:  # a broken installation raises anything
        _drop_remains(known)
        return f"it cannot be imported ({type(error).__name__}: {error})"
    if handle.reasons:
        handle._probed.add(name)
    return ""


def _is_installed(name: str) -> bool:
    """Whether there is a real module of this name, which may still be broken."""
    if name not in sys.modules:
        spec = importlib.util.find_spec(name)
        return spec is not None and not _is_folder(spec)
    module = sys.modules[name]
    return module is not None and not is_stand_in(name) and not _is_folder(getattr(module, "__spec__", None))


def _lacks_extension(name: str) -> bool:
    """Whether the real mamba_ssm was imported without the extension that it scans by, as its plain wheel is."""
    module = sys.modules.get(f"{name}.ops.selective_scan_interface")
    return not is_stand_in(name) and getattr(module, "selective_scan_cuda", module) is None and module is not None


def _is_folder(spec: ModuleSpec | None) -> bool:
    """Whether all that was found is a folder of the name, without a package in it: a clone that lies about."""
    return spec is not None and spec.origin is None and spec.submodule_search_locations is not None


def _why_no_triton() -> str:
    """Why Triton cannot run; empty if it can, on a GPU or in Triton's interpreter."""
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    if torch.cuda.is_available() or torch.xpu.is_available() or os.environ.get("TRITON_INTERPRET") == "1":
        return ""
    return "Triton has no GPU here"


def _hold(name: str) -> None:
    _holders[name] += 1
    if _holders[name] > 1:
        return
    _displaced[name] = {module: real for module, real in _take(name).items() if not isinstance(real, StandInModule)}
    if not _finder.names:
        sys.meta_path.insert(0, _finder)
    _finder.names.add(name)


def _release(name: str) -> None:
    _holders[name] -= 1
    if _holders[name]:
        return
    del _holders[name]
    _finder.names.discard(name)
    if not _finder.names:
        sys.meta_path.remove(_finder)
    _forget(name)
    _restore(_displaced.pop(name))


def _import_all(handle: StandIns) -> None:
    """Import the stand-ins at once, as the real packages import theirs; parts of a real package come when asked for."""
    for name in MODULES:
        if name.partition(".")[0] in handle.reasons:
            importlib.import_module(name)


def _drop_remains(known: set[str]) -> None:
    """Forget what failed imports of the packages have left."""
    for name in (*EXTENSIONS, *PACKAGES):
        if name not in sys.modules or not _is_installed(name) or _lacks_extension(name):
            for module in _modules_below(name):
                if module not in known:
                    del sys.modules[module]


def _forget(name: str) -> None:
    """Take a module and those below it out of the imported ones, and out of their parents."""
    for module in _modules_below(name):
        gone = sys.modules.pop(module)
        parent, _, child = module.rpartition(".")
        if parent in sys.modules and vars(sys.modules[parent]).get(child) is gone:
            delattr(sys.modules[parent], child)


def _take(name: str) -> dict[str, ModuleType]:
    """Take a module and those below it out of the imported ones."""
    return {module: sys.modules.pop(module) for module in _modules_below(name)}


def _restore(modules: dict[str, ModuleType]) -> None:
    """Put what was taken back in its places, in the parents too."""
    sys.modules.update(modules)
    for module, real in modules.items():
        parent, _, child = module.rpartition(".")
        if parent in sys.modules and real is not None:  # None stands for a module that must not be imported
            setattr(sys.modules[parent], child, real)


def _modules_below(name: str) -> list[str]:
    return [module for module in list(sys.modules) if module == name or module.startswith(f"{name}.")]
