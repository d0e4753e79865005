"""Check every scan backend against the reference on this machine, and say what is missing and what to do.

Each backend runs a small random problem, forward and backward, in float32; the errors are against the
reference in float64, relative to the largest value. The exit code is 1 if a backend that runs is wrong.
"""

import argparse
import importlib
import platform

import torch

import mtrkit
from mtrkit.cli.console import Output
from mtrkit.measure import Parity, check_backend, describe_machine, device_name, version_of
from mtrkit.scan import backend_for, scan_backends, slow_scan

EPILOG = """examples:
  mtrkit doctor
  mtrkit doctor --json
"""

_PACKAGES = {  # distribution → (import name, or None if its version is all we ask, what it is for, what to do)
    "numpy": ("numpy", "arrays", "pip install numpy"),
    "pillow": ("PIL", "images", "pip install pillow"),
    "safetensors": ("safetensors", "checkpoints", "pip install safetensors"),
    "timm": ("timm", "our models in timm.create_model", "pip install timm"),
    "torchvision": ("torchvision", "timm imports it; mtrkit needs none", "install the build that fits your torch"),
    "triton": (None, "scan and torch.compile on a GPU", "pip install triton"),
    "huggingface-hub": (None, "fetching official checkpoints", "pip install huggingface-hub"),
}
_CUDA_ONLY = {  # the same, for packages that are of use with an NVIDIA GPU only
    "mamba-ssm": (
        "its CUDA scan",
        "optional. Wheels exist up to torch 2.10; to compile it, with nvcc: MAMBA_KEEP_CUDA_BUILD=TRUE "
        "pip install mamba-ssm --no-build-isolation",
    ),
    "causal-conv1d": ("its CUDA convolution", "optional: pip install causal-conv1d --no-build-isolation"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """It takes none."""
    del parser


def run(args: argparse.Namespace) -> int:
    """Print backends, packages and advice."""
    out = Output(args.json)
    devices = [torch.device("cpu"), *([torch.device("cuda")] if torch.cuda.is_available() else [])]
    out.say(
        f"mtrkit {mtrkit.__version__}, python {platform.python_version()}, torch {torch.__version__}, "
        f"{platform.system()} {platform.machine()}, {torch.get_num_threads()} threads",
        *(f"{device}: {_device_note(device)}" for device in devices),
    )
    advice = [slow for device in devices if (slow := slow_scan(device))]
    out.say(*advice)
    checked = [(name, device, check_backend(name, device)) for name in _names() for device in devices]
    rows = [(name, str(device), *_verdict(found)) for name, device, found in checked]
    columns = ("scan backend", "device", "result", "forward error", "backward error", "why")
    out.table(columns, rows, text=(0, 1, 2, 5))
    packages = _package_rows()
    out.table(("package", "version", "what for", "what to do"), packages, text=(0, 1, 2, 3))
    wrong = [name for name, _, found in checked if isinstance(found, Parity) and not found.good]
    if wrong:
        out.say(f"Wrong results from {', '.join(wrong)}: please report this table, and use another backend meanwhile.")
    found = {"backends": [_backend_fields(*line) for line in checked], "wrong": wrong, "advice": " ".join(advice)}
    out.document(_machine_fields(devices) | found | {"packages": [_package_fields(*row) for row in packages]})
    return 1 if wrong else 0


def _names() -> list[str]:
    return [status.name for status in scan_backends()]


def _device_note(device: torch.device) -> str:
    return f"{device_name(device)}, models run on scan backend {backend_for(device)!r}"


def _machine_fields(devices: list[torch.device]) -> dict[str, object]:
    found = [{"device": str(device), "name": device_name(device), "scan": backend_for(device)} for device in devices]
    return {"machine": describe_machine(devices[-1]), "devices": found}


def _package_fields(package: str, version: str, purpose: str, advice: str) -> dict[str, str]:
    return {"package": package, "version": version, "purpose": purpose, "advice": advice}


def _backend_fields(name: str, device: torch.device, found: Parity | str) -> dict[str, object]:
    """The same as data."""
    result, _, _, why = _verdict(found)
    errors = (None, None) if isinstance(found, str) else (found.forward, found.backward)
    about = {"backend": name, "device": str(device), "result": result}
    return about | {"forward_error": errors[0], "backward_error": errors[1], "reason": why}


def _verdict(found: Parity | str) -> tuple[str, str, str, str]:
    if isinstance(found, str):
        return "not here", "", "", found
    return "right" if found.good else "WRONG", f"{found.forward:.1e}", f"{found.backward:.1e}", ""


def _package_rows() -> list[tuple[str, str, str, str]]:
    """Name, version, purpose and advice; no advice for what is well."""
    rows = []
    for name, (module, purpose, advice) in _PACKAGES.items():
        condition, todo = _condition(name, module, advice)
        rows.append((name, condition, purpose, todo))
    for name, (purpose, advice) in _CUDA_ONLY.items():
        condition, todo = _condition(name, None, advice)
        rows.append((name, condition, purpose, todo if torch.cuda.is_available() else "nothing: there is no GPU"))
    return rows


def _condition(name: str, module: str | None, advice: str) -> tuple[str, str]:
    """The version, with what to do if it is missing or cannot be imported."""
    version = version_of(name)
    if version is None:
        return "missing", advice
    try:
        if module:
            importlib.import_module(module)
    except Exception as error:  # a build for another torch fails in any way it likes
        return f"{version}, broken", f"{advice} ({type(error).__name__}: {error})"
    return version, ""
