"""Importance in the ranking of links: off at 0, decisive where it is large, and the signals that are read."""

import pytest
import torch

import mtrkit
from mtrkit.methods import METHODS
from mtrkit.methods.signals import importance, read_signal
from mtrkit.types import BlockState, Signals
from tests.helpers.families import FAMILIES
from tests.methods.host import Host, run, tokens
from tests.test_matrix import run as answer

LINKING = ["tome", "rmeeto", "pumer", "neighbor", "utr"]


@pytest.mark.parametrize("method", LINKING)
def test_a_weight_of_nothing_is_off(method):
    start = tokens(3, 25, 0)
    usual = run(method, start, (12,), (5, 4, 3))[1]
    for options in ({"importance_weight": 0}, {"importance_weight": 1e-12}):
        assert torch.equal(run(method, start, (12,), (5, 4, 3), 0, **options)[1].slot, usual.slot)
    assert not torch.equal(run(method, start, (12,), (5, 4, 3), 0, importance_weight=1.0)[1].slot, usual.slot)


@pytest.mark.parametrize("method", ["tome", "rmeeto", "pumer", "neighbor"])
@pytest.mark.parametrize("indicator", ["y", "delta", "B", "X", "cls"])
def test_a_great_weight_takes_the_least_important_sources(method, indicator):
    start = tokens(3, 25, 1)
    options = {"importance_weight": 1e6, "indicator": indicator, "channels": "mean"}
    to = run(method, start, (12,), (5,), 0, **options)[2][0].token_map
    hidden, residual, signals = Host(0).block(start, torch.zeros_like(start))
    score = {"X": hidden.mean(-1), "y": signals["y"].mean(-1), "delta": signals["delta"].mean(-1)}
    score["B"] = signals["B"].mean(-1)
    score["cls"] = torch.cosine_similarity(hidden + residual, (hidden + residual)[:, 12:13], dim=-1)
    patches = torch.tensor([i for i in range(25) if i != 12])
    for i in range(3):
        sources = patches[0::2]
        expected = sources[score[indicator][i, sources].argsort()[:5]]
        assert sorted(to.merged[i].tolist()) == sorted(expected.tolist())


@pytest.mark.parametrize("method", ["tome", "rmeeto", "pumer", "neighbor"])
def test_the_weight_does_not_depend_on_the_indicators_scale(method):
    start = tokens(2, 25, 2)
    options = {"importance_weight": 0.3, "indicator": "X", "channels": "mean", "metric": "B"}
    hidden, residual, signals = Host(0).block(start, torch.zeros_like(start))
    chosen = METHODS.get(method)

    def kept(scale, shift):
        size = torch.ones(2, 25, 1)
        special = torch.full((2, 1), 12)
        state = BlockState(hidden * scale + shift, residual, size, special, Signals(ssm_B=signals["B"]))
        return chosen.decide(state, 20, chosen.configure(options)).token_map.kept

    assert torch.equal(kept(1, 0), kept(1000, -7))


def test_signals_are_read_only_where_they_matter():
    reads = {
        ("tome", ()): set(),
        ("tome", (("importance_weight", 0.1),)): {"y"},
        ("tome", (("importance_weight", 0.1), ("indicator", "cls"))): set(),
        ("rmeeto", (("metric", "B"),)): {"ssm_B"},
        ("rmeeto", (("metric", "delta"), ("importance_weight", 0.1), ("indicator", "C"))): {"delta", "ssm_C"},
        ("neighbor", (("metric", "features"),)): set(),
        ("pumer", (("metric", "y"),)): {"y"},
        ("utr", ()): {"y"},
        ("utr", (("indicator", "X"),)): set(),
        ("hsa", ()): {"y"},
        ("evit", ()): set(),
        ("evit", (("indicator", "attention"),)): {"attention"},
        ("mtr", ()): {"delta_mean"},
        ("mtr", (("channels", "norm"),)): {"delta"},
        ("mtr", (("indicator", "cls"), ("metric", "keys"))): {"keys"},
        ("mtr", (("operation", "prune"), ("metric", "B"))): {"delta_mean"},
        ("random", (("metric", "C"),)): set(),
        ("random", (("metric", "C"), ("operation", "merge"))): {"ssm_C"},
    }
    for (method, options), expected in reads.items():
        assert METHODS.get(method).configure(dict(options)).reads == expected


def test_signals_by_name():
    signals = Signals(*(torch.rand(2, 5, 3) for _ in Signals._fields))._replace(delta_mean=None)
    state = BlockState(*(torch.rand(2, 5, 3) for _ in range(4)), signals)
    named = {"delta": "delta", "B": "ssm_B", "C": "ssm_C", "y": "y", "keys": "keys"}
    for name, field in named.items():
        assert read_signal(state, name) is getattr(signals, field)
    assert read_signal(state, "X") is state.hidden
    assert torch.equal(read_signal(state, "features"), state.hidden + state.residual)
    assert torch.equal(importance(state, "attention", "mean"), signals.attention.mean(-1))


@pytest.mark.parametrize("method", ["evit", "mtr"])
@torch.no_grad()
def test_without_a_class_token_all_tokens_stand_for_it(method):
    model = FAMILIES["vim_mean"]()
    mtrkit.apply_reduction(model, method, indicator="cls", layers=(2,))
    with mtrkit.trace_reduction(model) as trace:
        answer(model)
    score = trace.stages[0].score
    assert score.isfinite().all() and score.std(dim=1).min() > 0
