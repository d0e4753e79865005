"""Put a checkpoint into a model: everything is checked first, so a failure leaves the model as it was."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mtrkit.errors import CheckpointError, OptionError
from mtrkit.models.checkpoint import Checkpoint, read_checkpoint
from mtrkit.models.fitting import Fit
from mtrkit.models.names import Ema, find_names
from mtrkit.models.origin import Origin, origin_named

_FLOATS = {torch.float64, torch.float32, torch.bfloat16, torch.float16}
_SIGNS = {  # names in state dicts of models that look like Vim and are not
    r"^rope\.freqs_": "a Vim with rotary positions (RoPE), such as the January 2024 release "
    "vim_tiny_73p1.pth, which is not supported; use a midclstok release",
    r"^temporal_pos_embedding$": "a VideoMamba for videos",
    r"^pos_embed_cls$": "Mamba-Reg, whose registers these models do not have",
    r"^cls_token_(head|tail)$": "a Vim with two class tokens, which is not supported",
    r"\.mixer\.(A_log|conv1d)_\d": "LocalVim or another model with more than two scan directions",
    r"\.mixer\.gamma$": "a Vim with layer scale (init_layer_scale), which is not supported",
    r"\.attn\.qkv\.": "a vision transformer",
    r"\.(mixer|op)\.(x_proj_weight|A_logs)$|\.op\.out_norm\.": "VMamba",
}


def load_checkpoint(
    model: nn.Module,
    path: str | Path,
    *,
    ema: Ema = "auto",
    new_head: bool = False,
    initial: bool = False,
    origin: str | None = None,
    pos_grid: tuple[int, int] | None = None,
) -> None:
    """Load weights strictly: the same names, shapes that fit, finite values, and of the same model.

    A prefix before the names is found and taken off. What the model can do is adapted: another number of channels,
    positions for another image size, a class token for a model without, images for clips. Weights that fit and are
    of another model are refused: of another family or another stride. docs/checkpoints.md lists it all.

    Args:
        model: One of ``mtrkit.models``, or any module whose parameters have the names in the file.
        path: What :func:`load_state_dict` reads.
        ema: Whether to take the averaged weights, see :func:`load_state_dict`.
        new_head: Whether to keep the model's own ``head`` if the file has none or one of another number of classes, as
            one does for fine-tuning. Default: that is an error.
        initial: Whether the weights are only where training begins, so that those of another model may be taken.
        origin: The name of the model that the file is of, if the file does not say it or says it wrongly, such as
            ``"videomamba_tiny_patch16_224"``. Default: what the file says.
        pos_grid: Rows and columns of the file's position table. Default: what the file says, or a square.

    Warns:
        CheckpointWarning: Something was adapted or assumed: once for a file, with all of it.

    Raises:
        CheckpointError: Unreadable, or it does not belong to the model.
        OptionError: ``origin`` is not a name of a known family.
    """
    found = read_checkpoint(path, ema)
    if origin is not None:
        found.origin = _origin_given(origin)
    fit = Fit(found.origin, new_head, initial, pos_grid, found.notes)
    load_state(model, found, fit)
    found.warn()


def _origin_given(name: str) -> Origin:
    origin = origin_named(name, "the option origin")
    if origin is None:
        raise OptionError(f"origin={name!r} is not a model's name such as 'vim_tiny_patch16_224' or 'videomamba_tiny'")
    return origin


def load_state(model: nn.Module, found: Checkpoint, fit: Fit | None = None) -> None:
    """:func:`load_checkpoint` of what was read from a file, or of a part of it."""
    fit = Fit(found.origin, notes=found.notes) if fit is None else fit
    try:
        expected = model.state_dict()
        state, note = find_names(found.state, expected, found.ema)
        adapt = getattr(model, "adapt_state_dict", None)
        own_notes = len(fit.notes)
        state = state if adapt is None else adapt(state, fit)
        fit.notes[own_notes:own_notes] = [note] if note else []
        state = _fit_head(state, expected, fit)
        _check_names(state, expected)
        _check_values(state, expected)
    except CheckpointError as error:
        raise CheckpointError(f"{found.path} does not fit {_described(model)}: {error}") from error
    model.load_state_dict(state)


def family_of(keys: Iterable[str]) -> str | None:
    """What a state dict with these keys belongs to if that is another family, otherwise ``None``."""
    names = list(keys)
    for sign, family in _SIGNS.items():
        if any(re.search(sign, name) for name in names):
            return family
    if any(name.endswith("mixer.A_log") for name in names) and not any("conv1d_b" in name for name in names):
        return "a Mamba without backward weights (bimamba_type v1 or none), which is not supported"
    return None


def _fit_head(state: dict[str, Tensor], expected: dict[str, Any], fit: Fit) -> dict[str, Tensor]:
    """Leave the file's classifier out if the model has none, or put the model's own in its place."""
    head = {key: value for key, value in state.items() if key.startswith("head.")}
    own = {key: value for key, value in expected.items() if key.startswith("head.")}
    if head and not own:
        fit.notes.append("the file's head was left out, as the model has none")
        return {key: value for key, value in state.items() if key not in head}
    problem = _head_problem(head, own)
    if not problem:
        return state
    if not fit.new_head:
        raise CheckpointError(f"{problem}, or pass new_head=True to keep its own head")
    fit.notes.append("the model keeps its own head")
    return {key: value for key, value in state.items() if key not in head} | own


def _head_problem(head: dict[str, Tensor], own: dict[str, Any]) -> str:
    """Why the file's head cannot be taken by name; empty if strict loading may see to it."""
    if not {"head.weight", "head.bias"} <= own.keys():
        return ""
    if not head:
        return "the file has no head, the model has: build the model with num_classes=0"
    given, asked = (len(of["head.bias"]) if "head.bias" in of else 0 for of in (head, own))
    if not given or head["head.bias"].shape == own["head.bias"].shape:
        return ""
    return f"the file's head has {given} classes, the model's {asked}: build the model with num_classes={given}"


def _check_names(state: dict[str, Tensor], expected: dict[str, Any]) -> None:
    found = {
        "missing": [key for key in expected if key not in state],
        "unexpected": [key for key in state if key not in expected],
        "of another shape": [
            f"{key} {tuple(value.shape)} instead of {tuple(expected[key].shape)}"
            for key, value in state.items()
            if key in expected and value.shape != expected[key].shape
        ],
    }
    problems = [f"{len(names)} {what} ({_some(names)})" for what, names in found.items() if names]
    if problems:
        raise CheckpointError(f"{'; '.join(problems)}. Choose the model and options the file was made with")


def _check_values(state: dict[str, Tensor], expected: dict[str, Any]) -> None:
    kinds = [
        f"{key} is {value.dtype}"
        for key, value in state.items()
        if value.dtype != expected[key].dtype and not {value.dtype, expected[key].dtype} <= _FLOATS
    ]
    if kinds:
        raise CheckpointError(f"{len(kinds)} tensors are of another kind of number ({_some(kinds)})")
    bad = [key for key, value in state.items() if not torch.isfinite(value.to(expected[key].dtype)).all()]
    if bad:
        raise CheckpointError(f"{len(bad)} tensors have NaN or infinite values ({_some(bad)})")


def _described(model: nn.Module) -> str:
    architecture = getattr(model, "pretrained_cfg", {}).get("architecture")
    return architecture or type(model).__name__


def _some(items: list[str], limit: int = 3) -> str:
    return ", ".join(items[:limit]) + (", ..." if len(items) > limit else "")
