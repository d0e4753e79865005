"""The public verbs: apply, remove, disable, describe, trace and count."""

import dataclasses
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from mtrkit.adapters import ADAPTERS, find_host, shape_of
from mtrkit.adapters.grid import PatchGrid, patch_grid
from mtrkit.errors import InputError, MtrkitError, SmallModelWarning, UnsupportedModelError
from mtrkit.methods import METHODS
from mtrkit.methods.dyvm import DYVM
from mtrkit.patch import (
    RECORD,
    Amount,
    Calibration,
    DyVMCheckpoint,
    Reduction,
    ReductionInfo,
    Trace,
    configured_shape,
    install,
    prepare,
    prepare_calibrated,
    prepare_from_checkpoint,
    reductions_in,
    uninstall,
)
from mtrkit.scan import backend_for, backend_reason, writes_runs_out
from mtrkit.schedule import (
    Directions,
    FlopsReport,
    MambaShape,
    ModelShape,
    Placement,
    check_schedule,
    model_flops,
)

M = TypeVar("M", bound=nn.Module)

_SMALL = 192  # model width D of Vim-Ti, up to which the loss is known to be large


def apply_reduction(
    model: M,
    method: str | None = None,
    ratio: float | None = None,
    *,
    input_size: tuple[int, ...] | None = None,
    layers: Sequence[int] | Placement | None = None,
    tokens: Sequence[int] | None = None,
    r: int | None = None,
    threshold: float | Sequence[float] | None = None,
    calibration: Calibration | str | Path | None = None,
    checkpoint: DyVMCheckpoint | str | Path | None = None,
    **options: object,
) -> M:
    """Patch a Vision Mamba in place so that its later blocks see fewer tokens.

    Parameters, their names and the state dict stay as they are. Applying again replaces the earlier patch;
    :func:`remove_reduction` restores the model exactly. Works in train and eval mode. If anything is wrong, or
    interrupts, the model stays as it was. Not while another thread runs the model.

    Args:
        model: A model of a family in :func:`list_adapters`, or one that has exactly one such model inside
            (DDP, a compiled module, a segmentor with a backbone).
        method: A name in :func:`list_methods`, or ``"dyvm"`` with a checkpoint. Default: ``"mtr"``.
        ratio: Share of the model's forward FLOPs to remove, in [0, 1), the cost of reducing included. With
            0.3, the default, the patched forward costs 70 % of the original; 0 changes no bit of the output. The ratio
            reached is as near as whole tokens allow.
        input_size: (C, H, W) of an image or (C, T, H, W) of a clip, in pixels and frames, or (L,) tokens of a text,
            without batch. Default: the size the model was built for, 2048 tokens of text. Inputs of other
            sizes get a plan of their own for ``ratio``.
        layers: Blocks to reduce after (or in, if the method reduces before their MLP), counted from 1 as in the
            papers, or a placement such as ``EveryNth(2)``. Default: three in the first two thirds, 5, 10 and 15 of 24.
        tokens: Tokens left after each block, one number per block, instead of ``ratio``.
        r: Tokens to remove after each of the layers, instead of ``ratio`` (ToMe and R-MeeTo say it so).
        threshold: Merge while the similarity is at least this, instead of ``ratio``: one number, or one for each of the
            layers, in the unit of the method's ``similarity``. How many tokens leave then depends on the data: in a
            batch, as many of each image as have such a link in the mean, rounded. See docs/thresholds.md.
        calibration: What :func:`calibrate` returned for this model, or the file that it was saved in, instead of all of
            the above. It holds for inputs of the size that it was made from.
        checkpoint: For ``method="dyvm"``, what was trained for this model (:mod:`mtrkit.dyvm`), or the file that it was
            saved in. It says where and how much is reduced; beside it ``input_size`` alone may be given.
        **options: Fields of the method's config, such as ``similarity="l2"`` for ``"mtr"``.

    Returns:
        The same object. What it returns when called keeps its shape and dtype; tokens per block and FLOPs
        are in :func:`reduction_info`.

    Raises:
        UnknownNameError: No such method; the message lists the known ones.
        OptionError: An option, ``ratio`` or ``layers`` that cannot be, or a calibration or checkpoint of another model.
        CheckpointError: The file holds no calibration, or no checkpoint.
        UnsupportedModelError: No adapter fits, or the model uses a feature that cannot be reduced correctly.
        ScheduleError: ``ratio`` is out of reach; the message gives the largest reachable one.

    Warns:
        SmallModelWarning: The model has at most the width of Vim-Ti, D = 192, and the method neither keeps time nor was
            trained.

    Source: ``"mtr"`` is Ma et al., arXiv:2507.14042; :func:`list_methods` gives each method's paper.
    """
    host, adapter = find_host(model)
    amount = Amount(ratio, tokens, r, threshold)
    given: dict[str, object] = {**amount._asdict(), "layers": layers, **options}
    if method == DYVM.name or checkpoint is not None:
        given = {**given, "calibration": calibration}
        reduction = prepare_from_checkpoint(model, host, adapter, method, checkpoint, input_size, given)
    elif calibration is None:
        method = "mtr" if method is None else method
        reduction = prepare(model, host, adapter, method, amount, input_size, layers, options)
    else:
        given = {"method": method, "input_size": input_size, **given}
        reduction = prepare_calibrated(model, host, adapter, calibration, given)
    install(host, reduction)
    if reduction.plan.layers and reduction.trained is None:
        _warn_if_small(reduction.plan.shape, reduction.method.name)
    return model


