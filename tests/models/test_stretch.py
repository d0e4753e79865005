"""Blocks that run as one call give what they give one by one, and step aside for whatever looks between them."""

import copy
import gc
import pickle
import weakref

import numpy as np
import pytest
import torch

import mtrkit
from mtrkit.models import MambaReg, VisionMamba
from mtrkit.models.layers import RMSNorm
from mtrkit.native.library import Library
from mtrkit.scan import use_scan_backend

SIZE = {"img_size": 32, "patch_size": 4, "embed_dim": 32, "num_classes": 10}
MODELS = {
    "vim": lambda: VisionMamba(**SIZE, depth=8),
    "mean": lambda: VisionMamba(**SIZE, depth=8, class_token="none"),
    "front": lambda: VisionMamba(**SIZE, depth=8, class_token="front", halve=False),
    "mambar": lambda: MambaReg(**SIZE, depth=8, num_registers=4),
}
LAYERS = {"layers": [2, 5], "ratio": 0.3}


@pytest.fixture
def calls(monkeypatch):
    """How many jobs each call of the library had."""
    found, run = [], Library.run
    monkeypatch.setattr(Library, "run", lambda library, *chain: found.append(len(chain)) or run(library, *chain))
    return found


def make(name="vim"):
    torch.manual_seed(0)
    return MODELS[name]().eval()


def one_by_one(model):
    """The same model with something on each block that looks and does nothing."""
    for block in model.layers:
        block.register_forward_hook(lambda *_: None)
    return model


