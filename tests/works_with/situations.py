"""What people do with a whole model: each is right, checked against the plain model, or raises an error of mtrkit's."""

import copy
import math
import os
import pickle
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import mtrkit
from tests.works_with.cells import assert_close, error, run
from tests.works_with.families import Family

TOLERANCE = 2e-3


class Situation(NamedTuple):
    """One row of the table.

    Attributes:
        title: As readers see it.
        check: Passes if mtrkit is right for a family, raises :class:`~mtrkit.MtrkitError` if it refuses, and fails
            otherwise.
    """

    title: str
    check: Callable[[Family], None]


def reduced(family: Family, double: bool = False) -> Any:
    """A fresh reduced model."""
    model = family.fresh()
    return family.reduce(model.double() if double else model)


def inputs(family: Family, double: bool = False) -> torch.Tensor:
    """What it is called with."""
    return family.inputs.double() if double and family.inputs.is_floating_point() else family.inputs


def block_hooks(family: Family) -> None:
    """A hook on every block that replaces what the mixer adds by a multiple."""
    model, plain = reduced(family), reduced(family)

    def scaled(module: Any, args: Any, output: Any) -> Any:
        return (output[0] * 1.25, *output[1:])

    if family.name not in ("hf_mamba", "timm_vit"):
        for block in family.blocks(model):
            block.register_forward_hook(scaled)
        with torch.no_grad():
            for mixer in family.mixers(plain):
                mixer.out_proj.weight.mul_(1.25)
    else:  # blocks that pass on one tensor: the hook sees what travels there
        for block in family.blocks(model):
            block.register_forward_hook(lambda module, args, output: output)
    assert_close(run(family, model, False), run(family, plain, False), TOLERANCE)


def block_hooks_as_tensor(family: Family) -> None:
    """A hook that takes the residual of a reduced block for a tensor."""
    model = reduced(family)
    for block in family.blocks(model):
        block.register_forward_hook(lambda module, args, output: (output[1] if type(output) is tuple else output) * 2)
    run(family, model, False)
    raise AssertionError("the hook has changed nothing")


def checkpointed(family: Family, reentrant: bool) -> None:
    """Activation checkpointing around every block."""
    model, plain = reduced(family), reduced(family)
    for block in family.blocks(model):
        block.forward = partial(_checkpoint, block.forward, reentrant)
    assert_close(run(family, model, True), run(family, plain, True), TOLERANCE)


def _checkpoint(forward: Any, reentrant: bool, *args: Any, **kwargs: Any) -> Any:
    """Reentrant checkpoints take no keywords; the models here give none that matter."""
    return checkpoint(forward, *args, use_reentrant=reentrant, **({} if reentrant else kwargs))


def own_checkpointing(family: Family) -> None:
    """The model's own switch for it."""
    model, plain = reduced(family), reduced(family)
    if family.name == "hf_mamba":
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    elif hasattr(model, "set_grad_checkpointing"):
        model.set_grad_checkpointing()
    else:
        raise Absent
    assert_close(run(family, model, True), run(family, plain, True), TOLERANCE)


def checkpoint_wrapper(family: Family) -> None:
    """torch's wrapper around every block, put on after patching."""
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper as wrap

    model, plain = reduced(family), reduced(family)
    blocks = family.blocks(model)
    for index, block in enumerate(list(blocks)):
        blocks[index] = wrap(block)
    found, wanted = run(family, model, True), run(family, plain, True)
    names = [name.replace("_checkpoint_wrapped_module.", "") for name in found[1]]
    assert_close((found[0], dict(zip(names, found[1].values(), strict=True))), wanted, TOLERANCE)


def forward_mode(family: Family) -> None:
    """jvp of the model in the direction of a linear layer's weight, against a backward pass: ⟨v, Jd⟩ = ⟨Jᵀv, d⟩."""
    model = reduced(family, double=True)
    weights = dict(model.named_parameters())
    name = next(name for name in weights if name.endswith(f"{family.linears[0]}.weight"))
    direction, x = torch.randn_like(weights[name]), inputs(family, double=True)

    def at(weight: torch.Tensor) -> torch.Tensor:
        found = torch.func.functional_call(model, {**weights, name: weight}, (x,))
        return getattr(found, "logits", found)

    if not family.ours:
        dense_runs(lambda: torch.func.jvp(at, (weights[name],), (direction,)), model)
    _, slope = torch.func.jvp(at, (weights[name].detach(),), (direction,))
    logits = family.answer(model, x)
    covector = torch.randn_like(logits)
    (grad,) = torch.autograd.grad((logits * covector).sum(), weights[name])
    assert slope.norm() > 0
    assert math.isclose((slope * covector).sum().item(), (grad * direction).sum().item(), rel_tol=1e-5)


