"""Runs: neighbours merge, and the merged token lasts as long as they did.

mtrkit's own. A Mamba block counts positions twice: its convolution looks back over the last K of them, and the state of
its scan decays and takes in once at each. If s neighbours become one token that lasts one position, both count
wrongly, and nothing in the weights was trained for that. Here such a token is a run of s positions, for both.
docs/runs.md has the derivation; merging neighbours alone is after "Sequential Token Merging", arXiv:2509.22691.
"""

from dataclasses import dataclass

from mtrkit.methods.base import register_method
from mtrkit.methods.neighbor import NeighborConfig, append_neighbor, neighbor
from mtrkit.methods.signals import Signal
from mtrkit.ops import Lengths
from mtrkit.schedule import FromTheFirst
from mtrkit.types import BlockState, Decision


@dataclass(frozen=True)
class RunsConfig(NeighborConfig):
    """Options of the ``"runs"`` method: those of ``"neighbor"``, with other defaults.

    Attributes:
        metric: Tensor that similarity is measured on; the residual features lose least.
        lengths: ``"sizes"``, which for neighbours are also their positions.
        similarity: Measure of similarity.
        across_special: Let tokens merge that have a special token between them.
        across_frames: Let a clip's tokens merge with those of the next frame.
        protect_class_neighbors: Keep the tokens beside a special token as they are.
        importance_weight: See :class:`~mtrkit.methods.links.LinkConfig`, as for ``indicator`` and ``channels``.
    """

    metric: Signal = "features"
    lengths: Lengths = "sizes"


@register_method(
    "runs",
    config=RunsConfig,
    max_share=0.5,
    layers=FromTheFirst(3),
    source="mtrkit, docs/runs.md",
    append=append_neighbor,
)
def runs(state: BlockState, num_kept: int, config: RunsConfig) -> Decision:
    """Merge neighbours into runs that last as many positions as they stand for."""
    return neighbor(state, num_kept, config)
