"""Bring adapter, method and schedule together in a model's forward pass, and take them out again."""

from mtrkit.patch.amount import Amount
from mtrkit.patch.calibration import Calibration, fingerprint
from mtrkit.patch.info import ReductionInfo
from mtrkit.patch.installation import install, uninstall
from mtrkit.patch.journal import Journal
from mtrkit.patch.preparation import (
    configured_shape,
    prepare,
    prepare_calibrated,
    prepare_from_checkpoint,
    prepare_trained,
)
from mtrkit.patch.reduction import RECORD, Reduction, reductions_in
from mtrkit.patch.trace import Trace, TraceStage
from mtrkit.patch.trained import DyVMCheckpoint, trained_parts

__all__ = [
    "RECORD",
    "Amount",
    "Calibration",
    "DyVMCheckpoint",
    "Journal",
    "Reduction",
    "ReductionInfo",
    "Trace",
    "TraceStage",
    "configured_shape",
    "fingerprint",
    "install",
    "prepare",
    "prepare_calibrated",
    "prepare_from_checkpoint",
    "prepare_trained",
    "reductions_in",
    "trained_parts",
    "uninstall",
]
