"""DyVM: trained networks choose the patches that stay, and per image and block the scans that run.

What is trained lies in a :class:`DyVM` beside the model, whose own parameters keep their names. While it is in training
mode it draws its choices at random, so that gradients reach it; otherwise it takes the best.

Source: "Dynamic Vision Mamba", arXiv:2504.04787.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mtrkit.errors import OptionError
from mtrkit.methods.base import Method, MethodConfig
from mtrkit.ops import comparable, hold_special, in_sequence, rank_tokens, take, token_map, without
from mtrkit.schedule import resolve_layers
from mtrkit.types import BlockState, Decision

_WARMTH = 2.0  # τ of the gates while they are drawn; that of the patches is 1
_ALL_ON = 5.0  # bias of a new selector, with which 99.3 % of the scans run


class TokenPredictor(nn.Module):
    """Says of every patch, from itself and from the mean of those that are left, how likely it is to stay.

    Args:
        dim: Width D of the tokens, a multiple of 4.

    Names of the parameters are those of the release.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.in_conv = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, dim), nn.GELU())
        half, quarter = dim // 2, dim // 4
        self.out_conv = nn.Sequential(
            *(nn.Linear(dim, half), nn.GELU(), nn.Linear(half, quarter), nn.GELU(), nn.Linear(quarter, 2))
        )

    def forward(self, patches: Tensor, kept: Tensor | None = None) -> Tensor:
        """Features (B, M, D) to log-probabilities (B, M, 2) of staying and of leaving.

        Args:
            patches: Features of the patches, those that have left among them.
            kept: (B, M), 1 for those that are left. Default: all are.
        """
        first: Any = self.in_conv[1]
        own, shared = self.in_conv(patches.to(first.weight.dtype)).chunk(2, dim=-1)
        if kept is None:
            mean = shared.sum(dim=1, keepdim=True) / (shared.shape[1] + 1)
        else:
            kept = kept[..., None].to(shared.dtype)
            mean = (shared * kept).sum(dim=1, keepdim=True) / (kept.sum(dim=1, keepdim=True) + 1)
        return comparable(self.out_conv(torch.cat([own, mean.expand_as(shared)], dim=-1))).log_softmax(dim=-1)


