"""Decide everything about a reduction before anything is changed."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from torch import nn

from mtrkit.adapters import Adapter, shape_of
from mtrkit.errors import OptionError
from mtrkit.methods import METHODS, Method, MethodConfig
from mtrkit.methods.dyvm import DYVM, DyVM, DyVMConfig, TrainedDecision, predictor_flops
from mtrkit.patch.amount import Amount
from mtrkit.patch.calibration import Calibration
from mtrkit.patch.fits import check_blocks, check_signals
from mtrkit.patch.plan import Plan
from mtrkit.patch.reduction import Reduction
from mtrkit.patch.trained import DyVMCheckpoint, check_sizes
from mtrkit.schedule import (
    MambaShape,
    ModelShape,
    Placement,
    ReductionCost,
    TransformerShape,
    check_schedule,
    resolve_layers,
)


def prepare(
    model: nn.Module,
    host: nn.Module,
    adapter: Adapter,
    method: str,
    amount: Amount,
    input_size: tuple[int, ...] | None,
    layers: Sequence[int] | Placement | None,
    options: dict[str, object],
) -> Reduction:
    """What a method and an amount come to.

    Args:
        model: What the user gave: the model or a wrapper around it.
        host: The module in it that has the blocks.
        adapter: Of its family.
        method: Name.
        amount: How much to remove.
        input_size: As of :func:`mtrkit.apply_reduction`, as are the others.
        layers: Where.
        options: Of the method.

    Raises:
        MtrkitError: Something cannot be; the message says what.
    """
    amount.check(layers)
    for block in adapter.blocks(host):
        adapter.check_layers(adapter.mixer(block))
    chosen = METHODS.get(method)
    config = chosen.configure(options, adapter.attention_blocks)
    check_signals(chosen.name, config.reads, adapter)
    check_blocks(chosen.name, config, adapter)
    if amount.threshold is not None and not config.counts_links:
        raise OptionError(
            f"method {chosen.name!r} with these options does not remove tokens by how similar they are to another, so "
            "threshold= says nothing; give ratio=, or a method such as 'runs', 'rmeeto' or 'tome'"
        )
    size = tuple(input_size) if input_size is not None else adapter.input_size(host)
    shape = configured_shape(shape_of(model, host, adapter, size), config)
    plan = _plan(shape, chosen, config, adapter.any_length, amount, layers)
    return Reduction(chosen, config, adapter, size, adapter.special_at(host), plan, host)


def prepare_calibrated(
    model: nn.Module,
    host: nn.Module,
    adapter: Adapter,
    calibration: Calibration | str | Path,
    given: dict[str, object],
) -> Reduction:
    """What a calibration says; ``given`` is what the user says beside it. Else as :func:`prepare`."""
    found = calibration if isinstance(calibration, Calibration) else Calibration.load(calibration)
    own = vars(found) | found.options
    beside = [f"{name}={value!r}" for name, value in given.items() if value is not None and value != own.get(name)]
    if beside:
        raise OptionError(
            f"a calibration of {found.method!r} at ratio {found.ratio:g} and {', '.join(beside)} were given; give one"
        )
    found.check(host, adapter)
    amount = Amount(tokens=found.tokens)
    reduction = prepare(model, host, adapter, found.method, amount, found.input_size, None, found.options)
    reduction.correction = found.correction
    return reduction


def prepare_from_checkpoint(
    model: nn.Module,
    host: nn.Module,
    adapter: Adapter,
    method: str | None,
    checkpoint: DyVMCheckpoint | str | Path | None,
    input_size: tuple[int, ...] | None,
    given: dict[str, object],
) -> Reduction:
    """What a trained checkpoint says; ``given`` is what the user says beside it. Else as :func:`prepare`."""
    if checkpoint is None:
        raise OptionError("method 'dyvm' is trained for one model: give checkpoint=… of mtrkit.dyvm, or its file")
    if method not in (None, DYVM.name):
        raise OptionError(f"method {method!r} is not trained and takes no checkpoint; leave one of the two out")
    beside = [f"{name}={value!r}" for name, value in given.items() if value is not None]
    if beside:
        raise OptionError(
            f"a checkpoint of 'dyvm' and {', '.join(beside)} were given; it says itself where and how much is reduced"
        )
    found = checkpoint if isinstance(checkpoint, DyVMCheckpoint) else DyVMCheckpoint.load(checkpoint)
    found.check(host, adapter)
    return prepare_trained(model, host, adapter, found.frozen_parts(host), input_size)


def prepare_trained(
    model: nn.Module, host: nn.Module, adapter: Adapter, parts: DyVM, input_size: tuple[int, ...] | None = None
) -> Reduction:
    """The reduction of a model with trained parts, which nothing has been installed of yet."""
    check_sizes(parts, host, adapter)
    for block in adapter.blocks(host):
        adapter.check_layers(adapter.mixer(block))
    size = tuple(input_size) if input_size is not None else adapter.input_size(host)
    shape, special_at = shape_of(model, host, adapter, size), adapter.special_at(host)
    cost = partial(predictor_flops, dim=shape.dim, special=shape.special)
    plan = Plan(shape, parts.layers, cost, DYVM.max_share, keep=parts.keep)
    method = replace(DYVM, decide=TrainedDecision(parts, special_at))
    config = DyVMConfig(keep=parts.keep, block_target=parts.block_target)
    return Reduction(method, config, adapter, size, special_at, plan, host, trained=parts)


def _plan(
    shape: ModelShape,
    method: Method,
    config: MethodConfig,
    any_length: bool,
    amount: Amount,
    layers: Sequence[int] | Placement | None,
) -> Plan:
    """Where and how much to reduce."""
    layers, tokens = method.layers if layers is None else layers, amount.tokens
    places = resolve_layers(layers, shape.depth, shape.last_layer) if tokens is None else _shrinking(tokens, shape)
    cost: ReductionCost = partial(config.flops, widths=shape.widths)
    return Plan(
        shape=shape,
        layers=places if amount.removes else (),
        cost=cost,
        max_share=method.max_share,
        ratio=amount.wanted_ratio,
        r=amount.r,
        tokens=None if tokens is None else tuple(tokens),
        thresholds=amount.thresholds(places),
        any_length=any_length,
    )


def configured_shape(shape: ModelShape, config: MethodConfig) -> ModelShape:
    """The shape, with blocks that reduce where the options say, or keep time as they say."""
    if isinstance(shape, TransformerShape):
        return replace(shape, place=config.place)
    if isinstance(shape, MambaShape):
        return replace(shape, keeps_time=config.lengths != "one")
    return shape


def _shrinking(tokens: Sequence[int], shape: ModelShape) -> tuple[int, ...]:
    """The blocks, counted from 1, after which an explicit schedule has fewer tokens than before."""
    left = check_schedule(tokens, shape)
    entering = [shape.tokens, *left[:-1]]
    return tuple(i + 1 for i, (n, m) in enumerate(zip(entering, left, strict=True)) if m < n)