def images(batch=2):
    return torch.randn(batch, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@torch.inference_mode()
def answers(model, batch=2):
    return model(images(batch))


@pytest.mark.parametrize("method", [None, "mtr", "runs", "rmeeto", "hsa", "evit", "tome"])
@pytest.mark.parametrize("name", MODELS)
def test_the_bits_are_those_of_single_blocks(name, method):
    def reduced():
        return make(name) if method is None else mtrkit.apply_reduction(make(name), method, **LAYERS)

    for batch in (1, 3):
        assert torch.equal(answers(reduced(), batch), answers(one_by_one(reduced()), batch))


def test_the_blocks_of_a_dense_pass_are_one_call(calls):
    """Each is a norm and a mixer, but that the first norm has nothing to add."""
    answers(make())
    assert calls == [2 * 8 - 1]


@pytest.mark.parametrize("method", ["mtr", "runs", "neighbor", "rmeeto", "tome"])
def test_so_are_those_of_a_reduced_pass(calls, method):
    answers(mtrkit.apply_reduction(make(), method, **LAYERS))
    assert calls[0] > 2 * 8 and all(count == 1 for count in calls[1:])


@pytest.mark.parametrize(
    "options", [{"operation": "hybrid"}, {"channels": "l1"}, {"metric": "y"}, {"similarity": "l2"}]
)
def test_a_reduction_that_is_no_part_of_a_chain_is_between_two(calls, options):
    answers(mtrkit.apply_reduction(make(), "mtr", **LAYERS, **options))
    assert len(calls) > 3 and 2 * 3 in calls[-2:]  # blocks 6 to 8, and the last norm if nothing was dropped


def test_disabled_it_is_a_dense_pass_again(calls):
    model = mtrkit.apply_reduction(make(), "mtr", **LAYERS)
    with mtrkit.reduction_disabled(model):
        found = answers(model)
    assert calls == [2 * 8 - 1] and torch.equal(found, answers(make()))


@pytest.mark.parametrize("place", ["layers.4", "layers.4.mixer", "layers.4.norm", "layers.4.mixer.x_proj"])
@pytest.mark.parametrize("method", [None, "runs"])
def test_a_hook_is_called(place, method):
    model = make() if method is None else mtrkit.apply_reduction(make(), method, **LAYERS)
    expected, seen = answers(model), []
    handle = model.get_submodule(place).register_forward_hook(lambda module, given, out: seen.append(out))
    torch.testing.assert_close(answers(model), expected)
    handle.remove()
    assert len(seen) == 1 and torch.equal(answers(model), expected)


def test_a_hook_on_a_block_may_change_what_it_gives():
    model = make()
    model.layers[4].register_forward_hook(lambda block, given, out: (out[0] * 2, out[1]))
    assert not torch.allclose(answers(model), answers(make()))


def test_a_forward_of_a_blocks_own_is_called():
    model, seen = make(), []
    forward = model.layers[3].forward
    model.layers[3].forward = lambda *given: seen.append(1) or forward(*given)
    assert torch.equal(answers(model), answers(make())) and seen == [1]


def test_another_module_in_the_place_of_a_block_is_called():
    model = make()
    model.layers[3] = Other()
    assert not torch.allclose(answers(model), answers(make()))


def test_changed_weights_count_at_once():
    model = make()
    before = answers(model)
    model.layers[5].mixer.in_proj.weight.data.mul_(2)
    doubled = answers(model)
    model.layers[5].mixer.in_proj.weight.data.div_(2)
    assert not torch.allclose(doubled, before) and torch.equal(answers(model), before)


CHANGES = {
    "parameter": lambda block: setattr(
        block.mixer.in_proj, "weight", torch.nn.Parameter(block.mixer.in_proj.weight * 2)
    ),
    "data": lambda block: setattr(block.norm.weight, "data", block.norm.weight.data * 2),
    "view of the same memory": lambda block: spread_first(block.mixer.dt_proj.bias),
    "layer": lambda block: setattr(block.mixer, "x_proj", copy.deepcopy(block.mixer.x_proj)),
    "doubled layer": lambda block: setattr(block.mixer, "out_proj", Doubled(block.mixer.out_proj)),
    "option": lambda block: setattr(block.mixer, "halve", not block.mixer.halve),
    "eps": lambda block: setattr(block.norm, "eps", 1.0),
    "class": lambda block: setattr(block.mixer.out_proj, "__class__", DoubledLinear),
    "forward": lambda block: setattr(
        block.norm, "forward", lambda *given: tuple(2 * x for x in RMSNorm.forward(block.norm, *given))
    ),
    "bias": lambda block: setattr(block.mixer.out_proj, "bias", torch.nn.Parameter(torch.ones(32))),
    "weight norm": lambda block: torch.nn.utils.parametrizations.weight_norm(block.mixer.in_proj),
    "precision": lambda block: block.mixer.double().float().half().float(),
    "training": lambda block: block.train(),
}


def spread_first(x):
    """The first number in the place of all, by strides alone."""
    x.data = x.data[:1].expand_as(x)


class Other(torch.nn.Module):
    def forward(self, hidden, residual):
        return 2 * hidden, residual


class Doubled(torch.nn.Module):
    def __init__(self, inside):
        super().__init__()
        self.inside = inside

    def forward(self, *given):
        return 2 * self.inside(*given)


class DoubledLinear(torch.nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("method", [None, "runs"])
def test_what_changes_between_two_passes_counts(change, method):
    """What was found in the first pass is not taken for what is there in the second."""
    models = [make() if method is None else mtrkit.apply_reduction(make(), method, **LAYERS) for _ in range(2)]
    before = answers(models[0])
    for model in models:
        CHANGES[change](model.layers[6])
    after, fresh = (answers(model) for model in models)
    assert torch.equal(after, fresh)
    assert change in ("layer", "weight norm", "precision", "training") or not torch.allclose(after, before)


def test_code_and_hooks_of_all_modules_that_come_later_count(monkeypatch):
    model, seen = make(), []
    before = answers(model)
    handle = torch.nn.modules.module.register_module_forward_hook(lambda module, *_: seen.append(module))
    torch.testing.assert_close(answers(model), before)
    handle.remove()
    assert {*model.modules()} - {*model.layers[0].drop_path.modules()} >= {*seen} and model.layers[
        3
    ].mixer.x_proj in seen
    doubled = torch.nn.Linear.forward
    monkeypatch.setattr(torch.nn.Linear, "forward", lambda layer, x: 2 * doubled(layer, x))
    assert not torch.allclose(answers(model), before)


def test_a_norm_whose_weight_is_a_buffer_is_looked_at_again():
    model = make()
    for block in model.layers:
        weight = block.norm.weight.detach().clone()
        del block.norm.weight
        block.norm.register_buffer("weight", weight)
    before = answers(model)
    model.layers[3].norm.weight = model.layers[3].norm.weight * 2
    after = answers(model)
    assert not torch.allclose(after, before) and torch.equal(after, answers(one_by_one(model)))
    changed = {"layers.5.norm.weight": torch.full((32,), 3.0)}
    with torch.inference_mode():
        found = torch.func.functional_call(model, changed, (images(),))
    assert not torch.allclose(found, after)


def test_attributes_that_cannot_be_compared_are_looked_at_again():
    model = make()
    for number in range(2):
        for block in model.layers:
            block.stats = np.full(3, number)
        found = answers(model)
    assert torch.equal(found, answers(make()))


def test_blocks_that_were_taken_out_are_freed():
    for take_out in (
        lambda model: setattr(model, "layers", model.layers[:2]),
        lambda model: model.prune_intermediate_layers([1]),
        lambda model: model.layers.__setitem__(6, Other()),
    ):
        model = make()
        answers(model)
        gone = weakref.ref(model.layers[6])
        take_out(model)
        answers(model)
        gc.collect()
        assert gone() is None


@pytest.mark.filterwarnings("ignore")  # torch's own compilers warn about themselves
@pytest.mark.parametrize("layers", [[2, 3], [3], [2]])
@pytest.mark.parametrize("method", ["mtr", "runs"])
def test_what_compiles_dense_is_reduced_afterwards(method, layers):
    torch._dynamo.reset()
    model = make()
    model.layers = model.layers[:4]
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    with torch.no_grad():
        dense = compiled(images())
        mtrkit.apply_reduction(model, method, layers=layers, r=9)
        reduced = compiled(images())
        assert torch.equal(reduced, model(images())) and not torch.equal(reduced, dense)
        mtrkit.remove_reduction(model)
        assert torch.equal(compiled(images()), dense)


def test_nothing_is_kept_of_a_model_that_is_gone():
    model = mtrkit.apply_reduction(make(), "mtr", **LAYERS)
    answers(model)
    gone = weakref.ref(model.layers[3])
    del model
    gc.collect()
    assert gone() is None


def test_a_copy_and_a_pickle_find_out_by_themselves():
    model = make()
    before = answers(model)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        twin.layers[2].mixer.in_proj.weight.data.mul_(2)
        assert not torch.allclose(answers(twin), before)
    assert torch.equal(answers(model), before)


def test_the_trace_of_a_pass_is_the_same():
    model = mtrkit.apply_reduction(make(), "mtr", **LAYERS)
    traces = []
    for prepared in (model, one_by_one(model)):
        with mtrkit.trace_reduction(prepared) as trace:
            answers(prepared)
        traces.append(trace)
    assert len(traces[0].stages) == len(LAYERS["layers"])
    for first, second in zip(traces[0].stages, traces[1].stages, strict=True):
        assert torch.equal(first.slot, second.slot) and torch.equal(first.score, second.score)


def test_other_backends_give_the_same_answer():
    model = mtrkit.apply_reduction(make(), "runs", **LAYERS)
    with use_scan_backend("reference"):
        slow = answers(model)
    torch.testing.assert_close(answers(model), slow, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("method", [None, "mtr", "runs", "neighbor", "rmeeto", "tome", "hsa"])
def test_in_16_bits_they_are_those_of_single_blocks_too(calls, method, dtype):
    def reduced():
        model = make().to(dtype)
        return model if method is None else mtrkit.apply_reduction(model, method, **LAYERS)

    with torch.inference_mode():
        found = reduced()(images().to(dtype))
        # Each block is a norm, a mixer and a rounding, but that the first norm has nothing to add.
        assert max(calls) == 3 * 8 - 1 if method is None else max(calls) >= 3 * 3
        assert method == "hsa" or all(count == 1 for count in calls[1:])
        calls.clear()
        assert torch.equal(found, one_by_one(reduced())(images().to(dtype)))
        assert max(calls) <= 4  # with the means of Δ


def test_weights_of_16_bits_that_change_in_place_count(calls):
    model = make().bfloat16()
    with torch.inference_mode():
        before = model(images().bfloat16())
        for name, weight in model.named_parameters():
            if name.endswith(("norm.weight", "A_log", "x_proj.weight")):
                weight.data.mul_(1.5)
        after = model(images().bfloat16())
        assert not torch.equal(before, after) and max(calls) > 2
        assert torch.equal(after, one_by_one(model)(images().bfloat16()))


def test_in_float64_blocks_are_single(calls):
    model = make().double()
    with torch.inference_mode():
        model(torch.randn(1, 3, 32, 32, dtype=torch.float64))
    assert not calls or max(calls) <= 2