class BlockSelector(nn.Linear):
    """Says for each image, from what a block's in_proj makes of the class token, which of its two scans run.

    Args:
        channels: Those of in_proj's output, 2E.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels, 2)
        nn.init.zeros_(self.weight)
        nn.init.constant_(self.bias, _ALL_ON)

    def forward(self, seen: Tensor) -> Tensor:
        """(B, 2E) to the gates (B, 2) of the forward and the backward scan, 0 or 1.

        In training mode they are drawn, and pass gradients on as if they were the probabilities.
        """
        logits = comparable(super().forward(seen.to(self.weight.dtype)))
        if not self.training:
            return (logits > 0).to(logits.dtype)
        return straight_through(torch.sigmoid((logits + _gumbel(logits) - _gumbel(logits)) / _WARMTH))


class DyVM(nn.Module):
    """All that is trained: a predictor for each layer that reduces, a selector for each block.

    Args:
        dim: Width D of the tokens, a multiple of 4.
        inner: Inner width E of the mixers.
        depth: Number of blocks.
        layers: Blocks after which patches are dropped, counted from 1. Default: after each quarter of the blocks.
        keep: Share ρ of the patches that each of them keeps of what the one before has left, in (0, 1].
        block_target: Share of the scans that training aims at, in [0, 1]; ``None``: all scans run, without selectors.

    Attributes:
        scan_share: Measured share of the scans that run; ``None`` until it is measured.
        noise: Scale of the Gumbel noise by which patches are drawn in training; 1 is the paper's.

    Raises:
        OptionError: A value out of range.
    """

    def __init__(
        self,
        dim: int,
        inner: int,
        depth: int,
        layers: Sequence[int] | None = None,
        keep: float = 0.7,
        block_target: float | None = 0.8,
    ) -> None:
        super().__init__()
        _check_settings(dim, keep, block_target)
        self.dim, self.inner, self.depth, self.keep, self.block_target = dim, inner, depth, keep, block_target
        self.layers = resolve_layers(_quarters(depth) if layers is None else layers, depth)
        self.scan_share: float | None = None
        self.noise = 1.0
        self.score_predictors = nn.ModuleList(TokenPredictor(dim) for _ in self.layers)
        count = 0 if block_target is None else depth
        self.block_heads = nn.ModuleList(BlockSelector(2 * inner) for _ in range(count))

    def predictor(self, layer: int) -> nn.Module:
        """The predictor behind a block, counted from 1."""
        return self.score_predictors[self.layers.index(layer)]

    def selector(self, index: int) -> nn.Module | None:
        """The selector of block ``index``, counted from 0; ``None`` if all scans run."""
        return self.block_heads[index] if self.block_target is not None else None

    def draw(self, layer: int, patches: Tensor, kept: Tensor) -> Tensor:
        """Draw which patches (B, M, D) stay of those that are left: (B, M), 0 or 1, which passes gradients on."""
        scores = self.predictor(layer)(patches, kept)
        return straight_through((scores + self.noise * _gumbel(scores)).softmax(dim=-1)[..., 0]) * kept.to(scores.dtype)


def straight_through(soft: Tensor) -> Tensor:
    """1 where ``soft`` is at least one half, otherwise 0, exactly; its derivative is that of ``soft``."""
    return (soft.detach() >= 0.5).to(soft.dtype) + (soft - soft.detach())


def _gumbel(like: Tensor) -> Tensor:
    """Samples of the standard Gumbel distribution."""
    return -torch.empty_like(like).exponential_().clamp(min=torch.finfo(like.dtype).tiny).log()


def _quarters(depth: int) -> tuple[int, ...]:
    """6, 12 and 18 of 24."""
    return tuple(layer for layer in sorted({stage * depth // 4 for stage in (1, 2, 3)}) if layer)


def _check_settings(dim: int, keep: float, block_target: float | None) -> None:
    if type(dim) is not int or dim < 4 or dim % 4:
        raise OptionError(f"a token predictor halves its width twice: it must be a multiple of 4, not {dim!r}")
    for name, value, least in (("keep", keep, 1e-9), ("block_target", block_target, 0)):
        if value is None and name == "block_target":
            continue
        if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= 1:
            bounds = "above 0 and" if least else "from 0"
            raise OptionError(f"{name} is a share, a number {bounds} up to 1, not {value!r}")


@dataclass(frozen=True)
class DyVMConfig(MethodConfig):
    """What a trained DyVM was trained for.

    Attributes:
        keep: Share ρ of the patches that each layer keeps.
        block_target: Share of the scans that training aimed at; ``None`` without selectors.
    """

    keep: float = 0.7
    block_target: float | None = 0.8


@dataclass(frozen=True, eq=False)
class TrainedDecision:
    """How a trained DyVM decides at inference: the patches of the highest scores stay, in their order.

    Attributes:
        parts: What is trained.
        special_at: Where the special tokens stand among L tokens; the shorter sequence has them at the same places as
            a full one of that length.
    """

    parts: DyVM
    special_at: Callable[[int], tuple[int, ...]]

    def __call__(self, state: BlockState, num_kept: int, config: MethodConfig) -> Decision:
        """A :class:`~mtrkit.types.Decision` without merging."""
        del config
        patches = without(in_sequence(state.features), state.special)
        found = self.parts.predictor(state.layer)(take(state.features, patches))[..., 0]
        score = found.new_zeros(state.hidden.shape[:2]).scatter(1, patches, found)
        ranked = rank_tokens(score, state.special)[:, : num_kept - state.special.shape[1]]
        best = torch.sort(ranked, dim=1).values
        slots = torch.arange(num_kept, device=best.device).expand(best.shape[0], -1)
        places = [slots[:, place] for place in self.special_at(num_kept)]
        kept = hold_special(best, state.special, torch.stack(places, dim=1) if places else slots[:, :0])
        return Decision(token_map(state.num_tokens, kept, ordered=False), score)


def predictor_flops(before: int, after: int, *, dim: int, special: int) -> int:
    """FLOPs of one predictor: multiply-adds of its linear layers at every patch, as the paper's counter has it."""
    del after
    return (before - special) * (dim * dim + dim * dim // 2 + dim * dim // 8 + dim // 2)


def _untrained(state: BlockState, num_kept: int, config: MethodConfig) -> Decision:
    """Keep the patches that a trained network scores highest, and leave out scans per image."""
    raise OptionError("method 'dyvm' is trained: give apply_reduction a checkpoint of it")


DYVM = Method(
    "dyvm",
    _untrained,
    DyVMConfig,
    max_share=1.0,
    summary="Keep the patches that a trained network scores highest, and leave out scans per image.",
    source="Dynamic Vision Mamba, arXiv:2504.04787",
)
"""Not in the registry of methods, all of which run on a model as it is."""