def remove_reduction(model: M) -> M:
    """Take the patch off: bit-identical to before, nothing left behind. Without a patch, do nothing.

    Returns:
        The same object.
    """
    for _, reduction in reductions_in(model):
        uninstall(reduction)
    return model


@contextmanager
def reduction_disabled(model: nn.Module) -> Iterator[None]:
    """Run the dense model inside the ``with`` block, to the same bits as without a patch.

    Meant for a teacher or a comparison. It holds for the model, so for all threads that use it, in passes that begin
    inside the block.
    """
    reductions = [reduction for _, reduction in reductions_in(model)]
    for reduction in reductions:
        reduction.disabled += 1
    try:
        yield
    finally:
        for reduction in reductions:
            reduction.disabled -= 1


@contextmanager
def trace_reduction(model: nn.Module, input_size: tuple[int, ...] | None = None) -> Iterator[Trace]:
    """Record where every token of every image goes in the passes inside the ``with`` block.

    The output does not change by a bit. A compiled model is traced by running it uncompiled. With the trace,
    :func:`full_grid` puts what a hook has seen back on the grid of the patches, inside the block or after it.

    Args:
        model: The reduced model, or a wrapper around it.
        input_size: As in :func:`apply_reduction`, of the inputs inside the block. Default: the size that was reduced
            for. It matters for the grid only.

    Raises:
        InputError: The model is not patched.
    """
    patched = reductions_in(model)
    if not patched:
        raise InputError("there is nothing to trace: call mtrkit.apply_reduction(model) first")
    host, reduction = patched[0]
    size = input_size or reduction.input_size
    trace = Trace(grid=_grid(host, size), num_tokens=shape_of(model, host, reduction.adapter, size).tokens)
    reduction.observers.append(trace.record)
    try:
        yield trace
    finally:
        reduction.observers.remove(trace.record)


def full_grid(intermediate: Any, trace: Trace, fill: float = 0.0) -> Tensor:
    """Put an intermediate of a reduced model back on the grid of its patches; gradients flow through.

    Each patch of a merged token gets the merged token's numbers. Special tokens are left out:
    :meth:`Trace.sequence` keeps them.

    Args:
        intermediate: (B, L', D) or (B, L'), something for each token of some block, special ones included; or what a
            hook of a block sees, see :meth:`Trace.sequence`.
        trace: Of the pass that it is from, which may still run: see :func:`trace_reduction`.
        fill: What dropped patches get. What a block's hook sees has their last features instead.

    Returns:
        (B, D, rows, columns) or (B, rows, columns); of a clip, its frames side by side.

    Raises:
        InputError: The traced pass never had so many tokens, or was of inputs of another size than the trace.
        UnsupportedModelError: The model's tokens are not one per patch.
    """
    sequence, grid = trace.sequence(intermediate, fill), trace.grid
    if grid is None:
        raise UnsupportedModelError(
            "the tokens of this model are not one per patch of an image, so they have no grid; trace.sequence gives "
            "the full sequence"
        )
    if sequence.shape[1] != grid.num_tokens:
        raise InputError(
            f"the pass had {sequence.shape[1]} tokens, and {grid.rows} × {grid.columns} patches make "
            f"{grid.num_tokens}; call mtrkit.trace_reduction(model, input_size=...) with the size of its inputs"
        )
    patches = sequence[:, torch.tensor(grid.positions, device=sequence.device)]
    maps = patches.unflatten(1, (grid.rows, grid.columns))
    return maps.movedim(3, 1) if maps.dim() == 4 else maps


