"""What stands in the place of a module's method while the module is patched."""

import copy
from collections.abc import Callable
from typing import Any, TypeVar

from torch import nn

P = TypeVar("P", bound="Patched")


class Patched:
    """Hides one method of one module, and can call what it hides.

    Attributes:
        module: The patched module.
        name: Of the method; by default that of the class.
        previous: What the module had of its own under that name before, such as the wrapper of another package.
    """

    name = "forward"

    def __init__(self, module: nn.Module, name: str | None = None) -> None:
        self.module, self.name = module, name or self.name
        self.previous: Callable[..., Any] | None = vars(module).get(self.name)

    def hidden(self, *args: Any, **kwargs: Any) -> Any:
        """Call the method that is hidden: the instance's own if it had one, otherwise its class's."""
        if self.previous is not None:
            return self.previous(*args, **kwargs)
        return getattr(type(self.module), self.name)(self.module, *args, **kwargs)

    def on(self: P, module: nn.Module) -> P:
        """The same for another module."""
        twin = copy.copy(self)
        twin.module = module
        return twin


class Replication(Patched):
    """``_replicate_for_data_parallel``: makes what is patched on a replica work on the replica.

    ``DataParallel`` copies a module's attributes, and a patched method among them still calls the original.
    """

    name = "_replicate_for_data_parallel"

    def __call__(self) -> nn.Module:
        """Return the replica."""
        replica: nn.Module = self.hidden()
        own = vars(replica)
        own |= {name: value.on(replica) for name, value in own.items() if isinstance(value, Patched)}
        return replica


class Companion(Patched):
    """``_apply``, through which ``to``, ``half`` and the like go: moves a module beside the model along with it.

    It is not a submodule, as the names of the model's parameters stay as they are.
    """

    name = "_apply"

    def __init__(self, module: nn.Module, companion: nn.Module) -> None:
        super().__init__(module)
        self.companion = companion

    def __call__(self, fn: Callable[..., Any], *args: Any, **kwargs: Any) -> nn.Module:
        """Move both, and return the model."""
        self.companion._apply(fn)
        moved: nn.Module = self.hidden(fn, *args, **kwargs)
        return moved
