"""mtrkit: make pretrained Vision Mamba models faster by reducing their tokens, without training.

>>> import mtrkit
>>> model = mtrkit.create_model("vim_micro_patch4_stride2_32").eval()
>>> model = mtrkit.apply_reduction(model, method="mtr", ratio=0.3)
>>> mtrkit.reduction_info(model).layers
(3, 6, 9)
>>> model = mtrkit.remove_reduction(model)
"""

import importlib
from typing import TYPE_CHECKING, Any

from mtrkit.adapters import Adapter, register_adapter
from mtrkit.api import (
    apply_reduction,
    count_flops,
    full_grid,
    list_adapters,
    list_methods,
    reduction_disabled,
    reduction_info,
    remove_reduction,
    trace_reduction,
)
from mtrkit.errors import (
    BackendError,
    CheckpointError,
    CheckpointWarning,
    ExportError,
    FrameWarning,
    InputError,
    MtrkitError,
    OptionError,
    PluginWarning,
    ScheduleError,
    SizeWarning,
    SmallModelWarning,
    StandInError,
    StandInNameError,
    UnknownNameError,
    UnsupportedModelError,
)
from mtrkit.methods import MethodConfig, register_method
from mtrkit.patch import Calibration, ReductionInfo, Trace
from mtrkit.scan import flop_handles, scan_backends, selective_scan, use_scan_backend
from mtrkit.schedule import EveryNth, FlopsReport
from mtrkit.standin import StandIns, as_mamba_ssm
from mtrkit.types import BlockState, Decision, TokenMap

if TYPE_CHECKING:
    from mtrkit.calibration import calibrate, find_thresholds
    from mtrkit.exporting import export
    from mtrkit.models import VisionMamba, create_model, list_models, load_checkpoint

__version__ = "0.1.0"

__all__ = [
    "Adapter",
    "BackendError",
    "BlockState",
    "Calibration",
    "CheckpointError",
    "CheckpointWarning",
    "Decision",
    "EveryNth",
    "ExportError",
    "FlopsReport",
    "FrameWarning",
    "InputError",
    "MethodConfig",
    "MtrkitError",
    "OptionError",
    "PluginWarning",
    "ReductionInfo",
    "ScheduleError",
    "SizeWarning",
    "SmallModelWarning",
    "StandInError",
    "StandInNameError",
    "StandIns",
    "TokenMap",
    "Trace",
    "UnknownNameError",
    "UnsupportedModelError",
    "VisionMamba",
    "apply_reduction",
    "as_mamba_ssm",
    "calibrate",
    "count_flops",
    "create_model",
    "export",
    "find_thresholds",
    "flop_handles",
    "full_grid",
    "list_adapters",
    "list_methods",
    "list_models",
    "load_checkpoint",
    "reduction_disabled",
    "reduction_info",
    "register_adapter",
    "register_method",
    "remove_reduction",
    "scan_backends",
    "selective_scan",
    "trace_reduction",
    "use_scan_backend",
]


def __getattr__(name: str) -> Any:
    """Load what is heavy when it is first asked for: models register with timm, whose import takes seconds."""
    if name in ("VisionMamba", "create_model", "list_models", "load_checkpoint"):
        from mtrkit import models

        return getattr(models, name)
    if name == "dyvm":
        return importlib.import_module("mtrkit.dyvm")
    if name in ("calibrate", "find_thresholds"):
        from mtrkit import calibration

        return getattr(calibration, name)
    if name == "export":
        from mtrkit import exporting

        return exporting.export
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
