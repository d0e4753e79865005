"""The one door to whole mixers, norms and reductions by kernels: whether a call may go straight there is said here.

A call passes if the backend in force is ``"native"`` and the tensors are on a CPU (float32; whole mixers, norms and
merges take 16 bits too), or if it is ``"triton"``; if the tensors hold what they show; and if nothing has to see what
happens inside: no derivative, no autocast, no tracer, no transform, no mode of torch functions, no hook.
"""

from collections.abc import Iterable, Mapping
from typing import Any, TypeGuard, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from mtrkit.dynamo import constant_result
from mtrkit.native.jobs import has_memory
from mtrkit.native.library import BLOCK, current_level, library
from mtrkit.native.weights import MixerWeights
from mtrkit.scan.dispatch import backend_of, under_transform
from mtrkit.scan.kernels import NATIVE, TRITON

M = TypeVar("M", bound=type[nn.Module])

# As they were when mtrkit was imported, but for those that another package had replaced by then.
_OWN_FORWARD: dict[type[nn.Module], Any] = {
    cls: cls.forward for cls in (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d) if cls.forward.__module__ == cls.__module__
}

MIXED = (torch.float32, torch.bfloat16, torch.float16)  # dtypes of tokens that whole mixers and norms take

_COUNTERS = ("torch.utils.module_tracker", "fvcore.nn.jit_analysis")  # whose hooks change nothing


def _native_can_run(device: str) -> bool:
    """Whether the compiled library is there for this device type, and ``"native"`` is the backend in force."""
    return device == "cpu" and _level() >= 0 and backend_of(device) == "native"


def native_is_fastest() -> bool:
    """Whether whole mixers in the compiled library are the fastest way on a CPU."""
    return _level() > 0 and backend_of("cpu") == "native"


@constant_result  # compile takes the answer, not the search for the library; it follows the backend in force
def _level() -> int:
    """The instruction set that the compiled library uses here, an index into its levels; −1 without a library."""
    return -1 if library().missing else current_level()


def inference_kernels(x: Tensor) -> str:
    """Name of the kernels that run mixers, norms and merges of tensors like ``x``; empty if torch's operators do."""
    if x.is_cpu and x.dtype in MIXED and native_is_fastest():
        return NATIVE
    return TRITON if backend_of(x.device.type, x.dtype) == TRITON else ""


def _for_inference(x: Tensor) -> bool:
    """Whether there are :func:`inference_kernels`, and neither a derivative nor another precision is wanted."""
    if torch.is_grad_enabled() or x.is_meta or torch.is_autocast_enabled(x.device.type):
        return False
    return inference_kernels(x) != "" and not (under_transform() or _functions_are_watched())


def can_add_and_norm(x: Tensor, residual: Tensor, weight: Tensor) -> bool:
    """Whether sum and norm may be one operator."""
    if not _for_inference(x) or not plain_tensors((weight,)):
        return False
    return residual.dtype is torch.float32 or (residual.dtype is x.dtype and inference_kernels(x) == TRITON)


def no_tracing(x: Tensor) -> bool:
    """True outside of tracing, modes, transforms and profiling: torch's dispatcher may then be left out."""
    if torch.compiler.is_compiling() or type(x) is not Tensor:
        return False
    watched = torch._C._len_torch_dispatch_stack() or torch._C._get_tracing_state() is not None
    watched = watched or _functions_are_watched()
    return not (watched or torch._C._autograd._profiler_enabled() or under_transform())


def can_mix(weights: object, hidden: Tensor) -> TypeGuard[MixerWeights]:
    """Whether a whole mixer may be one operator: weights without outer biases, and :func:`_for_inference`."""
    return fits_operator(weights, hidden.dtype) and _for_inference(hidden)


