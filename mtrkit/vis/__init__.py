"""Pictures and pages of where the tokens of an image go, and plots of what that costs."""

from mtrkit.adapters.grid import PatchGrid, patch_grid
from mtrkit.vis.comparing import compare_page
from mtrkit.vis.curves import Dense, Point, draw_curves, plot_measured
from mtrkit.vis.groups import Group, merged_groups
from mtrkit.vis.overlay import ROLE_COLOURS, draw_groups, draw_importance, draw_roles
from mtrkit.vis.page import data_of, render_page
from mtrkit.vis.passes import Answer, Cost, Pass, Shown
from mtrkit.vis.sheet import Map, animate_reduction, draw_reduction
from mtrkit.vis.stages import Role, StageView, frame_grids, stage_views
from mtrkit.vis.tokens import tokens_data, tokens_page

__all__ = [
    "ROLE_COLOURS",
    "Answer",
    "Cost",
    "Dense",
    "Group",
    "Map",
    "Pass",
    "PatchGrid",
    "Point",
    "Role",
    "Shown",
    "StageView",
    "animate_reduction",
    "compare_page",
    "data_of",
    "draw_curves",
    "draw_groups",
    "draw_importance",
    "draw_reduction",
    "draw_roles",
    "frame_grids",
    "merged_groups",
    "patch_grid",
    "plot_measured",
    "render_page",
    "stage_views",
    "tokens_data",
    "tokens_page",
]
