"""Tokens that last several positions: as if each were written out as often, and averaged over its copies."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from mtrkit.errors import InputError
from mtrkit.native import library as lib
from mtrkit.native import mixer as native
from mtrkit.scan import fused, mixer_forward, use_scan_backend
from mtrkit.types import Runs
from tests.helpers.tolerances import SCAN_GRADIENTS, SCAN_VALUES, rms_error
from tests.models.plain_vim import on_one_thread, silu
from tests.scan.test_fused import cast, make_weights


def written(values, lengths):
    """Every value as often as it lasts."""
    return [value for value, length in zip(values, lengths, strict=True) for _ in range(length)]


def means(values, lengths):
    """The mean over the copies of each token."""
    values, found = list(values), []
    for length in lengths:
        found.append(sum(values[:length]) / length)
        values = values[length:]
    return found


def plain_direction(x, lengths, way):
    """y (L', E) for x (L', E), visited from the first to the last: the definition, position by position."""
    taps = way.conv_weight[:, 0]
    width, rank, states = taps.shape[1], way.dt_weight.shape[1], way.A_log.shape[1]
    positions, filtered = written(x, lengths), []
    for t in range(len(positions)):
        total = torch.zeros_like(x[0]) if way.conv_bias is None else way.conv_bias
        for age in range(min(width, t + 1)):
            total = total + taps[:, width - 1 - age] * positions[t - age]
        filtered.append(silu(total))
    u, A = means(filtered, lengths), -torch.exp(way.A_log)
    state, outputs = torch.zeros_like(A), []
    for value, length in zip(u, lengths, strict=True):
        dt, B, C = (way.x_proj @ value).split([rank, states, states])
        delta = F.softplus(way.dt_weight @ dt + way.dt_bias)
        for _ in range(length):
            state = torch.exp(delta[:, None] * A) * state + (delta * value)[:, None] * B
            outputs.append(state @ C + way.D * value)
    return torch.stack(means(outputs, lengths))


@on_one_thread
def plain_mixer(hidden, lengths, weights):
    """(B, L', D) for normalised tokens (B, L', D), all in float64."""
    found = []
    for tokens, lasts in zip(hidden, lengths.tolist(), strict=True):
        x, z = (tokens @ weights.in_proj.T).chunk(2, dim=-1)
        y = plain_direction(x, lasts, weights.directions[0])
        if len(weights.directions) > 1:
            y = y + plain_direction(x.flip(0), lasts[::-1], weights.directions[1]).flip(0)
        found.append((y * silu(z)) @ weights.out_proj.T)
    return torch.stack(found)


def runs_of(lengths):
    return Runs(lengths, int(lengths.sum(dim=1).max()))


def some_runs(batch, length, longest, seed):
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, longest + 1, (batch, length), generator=generator)
    lengths[:, :: max(2, longest)] = 1  # special tokens, and others that stand for themselves
    return lengths


CASES = st.fixed_dictionaries(
    {
        "length": st.integers(1, 40),
        "longest": st.integers(1, 9),
        "taps": st.sampled_from([1, 2, 4, 5, 9, 12]),
        "directions": st.integers(1, 2),
        "inner": st.sampled_from([16, 24, 48]),
        "states": st.sampled_from([1, 2, 3, 16]),
        "conv_bias": st.booleans(),
        "seed": st.integers(0, 1000),
    }
)


@pytest.mark.parametrize("backend", ["auto", "reference"])
@given(case=CASES)
@settings(deadline=None, max_examples=25)
@torch.no_grad()
def test_is_the_loop_over_all_positions(backend, case):
    torch.manual_seed(case["seed"])
    length, longest, seed = case.pop("length"), case.pop("longest"), case.pop("seed")
    weights, hidden = cast(make_weights(**case), torch.float64), torch.randn(2, length, 24).double()
    lengths = some_runs(2, length, longest, seed)
    with use_scan_backend(backend):
        found, _ = mixer_forward(hidden, weights, runs=runs_of(lengths))
    torch.testing.assert_close(found, plain_mixer(hidden, lengths, weights), rtol=1e-9, atol=1e-11)


@pytest.mark.skipif(bool(lib.library().missing), reason="no compiled library")
@given(case=CASES)
@settings(deadline=None, max_examples=40, derandomize=True)
@torch.no_grad()
def test_the_compiled_library_is_the_same(case):
    """The bound is for the mean over many numbers, so a few samples more if the sequence is short."""
    torch.manual_seed(case["seed"])
    length, longest, seed = case.pop("length"), case.pop("longest"), case.pop("seed")
    batch = 2 + 60 // length
    weights, hidden = make_weights(**case), torch.randn(batch, length, 24)
    runs = runs_of(some_runs(batch, length, longest, seed))
    reads = frozenset({"delta", "ssm_B", "ssm_C", "y"})
    exact, signals = mixer_forward(hidden.double(), cast(weights, torch.float64), reads, runs=runs)
    found, seen = fused.mixer(hidden, weights, reads, runs)
    assert rms_error(found, exact) < SCAN_VALUES[torch.float32]
    for name in reads:
        assert rms_error(getattr(seen, name), getattr(signals, name)) < SCAN_VALUES[torch.float32]


def gradients_of(hidden, weights, runs, grad):
    """Of the tokens and of every weight, by name."""
    names = [f"{way}.{name}" for way in range(len(weights.directions)) for name in weights.directions[0]._fields]
    flat = [weights.in_proj, weights.out_proj, *(w for way in weights.directions for w in way)]
    leaves = {"hidden": hidden, **dict(zip(["in_proj", "out_proj", *names], flat, strict=True))}
    leaves = {name: leaf.requires_grad_() for name, leaf in leaves.items() if leaf is not None}
    out, _ = mixer_forward(hidden, weights, runs=runs)
    return dict(zip(leaves, torch.autograd.grad(out, [*leaves.values()], grad), strict=True))


@pytest.mark.skipif(bool(lib.library().missing), reason="no compiled library")
@given(case=CASES)
@settings(deadline=None, max_examples=40, derandomize=True)
def test_gradients_of_the_compiled_library_are_the_same(case):
    """Against the sequence written out, in float64, whose derivatives are torch's own."""
    torch.manual_seed(case["seed"])
    length, longest, seed = case.pop("length"), case.pop("longest"), case.pop("seed")
    batch = 2 + 60 // length
    weights, hidden, grad = make_weights(**case), torch.randn(batch, length, 24), torch.randn(batch, length, 24)
    runs = runs_of(some_runs(batch, length, longest, seed))
    exact = gradients_of(hidden.double(), cast(weights, torch.float64), runs, grad.double())
    found = gradients_of(hidden, weights, runs, grad)
    for name, value in exact.items():
        assert rms_error(found[name], value) < SCAN_GRADIENTS[torch.float32], name