def can_mix_alone(weights: object, hidden: Tensor) -> TypeGuard[MixerWeights]:
    """:func:`can_mix` in the compiled library itself, with nothing between it and the tensors."""
    return no_tracing(hidden) and can_mix(weights, hidden) and inference_kernels(hidden) == NATIVE


def fits_operator(weights: object, dtype: torch.dtype) -> TypeGuard[MixerWeights]:
    """The part of :func:`can_mix` that is of one mixer, and not of the whole pass."""
    if not isinstance(weights, MixerWeights) or weights.in_bias is not None or weights.out_bias is not None:
        return False
    return dtype is weights.in_proj.dtype  # torch has a word on others


def can_chain(x: Tensor, residual: object) -> bool:
    """Whether several blocks may be one call: the residual is float32, and nothing sees what is between them.

    Each of their mixers is asked for by :func:`fits_operator`.
    """
    return no_tracing(x) and _fits_chain(x, residual)


def can_record(x: Tensor, residual: object) -> bool:
    """:func:`can_chain` in a graph of torch.compile; what is exported stays block by block, for other tools."""
    return torch.compiler.is_dynamo_compiling() and not _exports() and _fits_chain(x, residual)


def _exports() -> bool:
    """Whether the graph is for torch.export; torch 2.6 does not tell, and may always."""
    return not hasattr(torch.compiler, "is_exporting") or torch.compiler.is_exporting()


def _fits_chain(x: Tensor, residual: object) -> bool:
    """The part of :func:`can_chain` that is of the tokens, and not of who looks on."""
    if x.dtype not in MIXED or x.shape[-1] % BLOCK:
        return False
    plain = residual is None or (isinstance(residual, Tensor) and residual.dtype is torch.float32)
    return plain and _for_inference(x) and inference_kernels(x) == NATIVE


def _functions_are_watched() -> bool:
    """Whether a mode of ``__torch_function__`` may change what the single functions of a mixer do."""
    count = torch._C._len_torch_function_stack()
    if not count:
        return False
    modes = [type(torch._C._get_function_stack_at(i)) for i in range(count)]
    if torch.compiler.is_compiling():  # tracers have modes of their own, which only look
        return any(not mode.__module__.startswith("torch.") for mode in modes)
    # A DeviceContext only chooses where new tensors are made; by name, as importing it takes time.
    return any(mode.__name__ != "DeviceContext" for mode in modes)


def matching_kernels(metric: Tensor) -> str:
    """Name of the kernels that match by this tensor, or nothing; derivatives or not, as what they find only ranks."""
    if under_transform() or not (torch.compiler.is_compiling() or has_memory(metric)):
        return ""
    device = metric.device.type
    if metric.dtype == torch.float32 and _native_can_run(device):
        return NATIVE
    return TRITON if backend_of(device, metric.dtype) == TRITON else ""


def can_split(score: Tensor, special: Tensor) -> bool:
    """Whether :func:`mtrkit.native.tokens.split` takes these scores; positions have no derivatives."""
    plain = score.is_cpu and score.dtype is torch.float32 and type(score) is Tensor
    return plain and numbering_kernels(special) == NATIVE


def merging_kernels(tokens: Tensor, slot: Tensor) -> str:
    """Name of the kernels that merge these tokens into the slots that they go to, or nothing."""
    alone = _for_inference(tokens) and no_tracing(tokens) and plain_tensors((slot,))
    return inference_kernels(tokens) if alone else ""


def numbering_kernels(kept: Tensor, *others: Tensor) -> str:
    """Name of the kernels that number slots by these positions, or nothing."""
    if kept.dtype is not torch.int64 or not no_tracing(kept) or not plain_tensors(others):
        return ""
    if kept.is_cpu and native_is_fastest():
        return NATIVE
    return TRITON if backend_of(kept.device.type) == TRITON else ""


def plain_tensors(tensors: Iterable[Tensor | None]) -> bool:
    """Whether none of them is of a subclass, such as a quantised weight, that computes in its own way."""
    return all(x is None or type(x) is nn.Parameter or type(x) is Tensor for x in tensors)


