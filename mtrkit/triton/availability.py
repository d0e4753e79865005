"""Whether Triton's kernels can run here, and if not why not."""

import importlib.util
import os
from functools import lru_cache

import torch
from torch.utils._python_dispatch import _disable_current_modes

DEVICES = ("cuda", "xpu")
"""Types of devices that Triton compiles for, as torch names them; AMD's GPUs are "cuda" too."""

OLDEST = (3, 3)
"""Version of Triton whose kernels may hold tensors in tuples."""


def interpreted() -> bool:
    """Whether kernels run in Triton's interpreter, on a CPU and slowly: it reads the variable when it is imported."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "yes", "on", "y")


def refusal(device: str, dtype: torch.dtype) -> str:
    """Why kernels do not take tensors of this device type and dtype; empty if they do."""
    if device not in (*DEVICES, "cpu") or (device == "cpu" and not interpreted()):
        return f"it takes tensors on GPUs only, and these are on {device!r}"
    if dtype not in (torch.float32, torch.float16, torch.bfloat16):
        return f"it takes float32, float16 and bfloat16 only, not {dtype}"
    return ""


def status() -> tuple[bool, str]:
    """Whether kernels run, and on what or why not."""
    if interpreted():
        return _tried("cpu")
    device = next((name for name in DEVICES if getattr(torch, name).is_available()), None)
    return (False, "it needs a GPU, and torch sees none") if device is None else _tried(device)


@lru_cache
def _tried(device: str) -> tuple[bool, str]:
    """The same, by running a small kernel: only that shows that compiler, driver and device fit together."""
    if importlib.util.find_spec("triton") is None:
        return False, "Triton is not installed: pip install triton"
    try:
        import triton

        version = tuple(int(part) for part in triton.__version__.split(".")[:2])
        if version < OLDEST:
            wanted = ".".join(map(str, OLDEST))
            return False, f"Triton {triton.__version__} is too old; it needs {wanted}, which comes with torch 2.7"
        _run_trial(device)
    except Exception as error:  # compilers, drivers and half installations raise anything
        return False, f"Triton cannot run a kernel here ({type(error).__name__}: {str(error).strip()[:200]})"
    where = "in its interpreter, for tests" if device == "cpu" else f"compiled for {_name(device)}"
    return True, f"Triton {triton.__version__}, {where}"


def _run_trial(device: str) -> None:
    from mtrkit.triton.kernels.trial import add_up

    with _disable_current_modes():  # it may be asked for while a tracer stands for the data
        numbers, total = (torch.ones(count, dtype=torch.float32, device=device) for count in (32, 1))
        add_up[(1,)](numbers, total, BLOCK=32)
        if total.item() != 64:
            raise RuntimeError(f"a sum of 64 came out as {total.item()}")


def _name(device: str) -> str:
    return str(getattr(torch, device).get_device_name())
