"""The plain stacks of two-direction Mamba blocks: Vim, VideoMamba and Mamba-Reg share their layout.

They differ in where the special tokens stand and in whether the sum of the directions is halved.
"""

from abc import abstractmethod
from typing import Any

from torch import Tensor, nn

from mtrkit.adapters.base import Adapter, count_patches, missing_name
from mtrkit.adapters.sizes import macs, size_of
from mtrkit.ops import spread_places
from mtrkit.scan import Parts, Signals, mixer_forward, mixer_parts
from mtrkit.schedule import MambaShape, ModelShape
from mtrkit.types import MixerCall

STACK = ("patch_embed", "layers", "norm_f", "head")
MIXER = ("in_proj", "conv1d", "x_proj", "dt_proj", "A_log", "D", "out_proj")
_BACKWARD = ("conv1d_b", "x_proj_b", "dt_proj_b", "A_b_log", "D_b")
_LAYERS = ("in_proj", "conv1d", "x_proj", "dt_proj", "out_proj")


class IsotropicMamba(Adapter):
    """What the plain stacks of two-direction Mamba blocks have in common."""

    marks: tuple[str, ...] = STACK
    keeps_time = True
    gates_scans = True
    own_code_reads = (*_LAYERS, *(f"{name}_b" for name in _LAYERS[1:-1]))

    @abstractmethod
    def averages_directions(self, mixer: Any) -> bool:
        """Whether the mixer halves the sum of its directions."""

    @abstractmethod
    def num_class_tokens(self, model: Any) -> int:
        """Number of tokens in the sequence that are not a patch."""

    def mismatch(self, model: Any) -> str | None:
        return super().mismatch(model) or mismatch_of_layers(model, ("mixer", "norm", "drop_path"))

    def refusal(self, model: Any) -> str | None:
        for index, block in enumerate(model.layers):
            missing = missing_name(block.mixer, _BACKWARD)
            if missing:
                return f"`layers.{index}.mixer` has no `{missing}`, which its backward direction needs"
        return None

    def blocks(self, model: Any) -> list[nn.Module]:
        return list(model.layers)

    def mixer(self, block: Any) -> nn.Module:
        return block.mixer

    def run_mixer(self, mixer: Any, hidden: Tensor, call: MixerCall) -> tuple[Tensor, Signals]:
        parts = self.parts(mixer)
        out, signals = mixer_forward(hidden, parts, call.reads, call.gaps, call.runs, call.gating)
        gamma = getattr(mixer, "gamma", None)
        return (out if gamma is None else out * gamma), signals

    def parts(self, mixer: Any) -> Parts:
        """What a mixer computes with; see :func:`mtrkit.scan.mixer_parts`."""
        return mixer_parts(mixer, halve=self.averages_directions(mixer))

    def shape(self, model: Any, input_size: tuple[int, ...]) -> ModelShape:
        patch = model.patch_embed.proj
        patches = count_patches(patch, input_size)
        tokens = patches + self.num_class_tokens(model)
        return MambaShape(
            **stack_sizes(model),
            directions=2,
            tokens=tokens,
            special=len(self.special_at(model)(tokens)),
            patches=patches,
            patch_macs=macs(patch),
            head_macs=self.head_macs(model),
            frames=input_size[1] // size_of(patch, "kernel_size")[0] if len(input_size) == 4 else 1,
        )

    def head_macs(self, model: Any) -> int:
        """Multiply-adds of a linear head; none without one."""
        return macs(model.head)

    def input_size(self, model: Any) -> tuple[int, ...]:
        return (size_of(model.patch_embed.proj, "in_channels"), *model.patch_embed.img_size)


def mismatch_of_layers(model: Any, names: tuple[str, ...]) -> str | None:
    """What is missing of a list ``layers`` of blocks that have ``names``, and mixers of one direction at least."""
    if not isinstance(model.layers, nn.ModuleList) or not len(model.layers):
        return "`layers` is not a list of blocks"
    for index, block in enumerate(model.layers):
        missing = missing_name(block, names) or missing_name(block.mixer, MIXER)
        if missing:
            return f"`layers.{index}` has no `{missing}`"
    return None


def nowhere(num_tokens: int) -> tuple[int, ...]:
    """No special token."""
    del num_tokens
    return ()


def front(num_tokens: int) -> tuple[int, ...]:
    """A class token before the patches."""
    del num_tokens
    return (0,)


def last(num_tokens: int) -> tuple[int, ...]:
    """The last token, where a model without a class token reads its answer."""
    return (num_tokens - 1,)


def middle(num_tokens: int) -> tuple[int, ...]:
    """A class token after half of the M = L − 1 patches, rounded down."""
    return ((num_tokens - 1) // 2,)


def spread(count: int, num_tokens: int) -> tuple[int, ...]:
    """Registers between groups of patches, n among L tokens."""
    return spread_places(count, num_tokens - count)


def both_ends(num_tokens: int) -> tuple[int, ...]:
    """One class token before and one after the patches."""
    return (0, num_tokens - 1)


def front_and_middle(num_tokens: int) -> tuple[int, ...]:
    """A class token before the patches, and one after half of both, L − 1 tokens, rounded down."""
    return (0, (num_tokens - 1) // 2)


def two_in_front(num_tokens: int) -> tuple[int, ...]:
    """Two class tokens before the patches."""
    del num_tokens
    return (0, 1)


def stack_sizes(model: Any) -> dict[str, Any]:
    """The sizes of a stack of Mamba blocks, read off the weights of its first mixer."""
    return {"depth": len(model.layers), **mixer_sizes(model.layers[0].mixer)}


def mixer_sizes(mixer: Any) -> dict[str, Any]:
    """The sizes of one mixer."""
    return {
        "dim": size_of(mixer.in_proj, "in_features"),
        "inner": size_of(mixer.out_proj, "in_features"),
        "state": mixer.A_log.shape[1],
        "dt_rank": size_of(mixer.dt_proj, "in_features"),
        "conv": size_of(mixer.conv1d, "kernel_size")[0],
    }