class Absent(Exception):
    """The family has no such thing."""


class FailsDense(Exception):
    """The class's own code cannot do it either."""


def dense_runs(call: Callable[[], Any], model: Any) -> None:
    """Raise :class:`FailsDense` if the call fails with reduction disabled too."""
    try:
        with mtrkit.reduction_disabled(model):
            call()
    except Exception as error:
        raise FailsDense from error


def func_grad(family: Family) -> None:
    """torch.func.grad of a functional call, against a backward pass."""
    model = reduced(family)
    weights = {name: p.detach() for name, p in model.named_parameters()}

    def loss(values: Any) -> torch.Tensor:
        found = torch.func.functional_call(model, values, (family.inputs,))
        return getattr(found, "logits", found).square().mean()

    found = torch.func.grad(loss)(weights)
    model.zero_grad()
    family.answer(model).square().mean().backward()
    for name, p in model.named_parameters():
        assert p.grad is not None
        assert (found[name] - p.grad).norm() < 10 * TOLERANCE * p.grad.norm() + 1e-4, name


def func_vmap(family: Family) -> None:
    """vmap over samples, against the batch."""
    model = reduced(family)
    with torch.no_grad():
        found = torch.func.vmap(lambda x: family.answer(model, x[None])[0])(family.inputs)
        assert error(found, family.answer(model)) < TOLERANCE


def ensemble(family: Family) -> None:
    """vmap over the weights of two models, against one after the other."""
    models = [reduced(family) for _ in range(2)]
    weights, buffers = torch.func.stack_module_state(models)

    def call(values: Any, others: Any) -> torch.Tensor:
        found = torch.func.functional_call(models[0], (values, others), (family.inputs,))
        return getattr(found, "logits", found)

    with torch.no_grad():
        found = torch.func.vmap(call)(weights, buffers)
        for index, model in enumerate(models):
            assert error(found[index], family.answer(model)) < TOLERANCE


def replicas(family: Family) -> None:
    """DataParallel's replicas run their own blocks: one with other weights gives other answers, and the right ones."""
    model = reduced(family)
    replica = replicate(model)
    other = copy.deepcopy(model)
    with torch.no_grad():
        for part, twin in zip(family.layers(replica), family.layers(other), strict=True):
            twin.weight.mul_(0.8)
            part.weight = nn.Parameter(twin.weight.detach().clone())
        assert error(family.answer(replica), family.answer(other)) < TOLERANCE
        assert error(family.answer(replica), family.answer(model)) > 10 * TOLERANCE


def replicate(model: nn.Module) -> Any:
    """What ``torch.nn.parallel.replicate`` does to the modules, on one device."""
    twins = {module: module._replicate_for_data_parallel() for module in model.modules()}
    for module, twin in twins.items():
        for name, child in module._modules.items():
            if child is not None:
                setattr(twin, name, twins[child])
        for name, parameter in module._parameters.items():
            setattr(twin, name, None if parameter is None else parameter.detach())
        for name, buffer in module._buffers.items():
            setattr(twin, name, buffer)
    return twins[model]


def distributed(family: Family, wrap: Callable[[Family, Any], Any], train: bool = True) -> None:
    """A wrapper of torch.distributed, in a group of one process, put on after patching."""
    plain = reduced(family)
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": "0"}
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        model = wrap(family, reduced(family))
        with torch.no_grad():
            assert error(full(family.answer(model)), family.answer(plain)) < TOLERANCE
        if train:
            family.answer(model).square().mean().backward()
            family.answer(plain).square().mean().backward()
            found = sum(float(full(p.grad).norm() ** 2) for p in model.parameters() if p.grad is not None)
            wanted = sum(float(p.grad.norm() ** 2) for p in plain.parameters())
            assert math.isclose(found, wanted, rel_tol=20 * TOLERANCE)
    finally:
        torch.distributed.destroy_process_group()


def full(x: Any) -> torch.Tensor:
    """The whole of a sharded tensor."""
    return x.full_tensor() if hasattr(x, "full_tensor") else x


def ddp(family: Family, model: Any) -> Any:
    """DistributedDataParallel."""
    return nn.parallel.DistributedDataParallel(model)


def fsdp1(family: Family, model: Any) -> Any:
    """FullyShardedDataParallel around every block and the model."""
    from torch.distributed.fsdp import FullyShardedDataParallel
    from torch.distributed.fsdp.wrap import ModuleWrapPolicy

    kinds = {type(family.blocks(model)[0])}
    options = {"auto_wrap_policy": ModuleWrapPolicy(kinds), "device_id": torch.device("cpu"), "use_orig_params": True}
    return FullyShardedDataParallel(model, **options)