def test_training_steps_through_runs_and_compiles(compiled):
    """The operators are those that write nothing out, and what torch.compile makes of them is the same."""
    weights, hidden, grad = make_weights(), torch.randn(2, 21, 24), torch.randn(2, 21, 24)
    runs = runs_of(some_runs(2, 21, 5, 0))
    with torch.profiler.profile() as profile:
        plain = gradients_of(hidden, weights, runs, grad)
    names = {event.name for event in profile.events()}
    assert {"mtrkit::scan_runs_backward", "mtrkit::convolve_runs_backward"} <= names
    assert not {"mtrkit::selective_scan", "mtrkit::causal_conv1d"} & names
    run = torch.compile(lambda x: mixer_forward(x, weights, runs=runs)[0], fullgraph=True)
    compiled_grad = torch.autograd.grad(run(hidden), hidden, grad)[0]
    torch.testing.assert_close(compiled_grad, plain["hidden"])
    with pytest.raises(InputError, match="has no derivative"):
        out = mixer_forward(hidden, weights, runs=runs)[0]
        torch.autograd.grad(torch.autograd.grad(out.sum(), hidden, create_graph=True)[0].sum(), hidden)


@torch.no_grad()
def test_one_position_each_keeps_every_bit(compiled):
    weights, hidden = make_weights(), torch.randn(3, 37, 24)
    ones = Runs(torch.ones(3, 37, dtype=torch.int64), 40)  # and three positions that no sample has
    assert torch.equal(fused.mixer(hidden, weights, runs=ones)[0], fused.mixer(hidden, weights)[0])
    ones = Runs(ones.lengths, 37)
    exact, double = cast(weights, torch.float64), hidden.double()
    assert torch.equal(mixer_forward(double, exact, runs=ones)[0], mixer_forward(double, exact)[0])


