"""What a model costs as a function of the tokens its blocks see: the one place with the formulas.

Counts follow R-MeeTo (arXiv:2412.12496) and DyVM (arXiv:2504.04787), so that figures can be laid beside
published ones: one per multiply-add of a linear layer, the scan as 9·L·E·N + 2·L·E, nothing for norms,
activations and gathers. Those papers count one scan direction although two run; ``directions="all"``
counts what the hardware does.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Literal

from mtrkit.errors import OptionError, ScheduleError
from mtrkit.schedule.place import Place

Directions = Literal["one", "all"]

ReductionCost = Callable[[int, int], int]
"""FLOPs of one reduction, from (tokens before, tokens after), special tokens included."""


@dataclass(frozen=True)
class Widths:
    """Widths that the cost of a decision depends on."""

    dim: int  # D
    inner: int  # E
    state: int  # N
    keys: int = 0  # D / heads, if the blocks have attention


_NOT_SIZES = ("place", "keeps_time", "scan_share")
_MAY_BE_ZERO = ("special", "patches", "patch_macs", "head_macs", "head_token_macs")


@dataclass(frozen=True, kw_only=True)
class ModelShape(ABC):
    """The sizes of a model that decide what it costs.

    Args:
        depth: Number of blocks.
        dim: D, model width.
        tokens: L entering the first block, special tokens included.
        special: S, class, distillation and register tokens, which are never removed.
        patches: M, patches that are embedded (over all frames of a clip).
        patch_macs: Multiply-adds to embed one patch: D · channels · p² (· frames per patch).
        head_macs: Multiply-adds of the head: D · classes for a linear one.
        head_token_macs: Those of a head that answers at every token of the full sequence, per token: D · vocabulary.
        sequences: Sequences of ``tokens`` each that a sample is cut into; blocks count all of them.
        frames: Patches of a clip in the direction of time; all of a frame come before those of the next.

    Raises:
        OptionError: A size is not an integer or out of range.
    """

    depth: int
    dim: int
    tokens: int
    special: int
    patches: int
    patch_macs: int
    head_macs: int
    head_token_macs: int = 0
    sequences: int = 1
    frames: int = 1

    def __post_init__(self) -> None:
        for field in (field for field in fields(self) if field.name not in _NOT_SIZES):
            value = getattr(self, field.name)
            least = 0 if field.name in _MAY_BE_ZERO else 1
            if type(value) is not int or value < least:
                raise OptionError(
                    f"{type(self).__name__}.{field.name} must be an integer of at least {least}, not {value!r}"
                )
        if self.special >= self.tokens:
            raise OptionError(
                f"a sequence of {self.tokens} tokens with {self.special} special ones has nothing to reduce; "
                "tokens counts the special ones too"
            )

    @property
    def widths(self) -> Widths:
        """Channels of the signals that a method may read; blocks without a scan have none but their features."""
        return Widths(self.dim, self.dim, self.dim)

    @property
    def last_layer(self) -> int:
        """The last block, counted from 1, in which a reduction saves something."""
        return self.depth - 1

    @abstractmethod
    def block_flops(self, num_tokens: int, directions: Directions = "one") -> int:
        """Count one block on ``num_tokens`` tokens per sequence, special ones included."""

    def reducing_flops(self, before: int, after: int, directions: Directions = "one") -> int:
        """Count one block that begins with ``before`` tokens and leaves ``after``; reducing after it is the default."""
        del after
        return self.block_flops(before, directions)


@dataclass(frozen=True, kw_only=True)
class MambaShape(ModelShape):
    """A plain stack of Mamba blocks.

    Args:
        inner: E, inner width of the mixer.
        state: N, state size of the scan.
        dt_rank: R, rank of the time step's projection.
        conv: K, width of the causal convolution.
        directions: Scan directions that the hardware runs, 1 or 2.
        keeps_time: Whether a merged token lasts several positions: the convolution then computes all positions of the
            full sequence, and the scan goes on by a multiply-add and an addition per state at every position beyond
            a token's first.
        scan_share: Share of the scans, with their convolutions and small projections, that run: of samples, blocks and
            directions in the mean, in [0, 1].
    """

    inner: int
    state: int
    dt_rank: int
    conv: int
    directions: int = 2
    keeps_time: bool = False
    scan_share: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.scan_share <= 1:
            raise OptionError(f"MambaShape.scan_share must be from 0 to 1, not {self.scan_share!r}")
        if self.directions > 2:
            raise OptionError(f"MambaShape.directions must be 1 or 2, not {self.directions}")

    @property
    def widths(self) -> Widths:
        """As the mixer has them."""
        return Widths(self.dim, self.inner, self.state)

    def block_flops(self, num_tokens: int, directions: Directions = "one") -> int:
        """Count one block; affine in the length, as no part pairs tokens with tokens.

        Source: ``calculate_flop_inference`` of R-MeeTo (arXiv:2412.12496), written out term by term.
        """
        inner, state, rank = self.inner, self.state, self.dt_rank
        positions = max(self.tokens, num_tokens) if self.keeps_time else num_tokens
        linear = num_tokens * self.dim * 3 * inner  # in_proj 2E, out_proj E
        conv = (positions + self.conv - 1) * inner * self.conv  # a causal convolution pads K − 1 steps
        small = num_tokens * inner * (2 * rank + 2 * state)  # x_proj R + 2N, dt_proj R
        scan = num_tokens * inner * (9 * state + 2)  # 2: the skip D and the gate
        scan += (positions - num_tokens) * inner * 2 * state  # the state goes on, and is added to its mean
        counted = self.directions if check_directions(directions) == "all" else 1
        beside = counted * (conv + small + scan)
        return linear + (beside if self.scan_share == 1 else round(self.scan_share * beside))


@dataclass(frozen=True, kw_only=True)
class TransformerShape(ModelShape):
    """A plain stack of attention and MLP blocks, as in ViT and DeiT.

    Args:
        hidden: Inner width of the MLP.
        heads: Attention heads, whose keys are D / heads wide.
        place: Where a reducing block reduces; before its MLP, the MLP sees the tokens that are left.
    """

    hidden: int
    heads: int = 1
    place: Place = "after_block"

    @property
    def widths(self) -> Widths:
        """As the attention has them."""
        return replace(super().widths, keys=self.dim // self.heads)

    @property
    def last_layer(self) -> int:
        """The last block too has an MLP to save on."""
        return self.depth if self.place == "before_mlp" else super().last_layer

    def block_flops(self, num_tokens: int, directions: Directions = "one") -> int:
        """Count one block: query, key, value and output projections, attention, MLP."""
        check_directions(directions)
        return self._attention(num_tokens) + self._mlp(num_tokens)

    def reducing_flops(self, before: int, after: int, directions: Directions = "one") -> int:
        """Count one block whose MLP is as short as ``place`` makes it."""
        check_directions(directions)
        return self._attention(before) + self._mlp(after if self.place == "before_mlp" else before)

    def _attention(self, num_tokens: int) -> int:
        return num_tokens * self.dim * (4 * self.dim + 2 * num_tokens)

    def _mlp(self, num_tokens: int) -> int:
        return 2 * num_tokens * self.dim * self.hidden


def check_directions(directions: Directions) -> Directions:
    """Return ``directions``, or raise :class:`OptionError` for an unknown word."""
    if directions not in ("one", "all"):
        raise OptionError(f'directions must be "one" (as papers count) or "all" (as hardware runs), not {directions!r}')
    return directions


def bipartite_cost(width: int, dim: int) -> ReductionCost:
    """Cost of matching half of the tokens against the other half and merging the best pairs.

    At N tokens that lose r it is 6·N·M + 2·M·(N/2)² + r·D, class token counted in N.

    Args:
        width: M, channels of the metric: D for hidden states, state size for B or C, E for Δ.
        dim: D, model width.

    Source: R-MeeTo (arXiv:2412.12496), the counter of its released code.
    """

    def cost(before: int, after: int) -> int:
        return 6 * before * width + width * before * before // 2 + (before - after) * dim

    return cost


@dataclass(frozen=True)
class FlopsReport:
    """Where the FLOPs of one forward pass on one sample go.

    Args:
        embedding: FLOPs of the patch embedding.
        blocks: FLOPs of each block.
        reductions: FLOPs of the reduction in or after each block, 0 where nothing is removed.
        head: FLOPs of the head.
        tokens: Tokens entering each block, special ones included.
        directions: ``"one"`` or ``"all"`` scan directions counted.
    """

    embedding: int
    blocks: tuple[int, ...]
    reductions: tuple[int, ...]
    head: int
    tokens: tuple[int, ...]
    directions: Directions

    @property
    def total(self) -> int:
        """All FLOPs of the pass."""
        return self.embedding + sum(self.blocks) + sum(self.reductions) + self.head

    @property
    def gflops(self) -> float:
        """All FLOPs of the pass, in units of 10⁹."""
        return self.total / 1e9

    def ratio_to(self, dense: "FlopsReport") -> float:
        """Share of the dense model's FLOPs that are saved, reduction cost deducted."""
        return 1 - self.total / dense.total

    def __str__(self) -> str:
        counted = "one scan direction" if self.directions == "one" else "all scan directions"
        parts = {
            f"{len(self.blocks)} blocks": sum(self.blocks),
            f"{sum(map(bool, self.reductions))} reductions": sum(self.reductions),
            "embedding": self.embedding,
            "head": self.head,
        }
        listed = ", ".join(f"{name} {flops / 1e9:.4f}" for name, flops in parts.items())
        return f"{self.gflops:.4f} GFLOPs ({counted}): {listed}; tokens {self.tokens[0]} → {self.tokens[-1]}"


