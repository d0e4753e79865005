"""Put a checkpoint into a model: everything is checked first, so a failure leaves the model as it was."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mtrkit.errors import CheckpointError
from mtrkit.models.checkpoint import Ema, load_state_dict

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


def load_checkpoint(model: nn.Module, path: str | Path, *, ema: Ema = "auto", new_head: bool = False) -> None:
    """Load weights strictly: the same names, shapes that fit, finite values.

    A position table for another image size or stride is interpolated if the model can do that, and patches of RGB are
    summed for a model of one channel, or given in turn to the channels of one that has more, as timm does it.

    Args:
        model: One of ``mtrkit.models``, or any module whose parameters have the names in the file.
        path: What :func:`load_state_dict` reads.
        ema: Whether to take the averaged weights, see :func:`load_state_dict`.
        new_head: Whether to keep the model's own ``head`` if the file's has another number of classes, as
            one does for fine-tuning. Default: that is an error.

    Raises:
        CheckpointError: Unreadable, or it does not belong to the model.
    """
    load_state(model, load_state_dict(path, ema), path, new_head)


def load_state(model: nn.Module, state: dict[str, Tensor], path: str | Path, new_head: bool = False) -> None:
    """:func:`load_checkpoint` of a state dict that was read from ``path``, or from a part of it."""
    try:
        adapt = getattr(model, "adapt_state_dict", None)
        state = state if adapt is None else adapt(state)
        expected = model.state_dict()
        state = _fit_channels(_fit_head(state, expected, new_head), expected)
        _check_names(state, expected)
        _check_values(state, expected)
    except CheckpointError as error:
        raise CheckpointError(f"{path} does not fit {_described(model)}: {error}") from error
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


def _fit_head(state: dict[str, Tensor], expected: dict[str, Any], new_head: bool) -> dict[str, Tensor]:
    """Leave the file's classifier out if the model has none, or put the model's own in its place."""
    head = {key: value for key, value in state.items() if key.startswith("head.")}
    own = {key: value for key, value in expected.items() if key.startswith("head.")}
    if "head.bias" in head and "head.bias" in own and head["head.bias"].shape != own["head.bias"].shape:
        if not new_head:
            given, asked = head["head.bias"].numel(), own["head.bias"].numel()
            raise CheckpointError(
                f"the file's head has {given} classes, the model's {asked}: build the model with "
                f"num_classes={given}, or pass new_head=True to keep its own head"
            )
        return state | own
    return state if own else {key: value for key, value in state.items() if key not in head}


def _fit_channels(state: dict[str, Tensor], expected: dict[str, Any]) -> dict[str, Tensor]:
    """Weights of the patches for another number of channels than three."""
    key = "patch_embed.proj.weight"
    given, own = state.get(key), expected.get(key)
    if given is None or own is None or given.dim() < 4 or given.shape[1] != 3:
        return state
    channels = own.shape[1]
    if channels == 3 or own.shape != (given.shape[0], channels, *given.shape[2:]):
        return state
    wide = given.to(torch.promote_types(given.dtype, own.dtype))  # a file may have half precision
    if channels == 1:
        return state | {key: wide.sum(dim=1, keepdim=True)}
    turns = [index % 3 for index in range(channels)]
    return state | {key: wide[:, turns] * (3 / channels)}


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
    bad = [key for key, value in state.items() if not torch.isfinite(value).all()]
    if bad:
        raise CheckpointError(f"{len(bad)} tensors have NaN or infinite values ({_some(bad)})")


def _described(model: nn.Module) -> str:
    architecture = getattr(model, "pretrained_cfg", {}).get("architecture")
    return architecture or type(model).__name__


def _some(items: list[str], limit: int = 3) -> str:
    return ", ".join(items[:limit]) + (", ..." if len(items) > limit else "")
