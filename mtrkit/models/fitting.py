"""Fit the weights of a checkpoint to a model that takes other inputs, and refuse those of another model.

Each function takes and returns a state dict and says in ``fit.notes`` what it has changed or taken for granted.
"""

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from mtrkit.errors import CheckpointError
from mtrkit.models.origin import Origin, class_place, family_name
from mtrkit.models.positions import (
    ClassToken,
    Grid,
    class_index,
    grid_of,
    insert_at,
    resize_positions,
    square_grid,
)
from mtrkit.ops import columns_without

State = dict[str, Tensor]
_PATCHES = "patch_embed.proj.weight"
_FAMILY_ADVICE = "Build a model of that family"
_STRIDE_ADVICE = "Build the model with that stride"


@dataclass
class Fit:
    """How weights are to be fitted to a model.

    Attributes:
        origin: The model that they are of, as far as it is known.
        new_head: Whether the model may keep its own head, and its own class token if they have none.
        initial: Whether they are only where training begins: those of another family or stride are let in.
        pos_grid: Rows and columns of their position table, if they do not follow from its length.
        notes: What was done, in sentences for the user.
    """

    origin: Origin = field(default_factory=Origin)
    new_head: bool = False
    initial: bool = False
    pos_grid: Grid | None = None
    notes: list[str] = field(default_factory=list)


def fit_weights(state: State, model: Any, fit: Fit) -> State:
    """Everything below, one after the other.

    Raises:
        CheckpointError: The weights are of another model.
    """
    check_norm(state, model)
    if not model.num_registers:  # those are told by their names
        check_family(state, model, fit)
    check_stride(model, fit)
    for step in (fit_patches, fit_class_token, fit_positions):
        state = step(state, model, fit)
    return state


def check_norm(state: State, model: Any) -> None:
    """Refuse LayerNorm for RMSNorm and the other way round, by the option that decides it."""
    if "norm_f.weight" in state and model.rms_norm == ("norm_f.bias" in state):
        kind = "LayerNorm" if model.rms_norm else "RMSNorm, without biases"
        raise CheckpointError(f"the file has {kind}: build the model with rms_norm={not model.rms_norm}")


def check_family(state: State, model: Any, fit: Fit) -> None:
    """Refuse weights that have the model's names and are of another family; say what is assumed if nothing says it.

    Raises:
        CheckpointError: Another place of the class token or sum of directions.
    """
    found = _seen(state, fit.origin) if "cls_token" in state else fit.origin
    own = Origin("", family_name(model), model.class_token, model.layers[0].mixer.halve)
    places = {found.class_token, own.class_token} - {None, "none"}
    other = len(places) > 1 or found.halve not in (None, own.halve)
    if other:
        _let_in(f"the weights are of {found}, says {found.source}; the model is {own}", _FAMILY_ADVICE, fit)
    elif found.halve is None:
        fit.notes.append(
            f"the file does not say whether it is of Vim or of VideoMamba, whose files look alike; taken as {own}. Say "
            "origin=... with a model's name if it is not"
        )


def check_stride(model: Any, fit: Fit) -> None:
    """Refuse weights that are said to be of another stride."""
    found = fit.origin
    if found.stride not in (None, model.patch_embed.stride):
        said = f"the weights are of stride {_sides(found.stride)}, says {found.source}"
        _let_in(f"{said}; the model has {_sides(model.patch_embed.stride)}", _STRIDE_ADVICE, fit)


def _seen(state: State, origin: Origin) -> Origin:
    """What the position table shows if nothing else says it."""
    place = class_place(state["pos_embed"]) if origin.halve is None and "pos_embed" in state else None
    if place is None:
        return origin
    family = "vim" if place == "middle" else "videomamba"
    return Origin("the position table, in which one row is unlike those beside it", family, place, place == "middle")


