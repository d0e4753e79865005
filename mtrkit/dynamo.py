"""Tell torch.compile that a function's answer is a constant, without importing the compiler."""

from collections.abc import Callable
from typing import TypeVar

F = TypeVar("F", bound=Callable[..., object])


def constant_result(function: F) -> F:
    """Make a compiler call ``function`` while it traces and take the answer as it is.

    The same mark as ``torch.compiler.assume_constant_result`` sets; that decorator would import the whole
    compiler, more than a second, whether anybody compiles or not.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function
