"""What a measurement was made on: a figure without this cannot be compared with another."""

import importlib.metadata
import os
import platform
import subprocess
import sys
from datetime import datetime, timezone
from pathlib import Path

import torch

import mtrkit
from mtrkit.scan import backend_for, backend_reason


def describe_machine(device: torch.device) -> dict[str, str | int]:
    """Processor, versions, threads, scan backend and its instructions, commit and time, as plain data."""
    scan = backend_for(device)
    metadata: dict[str, str | int] = {
        "device": device_name(device),
        "system": f"{platform.system()} {platform.machine()}",
        "cores": _usable_cores(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "mtrkit": mtrkit.__version__,
        "scan": scan,
        "scan_reason": backend_reason(scan),
        "commit": _commit(),
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }
    if device.type == "cuda":
        metadata |= {"cuda": torch.version.cuda or "", "triton": version_of("triton") or ""}
    return metadata


def version_of(package: str) -> str | None:
    """The installed version of a distribution, or ``None``."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def device_name(device: torch.device) -> str:
    """What the maker calls the processor."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return _cpu_name() if device.type == "cpu" else str(device)


def _cpu_name() -> str:
    if sys.platform == "linux":
        for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _usable_cores() -> int:
    """Cores that this process may run on, which a container can make fewer than the machine has."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def _commit() -> str:
    """The commit of the source tree that mtrkit is imported from, with ``+`` if changed; else empty."""
    root = Path(mtrkit.__file__).parents[1]
    if not (root / ".git").exists():
        return ""
    commands = (["rev-parse", "--short=12", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
    try:
        found, changed = (
            subprocess.run(["git", "-C", str(root), *command], capture_output=True, text=True, check=True).stdout
            for command in commands
        )
    except (OSError, subprocess.CalledProcessError):
        return ""
    return found.strip() + ("+" if changed.strip() else "")
