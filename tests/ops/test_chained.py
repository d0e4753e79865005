"""Reductions as jobs of a chain decide as their methods do, ties, special tokens and NaN included."""

import pytest
import torch

from mtrkit.errors import InputError
from mtrkit.methods import METHODS
from mtrkit.native import token_jobs
from mtrkit.native.chain import Chain
from mtrkit.native.library import library
from mtrkit.ops import append_reduction, foresee_reduction, know_reduction, open_stream, reads_of, reduce_stream
from mtrkit.types import BlockState, ChainedReduction, Signals

pytestmark = pytest.mark.skipif(bool(library().missing), reason="no compiled library")

CASES = [
    ("mtr", {}),
    ("mtr", {"metric": "features"}),
    ("neighbor", {}),
    ("neighbor", {"across_special": True}),
    ("neighbor", {"protect_class_neighbors": True}),
    ("runs", {}),
    ("rmeeto", {}),
    ("rmeeto", {"metric": "features"}),
    ("tome", {}),
]


def make_state(kind, batch=3, length=23, special=(0, 11)):
    torch.manual_seed(0)
    hidden, residual = torch.randn(2, batch, length, 16)
    if kind == "ties":
        hidden, residual = hidden.sign().repeat_interleave(2, 1)[:, :length].contiguous(), torch.zeros_like(residual)
    score = torch.randint(3, (batch, length)).float() if kind == "ties" else torch.rand(batch, length)
    if kind == "nan":
        hidden[0, 7], score[1, 4] = torch.nan, torch.nan
    places = torch.tensor(special, dtype=torch.int64).repeat(batch, 1)
    size = torch.randint(1, 4, (batch, length, 1)).float()
    return BlockState(hidden, residual, size, places, Signals(delta_mean=score), 1)


@torch.inference_mode()
@pytest.mark.parametrize("special", [(), (0,), (11,), (22,), (0, 5, 11, 17)], ids=str)
@pytest.mark.parametrize("kind", ["plain", "ties", "nan"])
@pytest.mark.parametrize("name, options", CASES)
def test_the_decision_is_that_of_the_method(name, options, kind, special):
    method, state = METHODS.get(name), make_state(kind, special=special)
    config = method.configure(options)
    for r in (1, 4, (23 - len(special)) // 2):
        expected = method.decide(state, 23 - r, config).token_map
        with Chain() as chain:
            found = method.append(chain, state, 23 - r, config)
        for field in ("slot", "kept", "merged"):
            assert torch.equal(getattr(found, field), getattr(expected, field)), field
        assert (found.weight is None) == (expected.weight is None)


@torch.inference_mode()
def test_two_reductions_in_a_chain_leave_the_same_stream():
    method = METHODS.get("runs")
    config, first = method.configure({}), make_state("plain", special=(11,))
    found, expected = (first.hidden, first.residual), (first.hidden, open_stream(first.residual))
    foreseen = found
    know_reduction("runs here", method.append, config)
    with Chain() as chain:
        for layer, kept in ((1, 17), (2, 13)):
            reduction = ChainedReduction(layer, kept, "runs here", (11,), keeps_time=True)
            foreseen = foresee_reduction(*foreseen, reduction)
            inner = found[1] if layer == 1 else found[1].residual
            found = append_reduction(chain, found[0], inner, Signals(), found[1], reduction)
    assert reads_of(reduction) == frozenset()
    for name in ("residual", "size", "slot", "lengths"):
        a, b = getattr(foreseen[1], name), getattr(found[1], name)
        assert (a.shape, a.dtype) == (b.shape, b.dtype), name
    for kept in (17, 13):
        hidden, stream = expected
        state = BlockState(hidden, stream.residual, stream.size, stream.slot[:, 11:12], Signals(), 1)
        expected = reduce_stream(hidden, stream, method.decide(state, kept, config).token_map)
    assert torch.equal(found[0], expected[0])
    for name in ("residual", "size", "slot"):
        assert torch.equal(getattr(found[1], name), getattr(expected[1], name)), name
    assert torch.equal(found[1].lengths, expected[1].size.squeeze(-1).long())


OTHERS = [
    *[("mtr", options) for options in ({"operation": "prune"}, {"average": "successive"}, {"channels": "l1"})],
    *[(name, options) for name in ("mtr", "runs", "rmeeto") for options in ({"similarity": "l1"}, {"metric": "y"})],
    *[("runs", {"importance_weight": 0.1}), ("rmeeto", {"kth": 2}), ("rmeeto", {"order": "leave"})],
    *[("tome", {"order": "leave"}), ("hsa", {}), ("evit", {})],
]


@pytest.mark.parametrize("name, options", OTHERS)
def test_other_options_are_no_part_of_a_chain(name, options):
    method = METHODS.get(name)
    assert not method.configure(options).fits_chain


@pytest.mark.parametrize("name, options", CASES)
def test_these_options_are(name, options):
    method = METHODS.get(name)
    assert method.configure(options).fits_chain and method.append is not None


def test_positions_outside_of_the_sequence_are_refused():
    metric, wrong = torch.randn(1, 5, 16), torch.tensor([[7]])
    with pytest.raises(InputError, match="outside of 0 … 4"), Chain() as chain:
        token_jobs.by_turns(chain, wrong, 5)
    for special in (wrong, torch.tensor([[2, 2]]), torch.tensor([[0, 1, 2, 3]])):
        with pytest.raises(InputError, match="outside of 0 … 4"), Chain() as chain:
            token_jobs.neighbors(chain, metric, special, False, False)
    with pytest.raises(InputError, match="outside of 0 … 4"), Chain() as chain:
        token_jobs.number(chain, 5, 4, torch.tensor([[1, 2]]), torch.tensor([[3, 3]]))
    with pytest.raises(InputError, match="outside of 0 … 4"), Chain() as chain:
        token_jobs.follow(chain, torch.tensor([[5]]), torch.zeros(1, 5, dtype=torch.int64))
