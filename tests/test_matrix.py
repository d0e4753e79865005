"""One table: every method on every family is applied and removed; the other checks pass on a cross through it.

The cross is one method on every family, and every method on one family of each kind: what a method meets differs only
in where and how many the special tokens are, and in how the blocks are called.
"""

import copy
import io
import pickle
from functools import partial

import pytest
import torch

import mtrkit
from mtrkit.adapters import find_adapter
from mtrkit.methods import METHODS
from tests.helpers.families import FAMILIES
from tests.helpers.threads import answers_of_two_threads


def has_what_it_reads(method, family):
    """Whether the family's blocks have the signals that the method reads by default, and the time that it keeps."""
    config, adapter = METHODS.get(method).configure({}), find_adapter(FAMILIES[family]())
    return config.reads <= adapter.signals and (config.lengths == "one" or adapter.keeps_time)


MATRIX = [(m, family) for m in mtrkit.list_methods() for family in FAMILIES if has_what_it_reads(m, family)]
KINDS = ("vim", "vim_mean", "hustvl_vim_double", "mambar", "timm_vit_registers")
LEADING = {family: "mtr" if ("mtr", family) in MATRIX else "tome" for family in FAMILIES}
CROSS = [(method, family) for method, family in MATRIX if family in KINDS or method == LEADING[family]]
IMAGES = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def fingerprint(model):
    """Everything a patch could leave behind: class, attributes and hooks of every module."""
    return {
        name: (type(m), sorted(vars(m)), len(m._forward_hooks), len(m._forward_pre_hooks))
        for name, m in model.named_modules()
    }


@torch.no_grad()
def run(model, images=IMAGES):
    """The model's answer."""
    return model(images)


@pytest.fixture(params=CROSS, ids="-".join)
def case(request):
    """A method's name and a fresh model of a family."""
    method, family = request.param
    return method, FAMILIES[family]()


@pytest.mark.parametrize(("method", "family"), MATRIX)
def test_changes_then_restores(method, family):
    model = FAMILIES[family]()
    before, dense, keys = fingerprint(model), run(model), list(model.state_dict())
    assert mtrkit.apply_reduction(model, method, ratio=0.3) is model
    reduced = run(model)
    assert reduced.shape == dense.shape and reduced.dtype == dense.dtype and reduced.isfinite().all()
    assert not torch.allclose(reduced, dense)
    assert list(model.state_dict()) == keys
    with mtrkit.reduction_disabled(model):
        assert torch.equal(run(model), dense)
    assert torch.equal(run(model), reduced)
    mtrkit.remove_reduction(model)
    assert fingerprint(model) == before
    assert torch.equal(run(model), dense)
    assert mtrkit.reduction_info(model) is None


def test_ratio_zero_changes_no_bit(case):
    method, model = case
    dense = run(model)
    mtrkit.apply_reduction(model, method, ratio=0)
    assert torch.equal(run(model), dense)
    assert mtrkit.reduction_info(model).ratio_reached == 0


def test_a_sample_does_not_depend_on_its_batch(case):
    method, model = case
    mtrkit.apply_reduction(model, method, ratio=0.3)
    others = IMAGES.clone()
    others[1:] = torch.randn(3, 3, 32, 32)
    assert torch.equal(run(model)[0], run(model, others)[0])
    torch.testing.assert_close(run(model)[:1], run(model, IMAGES[:1]), rtol=1e-4, atol=1e-4)


def test_runs_repeat_bit_for_bit(case):
    method, model = case
    mtrkit.apply_reduction(model, method, ratio=0.3)
    assert torch.equal(run(model), run(model))


def test_copies_work(case):
    method, model = case
    dense = run(model)
    reduced = run(mtrkit.apply_reduction(model, method, ratio=0.3))
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    copies = [
        copy.deepcopy(model),
        pickle.loads(pickle.dumps(model)),
        torch.load(buffer, weights_only=False),
    ]
    mtrkit.remove_reduction(model)
    for twin in copies:
        assert torch.equal(run(twin), reduced)
        assert torch.equal(run(mtrkit.remove_reduction(twin)), dense)
    assert torch.equal(run(model), dense)


def test_two_threads_share_a_model(case):
    method, model = case
    mtrkit.apply_reduction(model, method, ratio=0.3)
    inputs = [torch.randn(2, 3, 32, 32) for _ in range(2)]
    wanted = [run(model, x) for x in inputs]
    answers = answers_of_two_threads(partial(run, model), inputs)
    for i in range(2):
        assert len(answers[i]) == 3 and all(torch.equal(answer, wanted[i]) for answer in answers[i])


def test_gradients_reach_every_parameter(case):
    method, model = case
    mtrkit.apply_reduction(model.train(), method, ratio=0.3)
    model(IMAGES).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name


def test_tracing_changes_no_bit(case):
    method, model = case
    mtrkit.apply_reduction(model, method, ratio=0.3)
    plain = run(model)
    with mtrkit.trace_reduction(model) as trace:
        assert torch.equal(run(model), plain)
    info = mtrkit.reduction_info(model)
    assert [stage.layer for stage in trace.stages] == list(info.layers)
    assert int(trace.slot.max()) + 1 == info.tokens[-1]


def test_autocast(case):
    method, model = case
    mtrkit.apply_reduction(model, method, ratio=0.3)
    with torch.autocast("cpu", torch.bfloat16):
        assert run(model).isfinite().all()


def test_empty_batch(case):
    method, model = case
    mtrkit.apply_reduction(model, method, ratio=0.3)
    assert run(model, IMAGES[:0]).shape == (0, 10)


def test_nan_in_one_sample_stays_there(case):
    method, model = case
    mtrkit.apply_reduction(model, method, ratio=0.3)
    spoilt = IMAGES.clone()
    spoilt[2, :, 5, 5] = torch.nan
    spoilt[3, :, 5, 5] = torch.inf
    assert torch.equal(run(model, spoilt)[:2], run(model)[:2])