def model_flops(
    shape: ModelShape,
    schedule: Sequence[int] | None = None,
    reduction_cost: ReductionCost | None = None,
    directions: Directions = "one",
) -> FlopsReport:
    """Count one forward pass on one sample.

    Args:
        shape: The model and its input.
        schedule: Tokens left after each block (length depth); ``None`` is the dense model.
        reduction_cost: FLOPs of one reduction; ``None`` counts reductions as free. A block that
            removes nothing is not charged.
        directions: ``"one"`` as the papers count, with L instead of M patches embedded;
            ``"all"`` as the hardware runs.

    Raises:
        ScheduleError: ``schedule`` does not have one entry per block.
    """
    left = [shape.tokens] * shape.depth if schedule is None else list(schedule)
    if len(left) != shape.depth:
        raise ScheduleError(f"a schedule has one entry per block: {shape.depth} are needed, {len(left)} were given")
    entering = [shape.tokens, *left[:-1]]
    pairs = list(zip(entering, left, strict=True))
    return FlopsReport(
        embedding=shape.patch_macs * (shape.tokens if directions == "one" else shape.patches),
        blocks=tuple(shape.reducing_flops(n, m, directions) for n, m in pairs),
        reductions=tuple(shape.sequences * reduction_cost(n, m) if reduction_cost and m < n else 0 for n, m in pairs),
        head=shape.head_macs + shape.tokens * shape.head_token_macs,
        tokens=tuple(entering),
        directions=directions,
    )
