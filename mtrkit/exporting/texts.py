"""Language models whose own code walks through a text token by token: mtrkit's scan in its place, for a capture."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from mtrkit.adapters import Adapter, find_host
from mtrkit.errors import ExportError, UnsupportedModelError
from mtrkit.patch import Journal
from mtrkit.patch.patched import Patched
from mtrkit.types import MixerCall

MOST_TOKENS = 64  # of padded texts, whose steps are all written into the graph


@contextmanager
def scanned_by_mtrkit(model: nn.Module) -> Iterator[None]:
    """If it is a language model, run its mixers by mtrkit's scan; afterwards they are as before."""
    journal = Journal()
    try:
        for mixer, adapter in _mixers(model):
            patch = vars(mixer).get("forward")
            if isinstance(patch, Patched):  # of a reduced block, whose own calls come to the scan by themselves
                journal.set(patch, "previous", ScannedMixer(mixer, adapter, patch.previous))
            else:
                journal.set(mixer, "forward", ScannedMixer(mixer, adapter, patch))
        yield
    finally:
        journal.undo()


class ScannedMixer(Patched):
    """``forward`` of a language model's mixer. It fills no cache, as a file returns none."""

    def __init__(self, mixer: nn.Module, adapter: Adapter, previous: Callable[..., Any] | None) -> None:
        super().__init__(mixer)
        self.adapter, self.previous = adapter, previous

    def __call__(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Run the mixer; with a mask of padding as it was."""
        if any(isinstance(value, Tensor) for value in (*args, *kwargs.values())):
            _check_length(self.module, hidden_states.shape[1])
            return self.hidden(hidden_states, *args, **kwargs)
        return self.adapter.run_mixer(self.module, hidden_states, MixerCall())[0]


def _mixers(model: nn.Module) -> list[tuple[nn.Module, Adapter]]:
    """Those of a language model that mtrkit knows, which the model is or has inside."""
    try:
        host, adapter = find_host(model)
    except UnsupportedModelError:
        return []
    return [(adapter.mixer(block), adapter) for block in adapter.blocks(host)] if adapter.any_length else []


def _check_length(mixer: nn.Module, length: int) -> None:
    if length > MOST_TOKENS:
        raise ExportError(
            f"a {type(mixer).__name__} was given a mask beside texts of {length} tokens, of which its own code then "
            f"writes every one into the graph. Export without a mask, or give at most {MOST_TOKENS} tokens"
        )