def _let_in(found: str, advice: str, fit: Fit) -> None:
    """Say what was found if training is to begin there, otherwise refuse it."""
    if not fit.initial:
        raise CheckpointError(
            f"{found}. {advice}; or pass initial=True to begin training with these weights, or origin=... with a "
            "model's name if the file is not what it seems"
        )
    fit.notes.append(found)


def fit_patches(state: State, model: Any, fit: Fit) -> State:
    """Patch weights (D, C, h, w) for another number of channels, and for clips (D, C, t, h, w).

    Images become clips as in VideoMamba's code: the middle frame of a patch gets the weights, others zeros, and
    positions in time begin at zero. Channels are adapted as in timm: for one channel the sum over three; for others the
    three in turn, scaled so that an input of equal channels gives the same tokens.
    """
    weight, own = state.get(_PATCHES), model.patch_embed.proj.weight
    if weight is None:
        return state
    if weight.dim() == 4 and own.dim() == 5:
        frames = model.temporal_pos_embedding
        state = {"temporal_pos_embedding": torch.zeros(frames.shape, dtype=weight.dtype), **state}
        weight = _inflated(weight, own.shape[2])
        fit.notes.append("weights for images were put into the middle frame of each patch, positions in time at zero")
    given, wanted = weight.shape[1:2], own.shape[1:2]
    if weight.dim() == own.dim() and given != wanted and given[0] in (1, 3):
        fit.notes.append(f"the patch embedding for {weight.shape[1]} channels was adapted to {own.shape[1]}")
        weight = _for_channels(weight, own.shape[1])
    return {**state, _PATCHES: weight}


