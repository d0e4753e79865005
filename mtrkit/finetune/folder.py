"""A run's folder: what produced it, and checkpoints of which the last good one is always there."""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mtrkit.errors import InputError

_KEPT = 2  # checkpoints


class RunFolder:
    """The folder of one run; see :meth:`claim` before anything is written."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    @property
    def log(self) -> Path:
        """Where the curve is written, as CSV."""
        return self.path / "log.csv"

    @property
    def weights(self) -> Path:
        """Where the result is written."""
        return self.path / "model.safetensors"

    @property
    def added(self) -> Path:
        """Where DyVM's parts are written, for ``apply_reduction(model, checkpoint=…)``."""
        return self.path / "dyvm.safetensors"

    def claim(self, identity: Mapping[str, Any], about: Mapping[str, Any]) -> None:
        """Write what the run is, or check that the folder is of the same run.

        Args:
            identity: What decides the result, as plain data.
            about: Machine, versions and command; may differ when a run goes on.

        Raises:
            InputError: The folder belongs to another run, or holds other things, or cannot be written.
        """
        file, plain = self.path / "run.json", json.loads(json.dumps(identity))
        if file.exists():
            before = _read(file).get("run", {})
            changed = sorted(name for name in {*before, *plain} if before.get(name) != plain.get(name))
            if changed:
                what = ", ".join(f"{name}: {before.get(name)!r} → {plain.get(name)!r}" for name in changed)
                raise InputError(
                    f"{self.path} is the folder of another run ({what}); give another folder, or this run's"
                )
            return
        if self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
            raise InputError(f"{self.path} is not empty and not the folder of a run; give a new folder")
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            text = json.dumps({"run": plain, "made by": about}, indent=1, ensure_ascii=False, default=str)
            file.write_text(text + "\n", encoding="utf-8", errors="backslashreplace")  # names may be any bytes
        except OSError as error:
            raise InputError(f"{self.path} cannot be written ({error}); give a folder that can") from error

    def checkpoints(self) -> list[Path]:
        """Whole checkpoints, the earliest first."""
        found = [path for path in self.path.glob("step-*") if path.is_dir() and path.name[5:].isdecimal()]
        return sorted(found, key=step_of)

    def part(self, step: int) -> Path:
        """Where a checkpoint is written before it is whole."""
        return self.path / f"part-{step}"

    def clear(self, step: int) -> None:
        """Make room for a checkpoint's parts."""
        shutil.rmtree(self.part(step), ignore_errors=True)
        self.part(step).mkdir(parents=True)

    def keep(self, step: int) -> None:
        """Make the parts the last good checkpoint in one move, once they are on the disk, and drop old ones."""
        part = self.part(step)
        for file in part.rglob("*"):
            _flush(file)
        shutil.rmtree(self.path / f"step-{step}", ignore_errors=True)
        os.rename(part, self.path / f"step-{step}")
        _flush(self.path)
        for old in self.checkpoints()[:-_KEPT]:
            shutil.rmtree(old, ignore_errors=True)

    def last_good(self) -> str:
        """The last checkpoint, for a message."""
        found = self.checkpoints()
        return f"{found[-1]} is the last good checkpoint" if found else "no checkpoint was written yet"


def step_of(checkpoint: Path) -> int:
    """The step behind which it was written."""
    return int(checkpoint.name[5:])


def _read(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{file} cannot be read ({error}); give another folder") from error
    return found if isinstance(found, dict) else {}


def _flush(path: Path) -> None:
    """Have the system write a file or folder to disk now."""
    if os.name == "nt" and path.is_dir():
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
