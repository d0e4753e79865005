"""When a call may go straight to the compiled library."""

import torch
from torch import Tensor

from mtrkit.dynamo import constant_result
from mtrkit.native.library import current_level, library
from mtrkit.scan.dispatch import backend_for


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


def can_match(metric: Tensor) -> bool:
    """Whether :func:`mtrkit.scan.operators.nearest` takes this tensor."""
    return metric.dtype == torch.float32 and _runs_compiled(metric.device.type)


@constant_result  # compile takes the answer, not the search for the library
def _runs_compiled(device: str) -> bool:
    return device == "cpu" and not library().missing


def can_merge(tokens: Tensor) -> bool:
    """Whether :func:`mtrkit.native.tokens.merge` takes these: float32 on a CPU, no derivative wanted, no one looks."""
    return inference_fuses(tokens) and unwatched(tokens)


def can_number(kept: Tensor) -> bool:
    """Whether :func:`mtrkit.native.tokens.number` takes these positions."""
    return kept.is_cpu and kept.dtype is torch.int64 and fuses() and unwatched(kept)


def unwatched(x: Tensor) -> bool:
    """Whether nobody traces, transforms or profiles: going through torch's dispatcher would then only take time."""
    if torch.compiler.is_compiling() or type(x) is not Tensor:
        return False
    watched = torch._C._len_torch_dispatch_stack() or torch._C._get_tracing_state() is not None
    watched = watched or torch._C._autograd._profiler_enabled()
    return not watched and torch._C._functorch.peek_interpreter_stack() is None