@torch.no_grad()
def test_samples_may_have_different_numbers_of_positions(compiled):
    """Where a method drops tokens and counts only what was merged."""
    weights, hidden = make_weights(), torch.randn(2, 6, 24)
    lengths = torch.tensor([[1, 1, 2, 1, 1, 1], [3, 1, 4, 2, 2, 5]])
    alone = [fused.mixer(hidden[i : i + 1], weights, runs=runs_of(lengths[i : i + 1]))[0] for i in range(2)]
    assert torch.equal(fused.mixer(hidden, weights, runs=runs_of(lengths))[0], torch.cat(alone))
    exact = plain_mixer(hidden.double(), lengths, cast(weights, torch.float64))
    found, _ = mixer_forward(hidden.double(), cast(weights, torch.float64), runs=runs_of(lengths))
    torch.testing.assert_close(found, exact, rtol=1e-9, atol=1e-11)


def test_gradients_are_those_of_the_definition():
    weights = cast(make_weights(width=4, inner=6, states=2, rank=1), torch.float64)
    lengths = torch.tensor([[2, 1, 3, 1], [1, 4, 1, 2]])
    flat = [w.clone().requires_grad_() for w in (weights.in_proj, weights.out_proj)]
    flat += [w.clone().requires_grad_() for way in weights.directions for w in way]

    def run(hidden, in_proj, out_proj, *rest):
        ways = tuple(type(weights.directions[0])(*rest[i : i + 7]) for i in (0, 7))
        return mixer_forward(
            hidden, weights._replace(in_proj=in_proj, out_proj=out_proj, directions=ways), runs=runs_of(lengths)
        )[0]

    torch.autograd.gradcheck(run, (torch.randn(2, 4, 4).double().requires_grad_(), *flat))


@pytest.mark.parametrize("wrong", [torch.ones(2, 4, dtype=torch.int64), torch.ones(2, 5, dtype=torch.int32)])
def test_lengths_that_do_not_fit_are_refused(compiled, wrong):
    with pytest.raises(InputError, match="lengths have shape|positions are"):
        native.mix(torch.randn(2, 5, 24), make_weights(), lengths=wrong)


@torch.no_grad()
def test_lengths_that_cannot_be_do_no_harm(compiled):
    """C takes them for one."""
    weights, hidden = make_weights(), torch.randn(1, 5, 24)
    lengths = torch.tensor([[0, -3, 1, 0, 1]])
    assert torch.equal(native.mix(hidden, weights, lengths=lengths)[0], native.mix(hidden, weights)[0])


@torch.no_grad()
def test_every_level_and_number_of_threads_gives_the_same(compiled, monkeypatch):
    weights, hidden, lengths = make_weights(), torch.randn(3, 37, 24), some_runs(3, 37, 5, 0)
    best = fused.mixer(hidden, weights, runs=runs_of(lengths))[0]
    torch.set_num_threads(1)
    assert torch.equal(fused.mixer(hidden, weights, runs=runs_of(lengths))[0], best)
    for level in range(lib.current_level()):
        monkeypatch.setattr(lib, "_level", level)
        assert rms_error(native.mix(hidden, weights, lengths=lengths)[0], best) < SCAN_VALUES[torch.float32]
