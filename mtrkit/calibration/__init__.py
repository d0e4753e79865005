"""Fit a reduction to one model by its dense answers: no labels, no gradients, a few hundred images."""

from mtrkit.calibration.calibrate import calibrate
from mtrkit.calibration.thresholds import find_thresholds

__all__ = ["calibrate", "find_thresholds"]
