"""A model as a backbone: images in, a list of feature maps out, without what comes after the last of them."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn

from mtrkit.errors import OptionError


class FeatureInfo(NamedTuple):
    """What a decoder has to know of each map, under the names that timm's backbones use.

    Attributes:
        entries: The model's own entries for the chosen blocks.
    """

    entries: tuple[dict[str, Any], ...]

    def channels(self) -> list[int]:
        """Width of each map."""
        return [entry["num_chs"] for entry in self.entries]

    def reduction(self) -> list[int]:
        """Pixels between two neighbours of each map."""
        return [entry["reduction"] for entry in self.entries]


class FeatureMaps(nn.Module):
    """The patch features after chosen blocks, each on the full grid whether the model is reduced or not.

    The same as timm's ``features_only`` wrapper, under the same names, for installations without timm. A reduction is
    applied to it or to its ``model``: both mean the same.

    Args:
        model: A :class:`~mtrkit.models.VisionMamba`; the blocks after the last chosen one and the head are
            removed from it, and the final norm too unless ``norm`` is set.
        out_indices: Either the number of last blocks, or block indices (from 0; negative from the end).
        norm: Whether the final norm is applied to each map.

    Raises:
        OptionError: An index out of range.
    """

    def __init__(self, model: Any, out_indices: int | Sequence[int] = 3, norm: bool = False) -> None:
        super().__init__()
        self.out_indices: list[int] = model.prune_intermediate_layers(out_indices, prune_norm=not norm)
        self.feature_info = FeatureInfo(tuple(model.feature_info[index] for index in self.out_indices))
        self.model, self.norm = model, norm
        of_head = ("num_classes", "classifier", "global_pool")
        self.pretrained_cfg = {key: value for key, value in model.pretrained_cfg.items() if key not in of_head}

    @property
    def default_cfg(self) -> dict[str, Any]:
        """``pretrained_cfg`` under the name that timm's older tools read."""
        return self.pretrained_cfg

    def forward(self, x: Tensor) -> list[Tensor]:
        """Images (B, C, H, W) to one map (B, D, rows, columns) per chosen block, in the order of the blocks."""
        return self.model.forward_intermediates(x, self.out_indices, norm=self.norm, intermediates_only=True)


def pick_blocks(indices: int | Sequence[int] | None, depth: int) -> list[int]:
    """Resolve ``indices`` to block numbers: ``None`` all, an int the last so many, a sequence those.

    Raises:
        OptionError: Out of range, or none at all.
    """
    if indices is None:
        return list(range(depth))
    asked = list(range(depth - indices, depth)) if isinstance(indices, int) else list(indices)
    picked = asked if isinstance(indices, int) else [depth + i if i < 0 else i for i in asked]
    if not picked or not all(0 <= i < depth for i in picked):
        raise OptionError(f"indices={indices!r} for {depth} blocks; give 1 to {depth} last ones, or their indices")
    return picked


def as_map(patches: Tensor, grid: tuple[int, ...]) -> Tensor:
    """(B, M, D), row by row, to (B, D, rows, columns), or frame by frame to (B, D, T, rows, columns)."""
    return patches.unflatten(1, grid).movedim(-1, 1).contiguous()
