"""Pictures of where the tokens of an image go."""

from mtrkit.adapters.grid import PatchGrid, patch_grid
from mtrkit.vis.curves import Point, draw_curves
from mtrkit.vis.overlay import ROLE_COLOURS, draw_groups, draw_roles, roles
from mtrkit.vis.sheet import draw_methods, draw_reduction, strip

__all__ = [
    "ROLE_COLOURS",
    "PatchGrid",
    "Point",
    "draw_curves",
    "draw_groups",
    "draw_methods",
    "draw_reduction",
    "draw_roles",
    "patch_grid",
    "roles",
    "strip",
]