def fsdp2(family: Family, model: Any, each: str) -> Any:
    """fully_shard of every block, mixer or linear layer, and of the model."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (1,))
    for part in {"blocks": family.blocks, "mixers": family.mixers, "layers": family.layers}[each](model):
        fully_shard(part, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def averaged(family: Family) -> None:
    """An exponential moving average of a patched model."""
    from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

    model, wanted = reduced(family), reduced(family)
    ema = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.5))
    with torch.no_grad():
        ema.update_parameters(model)
        for parameter in model.parameters():
            parameter.mul_(0.9)
        ema.update_parameters(model)
        for parameter in wanted.parameters():
            parameter.mul_(0.95)
        assert error(family.answer(ema), family.answer(wanted)) < TOLERANCE


def copied(family: Family) -> None:
    """Deep copies and pickles, to the bit."""
    model = reduced(family)
    with torch.no_grad():
        wanted = family.answer(model)
        for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert torch.equal(family.answer(twin), wanted)


def traced(family: Family) -> None:
    """torch.jit.trace."""
    model = reduced(family)
    module = Logits(model, family)
    with torch.no_grad():
        found = torch.jit.trace(module, (family.inputs,), check_trace=False)
        assert error(found(family.inputs), module(family.inputs)) < TOLERANCE


def exported(family: Family) -> None:
    """torch.export, strict and not."""
    module = Logits(reduced(family), family)
    with torch.no_grad():
        wanted = module(family.inputs)
        for strict in (False, True)[: 1 + family.ours]:  # the stand-ins' loops take long
            program = torch.export.export(module, (family.inputs,), strict=strict)
            assert error(program.module()(family.inputs), wanted) < TOLERANCE


def compiled(family: Family) -> None:
    """torch.compile in one graph."""
    torch._dynamo.reset()
    module = Logits(reduced(family), family)
    with torch.no_grad():
        found = torch.compile(module, backend="eager", fullgraph=True)(family.inputs)
        assert error(found, module(family.inputs)) < TOLERANCE


def symbolic(family: Family) -> None:
    """torch.fx.symbolic_trace."""
    model = reduced(family)
    if family.name == "official":
        dense_runs(lambda: torch.fx.symbolic_trace(Logits(model, family)), model)
    graph = torch.fx.symbolic_trace(Logits(model, family))
    with torch.no_grad():
        assert error(graph(family.inputs), family.answer(model)) < TOLERANCE


class Logits(nn.Module):
    """A model whose answer is a tensor."""

    def __init__(self, model: Any, family: Family) -> None:
        super().__init__()
        self.model, self.wrapped = model, family.name == "hf_mamba"

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The logits."""
        return self.model(x).logits if self.wrapped else self.model(x)


def changed_blocks(family: Family, change: Callable[[Any], None]) -> None:
    """The list of blocks changes after patching: a patched answer would be of another model."""
    model = reduced(family)
    change(family.blocks(model))
    run(family, model, False)
    raise AssertionError("a changed model ran")


def append(blocks: Any) -> None:
    blocks.append(copy.deepcopy(blocks[0]))


def replace(blocks: Any) -> None:
    fresh = copy.deepcopy(blocks[3])
    vars(fresh).pop("forward", None)
    blocks[3] = fresh


def delete(blocks: Any) -> None:
    del blocks[2]


def delete_first(blocks: Any) -> None:
    del blocks[0]


def swap(blocks: Any) -> None:
    blocks[3], blocks[4] = blocks[4], blocks[3]


def share(blocks: Any) -> None:
    blocks[4] = blocks[3]


def shared_before(family: Family) -> None:
    """One block twice in the list, at patching."""
    model = family.fresh()
    share(family.blocks(model))
    run(family, family.reduce(model), False)
    raise AssertionError("the block reduced in both places")


def replaced_mixer(family: Family) -> None:
    """A mixer put in the place of one that is read."""
    model, plain = reduced(family), reduced(family)
    for block in family.blocks(model):
        fresh = copy.deepcopy(getattr(block, family.mixer))
        vars(fresh).pop("forward", None)
        setattr(block, family.mixer, fresh)
    assert_close(run(family, model, False), run(family, plain, False), TOLERANCE)


