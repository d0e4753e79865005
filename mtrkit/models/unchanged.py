"""What a module was when it was looked at, and whether it still is: faster than to look again."""

from itertools import chain
from operator import attrgetter, is_
from typing import Any

from torch import Tensor, nn
from torch.nn.modules import module as torch_module

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_GLOBAL_HOOKS = tuple(getattr(torch_module, f"_global{name}") for name in _HOOKS)
# Of a tensor, as functions that `map` calls without a detour.
_FACTS = (type, Tensor.data_ptr, Tensor.is_contiguous, Tensor.is_neg, attrgetter("dtype"), attrgetter("shape"))


class Unchanged:
    """A module and all inside of it: classes, attributes, parts, and where parameters and buffers lie.

    Values may change, and a tensor may be replaced by another one at the same address.

    Args:
        module: As it is, without hooks.
    """

    def __init__(self, module: nn.Module) -> None:
        self._modules = [*module.modules()]
        owns = [part.__dict__ for part in self._modules]
        self._hooks = [own[name] for own in owns for name in _HOOKS]
        self._tensors: list[dict[str, Tensor | None]] = [
            own[name] for own in owns for name in ("_parameters", "_buffers")
        ]
        self._dicts: list[dict[str, Any]] = [*owns, *[own["_modules"] for own in owns]]
        self._objects_before, self._memory_before = self._objects(), self._memory()

    def holds(self) -> bool:
        """Whether nothing has changed, and no hook is on the module, on a part of it, or on all modules."""
        if any(self._hooks) or any(_GLOBAL_HOOKS):
            return False
        objects = self._objects()
        same = len(objects) == len(self._objects_before) and all(map(is_, objects, self._objects_before))
        return same and self._memory() == self._memory_before

    def _objects(self) -> list[Any]:
        """Attributes and parts, classes and their code, and the names of parameters and buffers."""
        values = chain.from_iterable([own.values() for own in self._dicts])
        kinds: list[Any] = [*map(type, self._modules)]
        return [*values, *kinds, *[kind.forward for kind in kinds], *chain.from_iterable(self._tensors)]

    def _memory(self) -> list[Any]:
        """Where each parameter and buffer lies and how, which an assignment to ``.data`` changes."""
        tensors = [x for own in self._tensors for x in own.values() if x is not None]
        return [*chain.from_iterable([map(fact, tensors) for fact in _FACTS])]
