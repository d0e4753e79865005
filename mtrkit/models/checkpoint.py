"""Read the weights in a checkpoint file, and what it says of their model, without running anything it may contain."""

import argparse
import re
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mtrkit.errors import CheckpointError, CheckpointWarning
from mtrkit.models.names import Ema, says_averaged, unwrap
from mtrkit.models.origin import Origin, origin_of

_EMA_FILES = {"vim_b_midclstok_81p9acc.pth"}  # official files with a published accuracy of the averaged weights
_PLAIN = ("model", "state_dict", "module", "model_state_dict", "student", "net")
_AVERAGED = ("model_ema", "state_dict_ema", "ema", "teacher")


@dataclass
class Checkpoint:
    """What was read from a file.

    Attributes:
        path: The file.
        state: Its weights by name, on the CPU.
        origin: What it says of the model they are of.
        notes: What was done to them, in sentences for the user.
        ema: Whether those behind a prefix that says so are wanted; ``"auto"`` once they were chosen by their key.
    """

    path: str | Path
    state: dict[str, Tensor]
    origin: Origin
    notes: list[str]
    ema: Ema = "auto"

    def warn(self) -> None:
        """Say once what was done."""
        if self.notes:
            warnings.warn(CheckpointWarning(f"{self.path}: {'; '.join(self.notes)}"), stacklevel=3)


def load_state_dict(path: str | Path, ema: Ema = "auto") -> dict[str, Tensor]:
    """Read a state dict from a ``.safetensors`` file or from what ``torch.save`` wrote, on the CPU.

    Known layouts: ``{"model": ..., "model_ema": ..., ...}`` as the official Vim code saves it, the same under
    ``"state_dict"``, ``"module"``, ``"student"`` and similar names, and the bare state dict; a ``module.`` or
    ``_orig_mod.`` before every key is taken off. Pickles are read with ``weights_only=True``, and of all classes only
    ``argparse.Namespace`` is allowed, which the official files contain and which can hold no code.

    Args:
        path: The file.
        ema: Whether the exponential moving average of the weights is wanted. Default ``"auto"``: where the
            published accuracy was measured on it (``vim_b_midclstok_81p9acc.pth``) or nothing else is there.

    Warns:
        CheckpointWarning: Names were changed.

    Raises:
        CheckpointError: No readable file, code in the pickle, or no state dict in it.
    """
    found = read_checkpoint(path, ema)
    found.warn()
    return found.state


def read_checkpoint(path: str | Path, ema: Ema = "auto") -> Checkpoint:
    """:func:`load_state_dict` with what the file says beside its weights; nothing is warned of yet."""
    file = Path(path)
    _check_file(file)
    content, metadata = _read_safetensors(file) if file.suffix == ".safetensors" else (_read_torch(file), {})
    key = _choose(content, file, ema)
    chosen: Any = content if key is None else content[key]
    state, wrappers = unwrap(_check_tensors(chosen, file))
    notes = [f"took {wrappers} off the names"] if wrappers else []
    if key in _AVERAGED and ema == "auto":
        notes.append(f"took the averaged weights under {key!r}")
    return Checkpoint(path, state, origin_of(metadata, content, file), notes, ema if key is None else "auto")


def _check_file(file: Path) -> None:
    try:
        exists = file.exists()
    except (OSError, ValueError) as error:  # a name that is too long, or has a null byte
        raise CheckpointError(f"{str(file)[:80]!r}... is not the name of a file ({type(error).__name__})") from error
    if not exists:
        raise CheckpointError(f"{file} does not exist; give a file, or hf:org/repo/file for the Hugging Face Hub")
    if not file.is_file():
        found = "a directory" if file.is_dir() else "not a regular file"
        raise CheckpointError(f"{file} is {found}; give the checkpoint file itself")
    if file.stat().st_size == 0:
        raise CheckpointError(f"{file} is empty; it was probably not downloaded completely, fetch it again")


def _read_safetensors(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    from safetensors import safe_open
    from safetensors.torch import load_file

    try:
        with safe_open(file, "pt") as opened:
            metadata = opened.metadata() or {}
        return load_file(file), metadata
    except Exception as error:  # SafetensorError or OSError, and ValueError for dtypes unknown to this torch
        raise CheckpointError(
            f"{file} is not a complete safetensors file ({error}); fetch it again, or rename it if it is a .pth"
        ) from error


def _read_torch(file: Path) -> Any:
    try:
        # A memory map leaves the optimizer's moments, most of an official file, on the disk.
        mapped = zipfile.is_zipfile(file)
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(file, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:  # a damaged pickle can fail in any way that a parser can
        raise CheckpointError(_unreadable(file, error)) from error


def _unreadable(file: Path, error: Exception) -> str:
    found = re.search(r"GLOBAL ([\w.]+)", str(error))
    if found:
        return (
            f"{file} asks for {found[1]}, which is more than data; it was refused and nothing was run. If "
            "you trust its source, load it yourself and save model.state_dict() alone, best as .safetensors"
        )
    reason = str(error).strip().partition("\n")[0] or type(error).__name__
    return (
        f"{file} ({file.stat().st_size} bytes) is not a complete PyTorch checkpoint ({type(error).__name__}: "
        f"{reason}). Fetch it again, and check that it is not a web page or a Git LFS pointer"
    )


def _choose(content: Any, file: Path, ema: Ema) -> str | None:
    """The key under which a training run saved the wanted weights; ``None`` for a bare state dict."""
    if not isinstance(content, Mapping):
        kind = type(content).__name__
        raise CheckpointError(f"{file} holds a {kind}; expected a state dict, or a dict with one under 'model'")
    found = [key for key in (*_PLAIN, *_AVERAGED) if isinstance(content.get(key), Mapping)]
    plain: list[str | None] = [key for key in found if key in _PLAIN]
    averaged: list[str | None] = [key for key in found if key in _AVERAGED]
    if not found:  # a bare state dict, perhaps with both behind prefixes
        plain, averaged = [None], [None] if any(says_averaged(str(name)) for name in content) else []
    either = averaged + plain if file.name in _EMA_FILES else plain + averaged
    wanted = {True: averaged, False: plain, "auto": either}[ema]
    if not wanted:
        kind, instead = "averaged (EMA)" if ema else "plain", ", ".join(found) or "a bare state dict"
        raise CheckpointError(f"{file} has no {kind} weights, only {instead}; pass ema={not ema}")
    return wanted[0]


def _check_tensors(state: Mapping[Any, Any], file: Path) -> dict[str, Tensor]:
    others = [f"{key!r} ({type(value).__name__})" for key, value in state.items() if not _is_plain(value)]
    others += [repr(key) for key in state if not isinstance(key, str)]
    if others or not state:
        found = f"{len(others)} of them not named plain tensors, such as {others[0]}" if others else "no weights"
        raise CheckpointError(
            f"{file} holds a dict of {len(state)}, {found}; expected a state dict, or one under 'model'"
        )
    return dict(state)


def _is_plain(value: Any) -> bool:
    """A tensor with memory for each of its elements: not sparse, not meta, not one value expanded to many."""
    if not isinstance(value, Tensor) or value.layout != torch.strided or value.is_meta or value.is_quantized:
        return False
    return value.untyped_storage().nbytes() >= value.numel() * value.element_size()