def _grid(host: nn.Module, input_size: tuple[int, ...]) -> PatchGrid | None:
    try:
        return patch_grid(host, input_size)
    except UnsupportedModelError:
        return None


def reduction_info(model: nn.Module, *, directions: Directions = "one") -> ReductionInfo | None:
    """Describe what :func:`apply_reduction` did; ``None`` if the model is not patched.

    Args:
        model: The model, or a wrapper around it.
        directions: Count FLOPs of ``"one"`` scan direction, as papers do, or of ``"all"`` that run.
    """
    patched = reductions_in(model)
    if not patched:
        return None
    host, reduction = patched[0]
    plan = reduction.plan
    dense = model_flops(plan.shape, directions=directions)
    measured = reduction.measured if plan.thresholds is not None else None
    reduced = _counted(reduction, plan.shape, plan.schedule, directions)
    tokens = measured.tokens(plan.shape) if measured is not None and measured.samples else plan.schedule
    return ReductionInfo(
        method=reduction.method.name,
        options=dataclasses.asdict(reduction.config),
        adapter=reduction.adapter.name,
        input_size=reduction.input_size,
        ratio=plan.ratio,
        ratio_reached=reduced.ratio_to(dense),
        layers=plan.layers,
        num_tokens=plan.shape.tokens,
        tokens=tokens,
        flops_dense=dense,
        flops_reduced=reduced,
        scan_backend=_scan_backend(host, reduction.config.lengths != "one"),
        corrected=reduction.correction is not None,
        scan_share=reduction.scan_share,
        thresholds=plan.thresholds,
        measured=0 if measured is None else measured.samples,
    )


def count_flops(
    model: nn.Module,
    input_size: tuple[int, ...] | None = None,
    *,
    directions: Directions = "one",
    tokens: Sequence[int] | None = None,
) -> FlopsReport:
    """Count the FLOPs of one forward pass on one sample, of the model as it is: reduced if it is patched.

    With thresholds it is the mean of the passes that there have been, or before the first the least possible.

    Args:
        model: A model of a family in :func:`list_adapters`.
        input_size: (C, H, W), (C, T, H, W) or (L,). Default: the size the model was built for.
        directions: ``"one"`` scan direction, as papers count, or ``"all"`` that run.
        tokens: Tokens left after each block, to count another reduction, its own cost left out.
    """
    host, adapter = find_host(model)
    reduction = vars(host).get(RECORD)
    size = input_size or (reduction.input_size if reduction else adapter.input_size(host))
    shape = shape_of(model, host, adapter, size)
    if tokens is not None:
        return model_flops(shape, check_schedule(tokens, shape), directions=directions)
    if reduction is None or not reduction.active:
        return model_flops(shape, directions=directions)
    schedule = [reduction.plan.num_kept(index, shape.tokens) for index in range(shape.depth)]
    return _counted(reduction, configured_shape(shape, reduction.config), schedule, directions)


def _counted(reduction: Reduction, shape: ModelShape, schedule: Sequence[int], directions: Directions) -> FlopsReport:
    """What the reduced model costs: with thresholds as measured at the size it was reduced for, if there was a pass."""
    shape, plan = reduction.counted(shape), reduction.plan
    if plan.thresholds is not None and reduction.measured.samples and shape.tokens == plan.shape.tokens:
        return reduction.measured.flops(shape, plan.cost, directions)
    return model_flops(shape, schedule, plan.cost, directions)


def list_methods() -> list[str]:
    """Names of the reduction methods that need no training, in natural order."""
    return METHODS.names()


def list_adapters() -> list[str]:
    """Names of the model families that can be patched, in natural order."""
    return ADAPTERS.names()


def _warn_if_small(shape: ModelShape, method: str) -> None:
    if isinstance(shape, MambaShape) and shape.dim <= _SMALL and not shape.keeps_time:
        warnings.warn(
            f"small (D = {shape.dim}): {method!r} can lose much accuracy, 'runs' less; under it convolution and scan "
            "miscount positions, which method='runs' keeps right (docs/findings.md, `mtrkit compare`)",
            SmallModelWarning,
            stacklevel=3,
        )


def _scan_backend(host: nn.Module, keeps_time: bool) -> str:
    """Name of the backend for the model's device, its reason, and what it cannot save."""
    parameter = next(host.parameters(), None)
    try:
        name = backend_for(parameter.device) if parameter is not None else "reference"
    except MtrkitError as error:
        return str(error)
    reason = backend_reason(name)
    found = f"{name} ({reason})" if reason else name
    written = keeps_time and writes_runs_out(name)
    return f"{found}; tokens that last several positions are written out for it" if written else found
