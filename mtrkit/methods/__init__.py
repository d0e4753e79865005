"""Reduction methods, one file each; importing this package registers them."""

from mtrkit.methods import mtr
from mtrkit.methods.base import METHODS, Method, MethodConfig, Widths, register_method

__all__ = ["METHODS", "Method", "MethodConfig", "Widths", "mtr", "register_method"]
