"""Model names and the functions that build them."""

from collections.abc import Callable
from fnmatch import fnmatchcase
from typing import TypeVar

from torch import nn

from mtrkit.registry import Registry

Builder = Callable[..., nn.Module]
F = TypeVar("F", bound=Builder)

MODELS: Registry[Builder] = Registry("model", plugins=True)


def register_model(builder: F) -> F:
    """Decorate a function that builds a model to make it known under the function's name."""
    MODELS.add(builder.__name__, builder)
    return builder


def list_models(pattern: str = "*") -> list[str]:
    """Names for :func:`mtrkit.create_model`, in natural order.

    Args:
        pattern: Shell-style wildcards. Default: all names.

    >>> list_models("vim_tiny*")
    ['vim_tiny_patch16_224', 'vim_tiny_patch16_stride8_224']
    """
    return [name for name in MODELS.names() if fnmatchcase(name, pattern)]
