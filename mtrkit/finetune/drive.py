"""What drives a run: accelerator, optimiser, and the average of weights."""

from collections.abc import Mapping
from typing import Any

import torch
from accelerate import Accelerator, DistributedType
from accelerate.state import AcceleratorState
from timm.optim import create_optimizer_v2
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from mtrkit.errors import OptionError
from mtrkit.finetune.recipe import Recipe


def accelerator_for(recipe: Recipe, cpu: bool = False) -> Accelerator:
    """An accelerator for the recipe's precision, also if an earlier one of this process had another."""
    if AcceleratorState._shared_state and AcceleratorState().mixed_precision != recipe.precision:
        AcceleratorState._reset_state()
    return Accelerator(cpu=cpu, mixed_precision=recipe.precision)


def prepare_with(accelerator: Accelerator, model: nn.Module, recipe: Recipe) -> tuple[Any, Any, ModelEmaV3 | None]:
    """The model and its optimiser as Accelerate spreads them over the machine, and the average of weights, if any.

    The user's model stays without the marks that Accelerate would leave on it. Among these is a ``forward`` under
    autocast: every later pass of the model would run in 16 bits.
    """
    own, optimizer = model.__dict__.get("forward"), _optimizer(model, recipe)
    sharded = accelerator.distributed_type is DistributedType.FSDP
    average = _average(model, recipe, foreach=False) if sharded else None  # a model that is spread cannot be copied
    prepared, optimizer = accelerator.prepare(model.train(), optimizer)
    for mark in ("forward", "_original_forward", "_is_accelerate_prepared"):
        model.__dict__.pop(mark, None)
    if own is not None:
        model.__dict__["forward"] = own
    if average is not None:
        weights = average.module.state_dict()
        average.module.load_state_dict(spread_like(weights, model.state_dict()), assign=True)
    return prepared, optimizer, average if sharded else _average(model, recipe)


def whole(weights: Mapping[str, Any]) -> dict[str, Any]:
    """Weights by name, with those that FSDP has spread over processes put together; every process makes the call."""
    return {name: _joined(value) if isinstance(value, DTensor) else value for name, value in weights.items()}


def spread_like(weights: Mapping[str, Any], like: Mapping[str, Any]) -> dict[str, Any]:
    """:func:`whole` weights where, and in the dtype and the parts, that ``like`` has them; every process does it."""
    return {name: _spread(value, like[name]) for name, value in weights.items()}


def _joined(value: DTensor) -> Tensor:
    moved: Any = value.to(value.device_mesh.device_type)  # from where it may have been offloaded to
    found: Tensor = moved.full_tensor()
    return found.cpu()


def _spread(value: Tensor, like: Tensor) -> Tensor:
    value = value.to(like.device, like.dtype)
    if not isinstance(like, DTensor):
        return value
    return distribute_tensor(value, like.device_mesh, like.placements).to(like.device)


def _optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
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


def _average(model: nn.Module, recipe: Recipe, foreach: bool = True) -> ModelEmaV3 | None:
    if recipe.ema is None:
        return None
    return ModelEmaV3(model, decay=recipe.ema, use_warmup=recipe.ema_warmup, foreach=foreach)
