"""Bring adapter, method and schedule together in a model's forward pass, and take them out again."""

from mtrkit.patch.amount import Amount
from mtrkit.patch.calibration import Calibration, fingerprint
from mtrkit.patch.info import ReductionInfo
from mtrkit.patch.installation import install, uninstall
from mtrkit.patch.journal import Journal
from mtrkit.patch.plan import Plan
from mtrkit.patch.preparation import placed, prepare, prepare_calibrated, prepare_from_checkpoint
from mtrkit.patch.reduction import RECORD, Reduction, reductions_in
from mtrkit.patch.trace import Trace, TraceStage
from mtrkit.patch.trained import DyVMCheckpoint, prepare_trained, trained_parts

__all__ = [
    "RECORD",
    "Amount",
    "Calibration",
    "DyVMCheckpoint",
    "Journal",
    "Plan",
    "Reduction",
    "ReductionInfo",
    "Trace",
    "TraceStage",
    "fingerprint",
    "install",
    "placed",
    "prepare",
    "prepare_calibrated",
    "prepare_from_checkpoint",
    "prepare_trained",
    "reductions_in",
    "trained_parts",
    "uninstall",
]
