"""When a call may go straight to the compiled library."""

import torch
from torch import Tensor

from mtrkit.compiler import constant_result
from mtrkit.scan.dispatch import backend_for
from mtrkit.scan.library import current_level, library


@constant_result
def fuses() -> bool:
    """Whether the operators are the fastest way for float32 on a CPU.

    For 16-bit numbers a CPU may have matrix units, which torch knows.
    """
    return not library().missing and current_level() > 0 and backend_for("cpu") == "native"


def inference_fuses(x: Tensor) -> bool:
    """Whether :func:`fuses` for this tensor, and nobody wants a derivative or another precision."""
    if not x.is_cpu or x.dtype is not torch.float32 or torch.is_grad_enabled() or torch.is_autocast_enabled("cpu"):
        return False
    return fuses()


def unwatched(x: Tensor) -> bool:
    """Whether nobody traces, transforms or profiles: going through torch's dispatcher would then only take time."""
    if torch.compiler.is_compiling() or type(x) is not Tensor:
        return False
    watched = torch._C._len_torch_dispatch_stack() or torch._C._get_tracing_state() is not None
    watched = watched or torch._C._autograd._profiler_enabled()
    return not watched and torch._C._functorch.peek_interpreter_stack() is None
