"""What an adapter is: all that a patch must know about one family of models."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, TypeVar

from torch import Tensor, nn

from mtrkit.adapters.sizes import unwrapped
from mtrkit.errors import InputError, UnsupportedModelError
from mtrkit.registry import Registry
from mtrkit.scan import Signals
from mtrkit.scan.fastpath import tells_all
from mtrkit.schedule import ModelShape
from mtrkit.types import MixerCall

SpecialAt = Callable[[int], tuple[int, ...]]


class Adapter(ABC):
    """Knowledge about one model family, which it knows by form and never by importing the family's package.

    A family fits if its blocks are called in turn as ``hidden, residual = block(hidden, residual, ...)``, or as
    ``x = block(x, ...)``, if nothing happens to the tokens between two blocks, and if what follows the last block
    reads the full sequence. An adapter has no state: one instance serves every model.

    A new family needs ``name``, ``summary``, ``marks`` and the six abstract methods. Everything else has a default,
    to be overridden if the family differs.
    """

    name: str  # by which users and messages call the family
    summary: str  # which models, as `mtrkit list` prints it
    marks: tuple[str, ...] = ()  # attributes of a model that tell its family; the nearest family shares most of them
    single_stream = False  # blocks are called as ``x = block(x)``, not with a residual beside
    signals = frozenset({"delta", "delta_mean", "ssm_B", "ssm_C", "y"})  # a method may read these of its blocks
    directions = 2  # in which a mixer scans, if it does
    keeps_time = False  # its mixers mind ``call.runs``: tokens that last several positions
    gates_scans = False  # its mixers mind ``call.gating``: scans that run for some samples only
    any_length = False  # inputs come in every length, the shortest ones too
    call_argument: str | None = "inference_params"  # argument of a block that it hands to its mixer as it is
    own_code_reads: tuple[str, ...] = ()  # layers of a mixer whose weights the family's code reads, uncalled
    package: str | None = None  # whose classes alone have the blocks and mixers that this adapter runs in their place
    reads_itself = False  # its mixers take a MixerCall as they are
    attention_blocks = False  # blocks are attention, then an MLP: :meth:`run_attention` and :meth:`run_mlp`
    splits = False  # :meth:`split_block` takes the blocks of a single-stream family apart
    restores_itself = False  # what follows the last block takes the reduced stream, and restores the sequence
    entries: tuple[str, ...] = ()  # methods through which the model is called, if calls can be wrong

    @abstractmethod
    def blocks(self, model: nn.Module) -> list[nn.Module]:
        """The blocks in the order in which they run."""

    @abstractmethod
    def mixer(self, block: nn.Module) -> nn.Module:
        """The Mamba mixer inside a block; its output must be the block's first output, untouched."""

    @abstractmethod
    def run_mixer(self, mixer: nn.Module, hidden: Tensor, call: MixerCall) -> tuple[Tensor, Signals]:
        """Run the mixer on normalised tokens (B, L, D) and return its output with the signals in ``call.reads``.

        A scan minds ``call.gaps``, ``call.runs`` and ``call.gating``, attention ``call.size``; see
        :class:`~mtrkit.types.MixerCall`.
        """

    @abstractmethod
    def special_at(self, model: nn.Module) -> SpecialAt:
        """A picklable rule: number of tokens L → positions of the class, distillation, register tokens."""

    @abstractmethod
    def shape(self, model: nn.Module, input_size: tuple[int, ...]) -> ModelShape:
        """Sizes that decide the cost for inputs of ``input_size``, (C, H, W) or (C, T, H, W)."""

    @abstractmethod
    def input_size(self, model: nn.Module) -> tuple[int, ...]:
        """The input size that the model was built for."""

    def mismatch(self, model: nn.Module) -> str | None:
        """``None`` if the model is of this family, otherwise what does not fit, such as "has no `layers`".

        Override it if more than the model's own attributes tells the family, such as those of its blocks.
        """
        if not self.marks:
            raise NotImplementedError(f"{type(self).__name__} has neither `marks` nor a `mismatch` of its own")
        missing = missing_name(model, self.marks)
        return f"has no `{missing}`" if missing else None

    def refusal(self, model: nn.Module) -> str | None:
        """Why a model of this family cannot be reduced correctly; ``None`` if it can."""
        del model
        return None

    def mismatch_of_size(self, model: nn.Module, input_size: tuple[int, ...]) -> str | None:
        """What is wrong with an input size, as what the model takes and what to give; ``None`` if nothing is."""
        expected = self.input_size(model)
        if len(input_size) == len(expected) and input_size[0] == expected[0]:
            return None
        return f"takes {expected}: give channels first and no batch"

    def shape_within(self, outer: nn.Module, shape: ModelShape) -> ModelShape:
        """The sizes of ``outer``, which is a model of this family of this shape or has it inside, under a head."""
        del outer
        return shape

    def check_layers(self, mixer: nn.Module, weights: bool = True) -> None:
        """Raise :class:`UnsupportedModelError` if a layer has become more than weights which the family's code reads.

        That code would ignore it in every other block, so no answer would be right. ``weights``: whether the class of
        the weights counts too, which may be sharded between passes.
        """
        for name in self.read_by_own_code(mixer):
            layer = getattr(mixer, name)
            if not tells_all(layer, weights) or (name.startswith("x_proj") and layer.bias is not None):
                raise UnsupportedModelError(
                    f"`{name}` of a {type(mixer).__name__} is a {type(layer).__name__} with more than its weights: "
                    "an adapter, hooks, quantised weights or the like. The code of such models reads the weights and "
                    "ignores the rest; merge it into the weights or take it off"
                )

    def has_layers(self, mixer: Any) -> bool:
        """Whether the mixer has what :meth:`check_layers` looks at; one that was put in its place may not."""
        return missing_name(mixer, self.own_code_reads) is None

    def read_by_own_code(self, mixer: nn.Module) -> tuple[str, ...]:
        """Names of the layers whose weights the mixer's own code reads now, uncalled."""
        del mixer
        return self.own_code_reads

    def runs_code_of(self, cls: type[nn.Module]) -> bool:
        """Whether a block or mixer of this class runs what this adapter runs in its place, as far as can be told."""
        if self.package is not None:
            return cls.forward.__module__.startswith(self.package)
        # Code that is copied between repositories has no home to tell it by; a subclass has what it overrides.
        return sum("forward" in vars(base) for base in cls.__mro__ if base is not nn.Module) == 1

    def run_block(self, block: nn.Module, tokens: Tensor, call: MixerCall) -> Tensor:
        """Run a whole block of a single-stream family, its mixer with ``call``, and return its tokens."""
        return self.run_mlp(block, self.run_attention(block, tokens, call))

    def run_attention(self, block: nn.Module, tokens: Tensor, call: MixerCall) -> Tensor:
        """Run the front half of a block, its mixer with ``call``, if the family has ``attention_blocks``."""
        raise NotImplementedError

    def run_mlp(self, block: nn.Module, tokens: Tensor) -> Tensor:
        """Run the other half, on the tokens that the front half has left or on fewer."""
        raise NotImplementedError

    def split_block(self, block: nn.Module, tokens: Tensor, call: MixerCall) -> tuple[Tensor, Tensor] | None:
        """Mixer output and residual of a block whose tokens are the sum of these, if the family ``splits``."""
        del block, tokens, call
        return None

    def refusal_of_call(self, entry: str, *args: Any, **kwargs: Any) -> str | None:
        """Why a reduced model cannot serve a call of ``entry`` with these arguments after the input."""
        del entry, args, kwargs
        return None

    def run_call(self, model: nn.Module, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Answer a call that is not refused; ``call`` is the entry itself, over the reduced blocks."""
        del model
        return call(*args, **kwargs)


ADAPTERS: Registry[Adapter] = Registry("adapter", plugins=True)

A = TypeVar("A", bound=type[Adapter])


def register_adapter(cls: A) -> A:
    """Decorate an :class:`Adapter` subclass to make its family known under ``cls.name``."""
    ADAPTERS.add(cls.name, cls())
    return cls


def count_patches(patch: Any, input_size: tuple[int, ...]) -> int:
    """How many patches a convolution ``patch`` cuts an input of (C, H, W) or (C, T, H, W) into."""
    patches, patch = 1, unwrapped(patch)
    for size, kernel, stride in zip(input_size[1:], patch.kernel_size, patch.stride, strict=True):
        if size < kernel:
            raise InputError(f"input_size={input_size} is smaller than one patch of {patch.kernel_size} pixels")
        patches *= (size - kernel) // stride + 1
    return patches


def missing_name(module: Any, names: tuple[str, ...]) -> str | None:
    """The first of ``names`` that the module has no attribute of."""
    for name in names:  # a loop: torch 2.6's compiler does not follow `next` with a default
        if not hasattr(module, name):
            return name
    return None