def wrapped_then_removed(family: Family, unwrap_first: bool) -> None:
    """Patched, then wrapped by accelerate; both come off, in either order: dense to the bit, and nothing stays."""
    hooks = pytest.importorskip("accelerate.hooks")
    model, dense = reduced(family), run(family, family.fresh(), False)[0]
    parts = [*family.blocks(model), *family.mixers(model)]
    wanted = run(family, model, False)[0]
    for part in parts:
        hooks.add_hook_to_module(part, hooks.AlignDevicesHook(io_same_device=True))
    assert torch.equal(run(family, model, False)[0], wanted)
    if not unwrap_first:
        mtrkit.remove_reduction(model)
        assert torch.equal(run(family, model, False)[0], dense)
    for part in parts:
        hooks.remove_hook_from_module(part)
    mtrkit.remove_reduction(model)
    assert mtrkit.reduction_info(model) is None and torch.equal(run(family, model, False)[0], dense)
    again = family.reduce(model)
    assert torch.equal(run(family, again, False)[0], wanted)


def empty_batch(family: Family) -> None:
    """No sample at all."""
    found = run(family, reduced(family), False)[0]
    with torch.no_grad():
        assert family.answer(reduced(family), family.inputs[:0]).shape == (0, *found.shape[1:])


def model_forward(family: Family) -> None:
    """The model's own ``forward`` replaced by a function around it."""
    model = reduced(family)
    with torch.no_grad():
        wanted = family.answer(model)
        model.forward = partial(model.forward)
        assert torch.equal(family.answer(model), wanted)
        mtrkit.remove_reduction(model)
        assert error(family.answer(model), family.answer(family.fresh())) < TOLERANCE


def after_patching(change: Callable[[Any], None]) -> Callable[[Family], None]:
    """A change of the list of blocks, as a check."""
    return partial(changed_blocks, change=change)


unwrapped_first = partial(wrapped_then_removed, unwrap_first=True)
removed_first = partial(wrapped_then_removed, unwrap_first=False)
SITUATIONS = {
    "block_hooks": Situation("forward hooks on blocks", block_hooks),
    "block_hooks_as_tensor": Situation(
        "hooks that take what travels between blocks for a tensor", block_hooks_as_tensor
    ),
    "checkpointed": Situation("activation checkpointing", partial(checkpointed, reentrant=False)),
    "reentrant": Situation("activation checkpointing, reentrant", partial(checkpointed, reentrant=True)),
    "own_checkpointing": Situation("the model's own checkpointing", own_checkpointing),
    "checkpoint_wrapper": Situation("`checkpoint_wrapper`", checkpoint_wrapper),
    "forward_mode": Situation("forward-mode derivatives (`torch.func.jvp`)", forward_mode),
    "func_grad": Situation("`torch.func.grad`, `functional_call`", func_grad),
    "func_vmap": Situation("`torch.func.vmap` over samples", func_vmap),
    "ensemble": Situation("`torch.func.vmap` over weights", ensemble),
    "replicas": Situation("`DataParallel`", replicas),
    "ddp": Situation("`DistributedDataParallel`", partial(distributed, wrap=ddp)),
    "fsdp1": Situation("FSDP1", partial(distributed, wrap=fsdp1)),
    "fsdp2_blocks": Situation("FSDP2 of blocks", partial(distributed, wrap=partial(fsdp2, each="blocks"))),
    "fsdp2_mixers": Situation("FSDP2 of mixers", partial(distributed, wrap=partial(fsdp2, each="mixers"))),
    "fsdp2_layers": Situation("FSDP2 of single layers", partial(distributed, wrap=partial(fsdp2, each="layers"))),
    "averaged": Situation("EMA (`AveragedModel`)", averaged),
    "copied": Situation("deep copies and pickles", copied),
    "traced": Situation("`torch.jit.trace`", traced),
    "exported": Situation("`torch.export`", exported),
    "compiled": Situation("`torch.compile` in one graph", compiled),
    "symbolic": Situation("`torch.fx.symbolic_trace`", symbolic),
    "appended": Situation("a block appended after patching", after_patching(append)),
    "replaced": Situation("a block replaced after patching", after_patching(replace)),
    "deleted": Situation("a block deleted after patching", after_patching(delete)),
    "deleted_first": Situation("the first block deleted after patching", after_patching(delete_first)),
    "swapped": Situation("blocks swapped after patching", after_patching(swap)),
    "shared": Situation("a block put in twice after patching", after_patching(share)),
    "shared_before": Situation("a block that is in the list twice", shared_before),
    "replaced_mixer": Situation("a mixer replaced after patching", replaced_mixer),
    "unwrapped_first": Situation("wrapped by accelerate, unwrapped, removed", unwrapped_first),
    "removed_first": Situation("wrapped by accelerate, removed, unwrapped", removed_first),
    "empty": Situation("an empty batch", empty_batch),
    "model_forward": Situation("the model's `forward` replaced", model_forward),
}
