"""What stands in the place of a mixer's ``forward`` in another package's model, so that its signals can be read."""

from typing import Any

import torch
from torch import Tensor, nn

from mtrkit.adapters.base import Adapter
from mtrkit.errors import UnsupportedModelError
from mtrkit.patch.journal import Journal
from mtrkit.patch.patched import Patched, Replication
from mtrkit.types import MixerCall


class ReadableMixer(Patched):
    """``forward`` of another package's mixer: the same kernels, unfused, for calls of a reduced block."""

    def __init__(self, mixer: nn.Module, adapter: Adapter) -> None:
        super().__init__(mixer)
        self.adapter = adapter

    def __call__(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Run the mixer and leave its signals in the call; without such a call, exactly as it was."""
        call = kwargs.get(self.adapter.call_argument or "", args[0] if args else None)
        if not isinstance(call, MixerCall):
            return self.hidden(hidden_states, *args, **kwargs)
        self.adapter.check_layers(self.module, weights=not torch.compiler.is_compiling())  # which sees stand-ins
        out, call.signals = self.adapter.run_mixer(self.module, hidden_states, call)
        return out


def is_readable(mixer: nn.Module) -> bool:
    """Whether the mixer, or one inside of a wrapper, leaves its signals in a call."""
    return any(
        isinstance(value, ReadableMixer) and value.module is module
        for module in mixer.modules()
        for value in (module.__dict__.get("forward"), module.__dict__.get("_old_forward"))
    )


def check_own_code(module: nn.Module, adapter: Adapter, replaced: Any) -> None:
    """Raise :class:`UnsupportedModelError` if a module does not run the code that the adapter runs in its place."""
    ours = replaced is None or isinstance(replaced, Patched) or "_hf_hook" in vars(module)
    if ours and adapter.runs_code_of(type(module)):
        return
    raise UnsupportedModelError(
        f"a {type(module).__name__} has a `forward` of its own, which this method would leave out, as mtrkit runs the "
        f"original code of {adapter.name!r} in its place; use a hook instead, or a method that reads features only"
    )


def make_readable(mixer: nn.Module, adapter: Adapter, journal: Journal) -> None:
    """Patch a mixer, inside of what accelerate has put around its ``forward``."""
    own, readable = vars(mixer), ReadableMixer(mixer, adapter)
    hooked = "_hf_hook" in own and "_old_forward" in own
    if not hooked and readable.previous is not None and not isinstance(readable.previous, Patched):
        raise UnsupportedModelError(
            f"the forward of a {type(mixer).__name__} was replaced by {readable.previous!r}, which would hide what the "
            "method reads; take it off, call mtrkit.apply_reduction, and put it on again"
        )
    journal.set(mixer, "_old_forward" if hooked else "forward", readable)
    journal.set(mixer, Replication.name, Replication(mixer))
