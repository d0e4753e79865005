"""Reduction methods, one file each; importing this package registers them."""

from mtrkit.methods import evit, hsa, mtr, neighbor, pumer, random, rmeeto, runs, tome, utr
from mtrkit.methods.base import METHODS, Method, MethodConfig, Widths, register_method

__all__ = [
    "METHODS",
    "Method",
    "MethodConfig",
    "Widths",
    "evit",
    "hsa",
    "mtr",
    "neighbor",
    "pumer",
    "random",
    "register_method",
    "rmeeto",
    "runs",
    "tome",
    "utr",
]
