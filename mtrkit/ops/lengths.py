"""How many positions each token of a shortened sequence lasts."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from mtrkit.ops.gaps import original_positions
from mtrkit.types import ReducedStream

Lengths = Literal["one", "sizes", "positions"]
"""One position per token, as papers have it; as many as tokens were merged into it; or those that it stands nearest."""


def count_lengths(stream: ReducedStream, kind: Lengths, special: tuple[int, ...]) -> Tensor | None:
    """How long each token lasts from now on, (B, L') int64; ``None`` if all last one position.

    Args:
        stream: After a reduction.
        kind: ``"sizes"``: as many positions as tokens were merged into it, wherever these stood. ``"positions"``: every
            position of the full sequence belongs to the nearest token that is left and is not special, the earlier
            one of two; special tokens last the one position where they stand.
        special: Positions of the special tokens in the full sequence.
    """
    if kind == "one":
        return None
    if kind == "sizes":
        return stream.size.squeeze(-1).round().long()
    return _nearest_positions(stream, special)


def _nearest_positions(stream: ReducedStream, special: tuple[int, ...]) -> Tensor:
    place, by_place = torch.sort(original_positions(stream), dim=1)
    length, num_special = stream.slot.shape[1], len(special)
    # The order of tokens in a sequence of special ones first: theirs is known without looking at the values.
    is_special = torch.zeros_like(place, dtype=torch.bool)
    for position in special:
        is_special = is_special | (place == position)
    patches = torch.sort(is_special.to(torch.uint8), dim=1, stable=True).indices[:, : place.shape[1] - num_special]
    own = place.gather(1, patches)
    last = (own[:, :-1] + own[:, 1:]).div(2, rounding_mode="floor")  # the last position of each, but for the last token
    ends = F.pad(last, (0, 1), value=length - 1)
    taken = sum(((ends >= position).to(ends.dtype) for position in special), torch.zeros_like(ends))
    counted = ends + 1 - taken  # positions up to the end of each, special ones left out
    lengths = torch.ones_like(place).scatter(1, patches, counted.diff(dim=1, prepend=torch.zeros_like(ends[:, :1])))
    return torch.ones_like(place).scatter(1, by_place, lengths)