def _is_plain(module: nn.Module) -> bool:
    """Whether calling the module runs the ``forward`` of a class that mtrkit knows, and nothing else.

    Not so for a subclass, with hooks of any kind, a ``forward`` of the instance's own, or one that the class was
    given later; nor for a convolution that does more than look back over its neighbours.
    """
    if own_forward(module) is not None or not runs_own_code(module):
        return False
    return type(module) is not nn.Conv1d or _looks_back(module.__dict__)


def own_forward(module: nn.Module) -> Any:
    """The ``forward`` of the instance's own; ``None`` without one."""
    own = module.__dict__
    if "forward" in own:
        return own["forward"]
    _ = module.forward  # compile watches what is read so, and notices if the instance gets one later
    return None


def runs_own_code(module: nn.Module) -> bool:
    """:func:`_is_plain`, but that the module may have a ``forward`` of its own, which the caller looks at."""
    cls = type(module)
    known = _OWN_FORWARD.get(cls)
    return known is not None and cls.forward is known and not _is_hooked(module.__dict__)


def _is_hooked(own: dict[str, Any]) -> bool:
    """Whether a module of these attributes has hooks that see what it is given or what it gives."""
    forward, before = own["_forward_hooks"], own["_forward_pre_hooks"]
    backward, ahead = own["_backward_hooks"], own["_backward_pre_hooks"]
    return _any_count((forward, before, backward, ahead))


def _any_count(kinds: tuple[Mapping[int, Any], ...]) -> bool:
    """Whether there are hooks of these four kinds that do more than note which module runs, to count its FLOPs."""
    if not (kinds[0] or kinds[1] or kinds[2] or kinds[3]):  # compile does not notice a change behind `any`
        return False
    return any(getattr(hook, "__module__", None) not in _COUNTERS for kind in kinds for hook in kind.values())


def _looks_back(conv: dict[str, Any]) -> bool:
    """Whether a convolution of these attributes is a mixer's: depthwise, causal once its end is cut off."""
    past = conv["kernel_size"][0] - 1
    plain = conv["dilation"] == (1,) and conv["stride"] == (1,) and conv["padding_mode"] == "zeros"
    return (
        plain and conv["padding"] in ((past,), (0,)) and conv["groups"] == conv["in_channels"] == conv["out_channels"]
    )


def are_plain(modules: Iterable[nn.Module]) -> bool:
    """Whether :func:`_is_plain` for all of them, and no hook holds for every module."""
    kinds = (
        torch_module._global_forward_hooks,
        torch_module._global_forward_pre_hooks,
        torch_module._global_backward_hooks,
        torch_module._global_backward_pre_hooks,
    )
    return not _any_count(kinds) and all(map(_is_plain, modules))


def tells_all(layer: nn.Module, weights: bool = True) -> bool:
    """Whether a layer computes what its weights say, so that code which reads them needs not call it.

    So does a parametrized one, and one that accelerate moves between devices; not one with hooks or quantised weights.
    With ``weights=False`` only what is around the weights counts, which may be sharded until the layer runs.
    """
    own, forward = layer.__dict__, type(layer).forward
    if _is_hooked(own) or not any(forward is known for known in map(_OWN_FORWARD.get, (nn.Linear, nn.Conv1d))):
        return False
    if isinstance(layer, nn.Conv1d) and not _looks_back(own):
        return False
    moved = type(own.get("_hf_hook")).__name__ == "AlignDevicesHook"  # which only moves weights and inputs
    if own_forward(layer) is not None and not moved:
        return False
    return not weights or plain_tensors((layer.weight,))  # type: ignore[arg-type]


def known_forward(cls: M) -> M:
    """Decorate a class of mtrkit's own models, so that :func:`_is_plain` knows it."""
    _OWN_FORWARD[cls] = cls.forward
    return cls
