"""What a reduction costs, where it happens, and how many tokens it leaves."""

from mtrkit.schedule.check import check_schedule, most_removed, reduction_ratio
from mtrkit.schedule.cost import (
    Directions,
    FlopsReport,
    MambaShape,
    ModelShape,
    ReductionCost,
    TransformerShape,
    Widths,
    bipartite_cost,
    model_flops,
)
from mtrkit.schedule.place import EveryNth, FromTheFirst, Place, Placement, default_layers, resolve_layers
from mtrkit.schedule.solve import solve_keep, solve_ratio, solve_removal

__all__ = [
    "Directions",
    "EveryNth",
    "FlopsReport",
    "FromTheFirst",
    "MambaShape",
    "ModelShape",
    "Place",
    "Placement",
    "ReductionCost",
    "TransformerShape",
    "Widths",
    "bipartite_cost",
    "check_schedule",
    "default_layers",
    "model_flops",
    "most_removed",
    "reduction_ratio",
    "resolve_layers",
    "solve_keep",
    "solve_ratio",
    "solve_removal",
]
