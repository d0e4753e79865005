"""Marks and checks for torch's tracers, without importing any of them."""

from collections.abc import Callable
from typing import Any, TypeVar

from mtrkit.errors import InputError

F = TypeVar("F", bound=Callable[..., object])


def constant_result(function: F) -> F:
    """Make a compiler call ``function`` while it traces and take the answer as it is.

    The same mark as ``torch.compiler.assume_constant_result`` sets; that decorator would import the whole
    compiler, more than a second, whether anybody compiles or not.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


def refuse_proxy(tokens: Any) -> None:
    """Raise :class:`InputError` under ``torch.fx.symbolic_trace``, which knows no shapes."""
    if type(tokens).__module__.startswith("torch.fx."):
        raise InputError(
            "torch.fx.symbolic_trace gives no shapes, which Vision Mamba models and reductions need; use "
            "torch.export.export or torch.compile"
        )
