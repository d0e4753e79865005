"""mtrkit: make pretrained Vision Mamba models faster by reducing their tokens, without training.

>>> import mtrkit
>>> model = mtrkit.create_model("vim_micro_patch4_32").eval()
>>> model = mtrkit.apply_reduction(model, method="mtr", ratio=0.3)
>>> mtrkit.reduction_info(model).layers
(2, 4, 6)
>>> model = mtrkit.remove_reduction(model)
"""

from mtrkit.adapters import Adapter, register_adapter
from mtrkit.api import (
    apply_reduction,
    count_flops,
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
    InputError,
    MtrkitError,
    OptionError,
    ScheduleError,
    UnknownNameError,
    UnsupportedModelError,
)
from mtrkit.methods import MethodConfig, register_method
from mtrkit.patch import ReductionInfo, Trace
from mtrkit.scan import scan_backends, selective_scan, use_scan_backend
from mtrkit.schedule import EveryNth, FlopsReport
from mtrkit.types import BlockState, Decision, TokenMap

__version__ = "0.1.0"

__all__ = [
    "Adapter",
    "BackendError",
    "BlockState",
    "CheckpointError",
    "Decision",
    "EveryNth",
    "FlopsReport",
    "InputError",
    "MethodConfig",
    "MtrkitError",
    "OptionError",
    "ReductionInfo",
    "ScheduleError",
    "TokenMap",
    "Trace",
    "UnknownNameError",
    "UnsupportedModelError",
    "apply_reduction",
    "count_flops",
    "list_adapters",
    "list_methods",
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
