"""What drives a run: accelerator, optimiser, and the average of weights."""

from collections.abc import Mapping
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from timm.optim import create_optimizer_v2
from timm.utils import ModelEmaV3
from torch import nn
from torch.distributed.tensor import DTensor, distribute_tensor

from mtrkit.errors import OptionError
from mtrkit.finetune.recipe import Recipe


def accelerator_for(recipe: Recipe, cpu: bool = False) -> Accelerator:
    """An accelerator for the recipe's precision, also if an earlier one of this process had another."""
    if AcceleratorState._shared_state and AcceleratorState().mixed_precision != recipe.precision:
        AcceleratorState._reset_state()
    return Accelerator(cpu=cpu, mixed_precision=recipe.precision)


def prepare_with(accelerator: Accelerator, model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[Any, Any]:
    """Both as Accelerate spreads them over the machine, without the marks that it would leave on the user's model.

    Among these is a ``forward`` under autocast: every later pass of the model would run in 16 bits.
    """
    own = model.__dict__.get("forward")
    prepared = accelerator.prepare(model.train(), optimizer)
    for mark in ("forward", "_original_forward", "_is_accelerate_prepared"):
        model.__dict__.pop(mark, None)
    if own is not None:
        model.__dict__["forward"] = own
    return prepared


def whole(weights: Mapping[str, Any]) -> dict[str, Any]:
    """Weights by name with those that FSDP has spread over processes put together; every process makes the call."""
    return {name: value.full_tensor() if isinstance(value, DTensor) else value for name, value in weights.items()}


def spread_like(weights: Mapping[str, Any], like: Mapping[str, Any]) -> dict[str, Any]:
    """:func:`whole` weights as ``like`` has them spread; every process makes the call."""
    return {name: _spread(value, like[name]) for name, value in weights.items()}


def _spread(value: Any, like: Any) -> Any:
    if not isinstance(like, DTensor):
        return value
    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements)


def optimizer_for(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """timm's, over the weights that train."""
    rest: dict[str, Any] = {}
    if "muon" in recipe.opt:  # which is for matrices between hidden features
        rest = {"fallback_list": ("head",), "fallback_no_weight_decay": True}
    try:
        return create_optimizer_v2(model, opt=recipe.opt, lr=recipe.lr, weight_decay=recipe.weight_decay, **rest)
    except (AssertionError, ValueError) as error:
        raise OptionError(
            f"opt={recipe.opt!r} is not an optimiser of this timm; see timm.optim.list_optimizers()"
        ) from error


def follow(average: nn.Module, model: nn.Module) -> None:
    """Put an average where the model is: on its device, and spread over processes if FSDP has spread that."""
    average.to(next(model.parameters()).device)
    average.load_state_dict(spread_like(average.state_dict(), model.state_dict()), assign=True)


def average_of(model: nn.Module, recipe: Recipe) -> ModelEmaV3 | None:
    """The moving average of the weights, if the recipe wants one."""
    return None if recipe.ema is None else ModelEmaV3(model, decay=recipe.ema, use_warmup=recipe.ema_warmup)
