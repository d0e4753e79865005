"""The plain stacks of two-direction Mamba blocks: Vim, VideoMamba and Mamba-Reg share their layout.

They differ in where the special tokens stand and in whether the sum of the directions is halved.
"""

from typing import Any

from torch import Tensor, nn

from mtrkit.adapters.base import Adapter, count_patches, missing_name
from mtrkit.adapters.sizes import macs, unwrapped
from mtrkit.ops import spread_places
from mtrkit.scan import Signals, mixer_forward, mixer_parts
from mtrkit.schedule import MambaShape, ModelShape
from mtrkit.types import Gaps

MIXER = ("in_proj", "conv1d", "x_proj", "dt_proj", "A_log", "D", "out_proj")
_BACKWARD = ("conv1d_b", "x_proj_b", "dt_proj_b", "A_b_log", "D_b")


_LAYERS = ("in_proj", "conv1d", "x_proj", "dt_proj", "out_proj")


class IsotropicMamba(Adapter):
    """What the plain stacks of two-direction Mamba blocks have in common."""

    own_code_reads = (*_LAYERS, *(f"{name}_b" for name in _LAYERS[1:-1]))

    def mismatch(self, model: Any) -> str | None:
        """Look for the stack, the blocks and the mixers by the attributes that the code below reads."""
        missing = missing_name(model, ("patch_embed", "layers", "norm_f", "head"))
        if missing:
            return f"has no `{missing}`"
        layers: Any = model.layers
        if not isinstance(layers, nn.ModuleList) or not len(layers):
            return "`layers` is not a list of blocks"
        for index, block in enumerate(layers):
            missing = missing_name(block, ("mixer", "norm", "drop_path"))
            missing = missing or missing_name(block.mixer, (*MIXER, *_BACKWARD))
            if missing:
                return f"`layers.{index}` has no `{missing}`"
        return None

    def blocks(self, model: Any) -> list[nn.Module]:
        """The entries of ``layers``."""
        return list(model.layers)

    def mixer(self, block: Any) -> nn.Module:
        """The block's ``mixer``."""
        return block.mixer

    def halves(self, mixer: Any) -> bool:
        """Whether the mixer halves the sum of its directions."""
        raise NotImplementedError

    def run_mixer(
        self, mixer: Any, hidden: Tensor, reads: frozenset[str], gaps: Gaps | None = None
    ) -> tuple[Tensor, Signals]:
        """Both directions, unfused; the official slow path would drop the backward one."""
        out, signals = mixer_forward(hidden, mixer_parts(mixer, halve=self.halves(mixer)), reads, gaps)
        gamma = getattr(mixer, "gamma", None)
        return (out if gamma is None else out * gamma), signals

    def shape(self, model: Any, input_size: tuple[int, ...]) -> ModelShape:
        """Read the sizes off the weights."""
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
        )

    def head_macs(self, model: Any) -> int:
        """Multiply-adds of a linear head; none without one."""
        return macs(model.head)

    def num_class_tokens(self, model: Any) -> int:
        """Number of tokens in the sequence that are not patches."""
        raise NotImplementedError

    def input_size(self, model: Any) -> tuple[int, ...]:
        """Channels and the image size that the patch embedding was built for."""
        return (unwrapped(model.patch_embed.proj).in_channels, *model.patch_embed.img_size)


def drops_a_direction(model: Any) -> str | None:
    """Why a stack of the official repositories whose mixers leave their fast path cannot be reduced."""
    if all(getattr(block.mixer, "use_fast_path", True) for block in model.layers):
        return None
    return (
        "use_fast_path=False: the class then runs the forward direction alone, without saying so, and a reduced block "
        "would run both; build the model with use_fast_path=True (the default)"
    )


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


def stack_sizes(model: Any) -> dict[str, int]:
    """The sizes of a stack of Mamba blocks, read off the weights of its first mixer."""
    mixer = model.layers[0].mixer
    return {
        "depth": len(model.layers),
        "dim": unwrapped(mixer.in_proj).in_features,
        "inner": unwrapped(mixer.out_proj).in_features,
        "state": mixer.A_log.shape[1],
        "dt_rank": unwrapped(mixer.dt_proj).in_features,
        "conv": unwrapped(mixer.conv1d).kernel_size[0],
    }