def _inflated(weight: Tensor, frames: int) -> Tensor:
    """(D, C, h, w) to (D, C, t, h, w), with zeros but in the middle."""
    clip = weight.new_zeros(*weight.shape[:2], frames, *weight.shape[2:])
    clip[:, :, frames // 2] = weight
    return clip


def _for_channels(weight: Tensor, channels: int) -> Tensor:
    """(D, C, ...) to (D, channels, ...)."""
    given, values = weight.shape[1], weight.to(torch.promote_types(weight.dtype, torch.float32))
    if channels == 1:
        return values.sum(1, keepdim=True)
    repeated = torch.cat([values] * math.ceil(channels / given), dim=1)[:, :channels]
    return repeated * (given / channels)


def fit_class_token(state: State, model: Any, fit: Fit) -> State:
    """Take the class token out for a model without, or put the model's own in for weights without.

    Raises:
        CheckpointError: The head, of the model or the file, would read something that it was not trained on.
    """
    table = state.get("pos_embed")
    has = "cls_token" in state
    if table is None or table.dim() != 3 or has == bool(model.num_class_tokens) or model.num_registers:
        return state
    if has:
        return _without_class(state, table, model, fit)
    if table.shape[1] == model.pos_embed.shape[1]:
        return state  # a row for it but no token: let strict loading report it
    return _with_class(state, table, model, fit)


def _without_class(state: State, table: Tensor, model: Any, fit: Fit) -> State:
    if model.num_classes and "head.weight" in state and not (fit.new_head or fit.initial):
        raise CheckpointError(
            "the file's head reads a class token, which the model has not: pass new_head=True to keep the model's own "
            "head, num_classes=0 for none, or build the model with the class token"
        )
    place: ClassToken = "middle" if model.layers[0].mixer.halve else "front"
    place = fit.origin.class_token or class_place(table) or place
    index = class_index(place, table.shape[1] - 1)
    rest = {name: value for name, value in _its_head(state, model, fit).items() if name != "cls_token"}
    if index is None:
        return state
    fit.notes.append(f"the class token was left out with its position, row {index} (taken as: in the {place})")
    return {**rest, "pos_embed": columns_without(table, (index,))}


def _with_class(state: State, table: Tensor, model: Any, fit: Fit) -> State:
    if model.num_classes and not (fit.new_head or fit.initial):
        raise CheckpointError(
            "the file has no class token, which the model's head reads: pass new_head=True to train a new class token "
            "and head, or build the model with class_token='none'"
        )
    index, own = class_index(model.class_token, table.shape[1]), model.class_index
    row = model.pos_embed.detach()[:, own : own + 1].to(table)
    if index is None or row.shape[2] != table.shape[2]:
        return state
    fit.notes.append("the file has no class token; the model's own is kept, with its position")
    token = model.cls_token.detach().to(table)
    rest = _its_head(state, model, fit)
    return {**rest, "cls_token": token, "pos_embed": insert_at(table, row, index)}


def _its_head(state: State, model: Any, fit: Fit) -> State:
    """Without the head of the file, which read something else, if the model keeps its own."""
    drop = model.num_classes and fit.new_head
    return {name: value for name, value in state.items() if not (drop and name.startswith("head."))}


def fit_positions(state: State, model: Any, fit: Fit) -> State:
    """Interpolate a position table that was made for another grid of patches.

    Raises:
        CheckpointError: The grid cannot be told, or it is that of another stride.
    """
    table, own, new = state.get("pos_embed"), model.pos_embed.shape, model.patch_embed.grid_size
    if table is None or table.dim() != 3 or table.shape[::2] != own[::2]:
        return state  # strict loading reports it
    rows = table.shape[1] - model.num_class_tokens
    old = _grid_of(rows, table, model, fit)
    if old is None:
        return state
    other = _of_other_stride(old, model) if fit.origin.stride is None else ""
    if old == new:
        fit.notes += [f"{other}; taken as the model's"] if other else []
        return state
    if other:
        _let_in(f"{other}; the model has {_sides(model.patch_embed.stride)}", _STRIDE_ADVICE, fit)
    source = "" if old in (fit.pos_grid, fit.origin.grid) else ", taken as a square,"
    fit.notes.append(f"positions for {_sides(old)} patches{source} were interpolated to {_sides(new)}")
    return {**state, "pos_embed": resize_positions(table, old, new, model.class_token)}


def _grid_of(rows: int, table: Tensor, model: Any, fit: Fit) -> Grid | None:
    """Rows and columns that so many positions are for; ``None`` if there are no patches."""
    if fit.pos_grid is not None:
        if math.prod(fit.pos_grid) != rows:
            raise CheckpointError(f"pos_grid={fit.pos_grid} has {math.prod(fit.pos_grid)} places, the table {rows}")
        return fit.pos_grid
    if fit.origin.grid is not None and math.prod(fit.origin.grid) == rows:
        return fit.origin.grid
    if rows <= 0 or rows == math.prod(model.patch_embed.grid_size):
        return model.patch_embed.grid_size if rows > 0 else None
    grid = square_grid(rows)
    if grid is None:
        raise CheckpointError(
            f"pos_embed {tuple(table.shape)} instead of {tuple(model.pos_embed.shape)}: {rows} patches are no square, "
            "and the file does not say their grid; pass pos_grid=(rows, columns)"
        )
    return grid


def _of_other_stride(old: Grid, model: Any) -> str:
    """Whether another stride gives this grid for the images of the model or of its name; empty if none does."""
    embed = model.patch_embed
    named = model.pretrained_cfg.get("input_size", embed.img_size)[-2:]
    for size in {embed.img_size, tuple(named)}:
        for stride in _other_strides(embed):
            if old == grid_of(size, embed.patch_size, stride) != grid_of(size, embed.patch_size, embed.stride):
                return f"its {_sides(old)} patches are those of {_sides(size)} images at a stride of {_sides(stride)}"
    return ""


def _other_strides(embed: Any) -> list[tuple[int, int]]:
    """The patch size, and what divides both of its sides."""
    height, width = embed.patch_size
    return [(height // part, width // part) for part in range(1, height + 1) if not height % part and not width % part]


def _sides(pair: Any) -> str:
    return f"{pair[0]}x{pair[1]}"
