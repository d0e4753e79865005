"""MambaVision of the NVlabs/MambaVision repository, reduced between the blocks of its third stage.

Two stages of convolutions, then two of Mamba and attention blocks on windows of tokens. Convolutions between the
stages need the whole grid, so the tokens are put back where the third stage ends. It has 41 % of the FLOPs of
MambaVision-T; the fourth begins with 49 tokens and is left alone.

Source: Hatamizadeh and Kautz, "MambaVision", arXiv:2407.08083.
"""

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from mtrkit.adapters.base import Adapter, SpecialAt, missing_name, register_adapter
from mtrkit.adapters.sizes import layers_inside, macs, macs_inside, size_of
from mtrkit.adapters.stack import nowhere
from mtrkit.errors import InputError
from mtrkit.scan import Signals
from mtrkit.schedule import ModelShape
from mtrkit.schedule.cost import Directions, check_directions
from mtrkit.types import MixerCall

_BLOCK = ("norm1", "mixer", "norm2", "mlp", "gamma_1", "gamma_2")


@dataclass(frozen=True, kw_only=True)
class WindowShape(ModelShape):
    """One stage of blocks of two kinds on windows, counted as so many blocks of their mean.

    Args:
        token_macs: Cost per token, summed over the blocks.
        pair_macs: Cost per pair of tokens of a window, summed over the blocks.
    """

    token_macs: int
    pair_macs: int

    def block_flops(self, num_tokens: int, directions: Directions = "one") -> int:
        """Count a mean block on all windows, which are the sequences; the scan has one direction."""
        check_directions(directions)
        return self.sequences * num_tokens * (self.token_macs + num_tokens * self.pair_macs) // self.depth


@register_adapter
class MambaVisionAdapter(Adapter):
    """``MambaVision``: blocks ``x = block(x)`` on windows, of which the later half has attention and so no Δ."""

    name = "mamba_vision"
    summary = "MambaVision of the NVlabs/MambaVision repository, reduced inside its third stage"
    marks = ("patch_embed", "levels", "avgpool", "head")
    single_stream = True
    signals = frozenset()
    call_argument = None

    def mismatch(self, model: Any) -> str | None:
        missing = super().mismatch(model)
        if missing:
            return missing
        stage = _stage(model)
        if stage is None:
            return "`levels` has no stage of token blocks in front of a `downsample`"
        missing = missing_name(stage, ("window_size",))
        missing = missing or next((name for block in stage.blocks if (name := missing_name(block, _BLOCK))), None)
        return f"a block of `levels` has no `{missing}`" if missing else None

    def blocks(self, model: Any) -> list[nn.Module]:
        return list(_stage(model).blocks)

    def mixer(self, block: Any) -> nn.Module:
        return block.mixer

    def run_mixer(self, mixer: Any, hidden: Tensor, call: MixerCall) -> tuple[Tensor, Signals]:
        del call
        return mixer(hidden), Signals()

    def special_at(self, model: Any) -> SpecialAt:
        del model
        return nowhere

    def shape(self, model: Any, input_size: tuple[int, ...]) -> ModelShape:
        stage = _stage(model)
        index = list(model.levels).index(stage)
        # Whatever is not in the stage's blocks is counted with the head.
        rest = _stem_macs(model, input_size) + macs_inside(model.head, 0)
        for number, level in enumerate(model.levels):
            rest += _level_macs(level, _grid(input_size, number), with_blocks=level is not stage)
        tokens, blocks = stage.window_size**2, stage.blocks
        return WindowShape(
            depth=len(blocks),
            dim=size_of(blocks[0].norm1, "normalized_shape")[-1],
            tokens=tokens,
            special=0,
            patches=tokens,
            patch_macs=0,
            head_macs=rest,
            sequences=_windows(stage, _grid(input_size, index)),
            token_macs=sum(map(_token_macs, blocks)),
            pair_macs=sum(map(_pair_macs, blocks)),
        )

    def input_size(self, model: Any) -> tuple[int, ...]:
        """That of the released weights; the model itself takes any."""
        cfg = getattr(model, "pretrained_cfg", None) or {}
        return tuple(cfg.get("input_size", (3, 224, 224)))


def _stage(model: Any) -> Any:
    """The first stage of blocks with mixers, in front of a convolution."""
    for level in model.levels if isinstance(model.levels, nn.ModuleList) else ():
        blocks = getattr(level, "blocks", None)
        if blocks is not None and len(blocks) and hasattr(blocks[0], "mixer"):
            return level if getattr(level, "downsample", None) is not None else None
    return None


def _grid(input_size: tuple[int, ...], level: int) -> tuple[int, int]:
    """Rows and columns in a stage: the stem halves them twice, and every stage passes on half of its own."""
    rows, columns = input_size[1:]
    for _ in range(2 + level):
        rows, columns = -(-rows // 2), -(-columns // 2)
    if rows * columns == 0:
        raise InputError(f"input_size={input_size} leaves nothing for stage {level + 1}")
    return rows, columns


def _windows(level: Any, grid: tuple[int, int]) -> int:
    """How many windows the padded grid has."""
    rows, columns = (-(-side // level.window_size) for side in grid)
    return rows * columns


def _stem_macs(model: Any, input_size: tuple[int, ...]) -> int:
    """Two strided convolutions."""
    total = 0
    for number, conv in enumerate(layers_inside(model.patch_embed, 2)):
        rows, columns = _grid(input_size, number - 1)
        total += macs(conv) * rows * columns
    return total


def _level_macs(level: Any, grid: tuple[int, int], with_blocks: bool) -> int:
    """A stage's convolutions and, unless they are counted elsewhere, its blocks."""
    after = -(-grid[0] // 2) * -(-grid[1] // 2)
    total = macs_inside(level.blocks, 2) * grid[0] * grid[1]
    if level.downsample is not None:
        total += macs_inside(level.downsample, 2) * after
    if with_blocks and hasattr(level.blocks[0], "mixer"):
        length = level.window_size**2
        per_token = sum(_token_macs(block) + length * _pair_macs(block) for block in level.blocks)
        total += _windows(level, grid) * length * per_token
    return total


def _token_macs(block: Any) -> int:
    """Linear layers, short convolutions and, in a Mamba block, the scan as 9·E·N and the skip."""
    scanned = getattr(block.mixer, "A_log", None)
    scan = 0 if scanned is None else scanned.shape[0] * (9 * scanned.shape[1] + 1)
    return macs_inside(block, 0, 1) + scan


def _pair_macs(block: Any) -> int:
    """Queries against keys and weights against values, in an attention block."""
    qkv = getattr(block.mixer, "qkv", None)
    return 0 if qkv is None else 2 * size_of(qkv, "in_features")
