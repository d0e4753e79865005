"""Methods compile into one graph, never wait for the device, and decide in half precision; whatever the options."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from mtrkit.methods import METHODS
from mtrkit.ops import open_stream, reduce_stream, restore_stream
from mtrkit.types import BlockState, Signals
from tests.methods.test_options import GIVEN, every_option

COMBINED = [
    ("rmeeto", {"order": "shuffle", "class_position": "floor", "grouping": "random", "kth": 2, "merge": "max"}),
    ("rmeeto", {"order": "leave", "class_position": "floor", "sources": "random", "partner": "random"}),
    ("rmeeto", {"metric": "B", "similarity": "l1", "operation": "prune", "importance_weight": 0.1}),
    ("tome", {"order": "leave", "importance_weight": 0.1, "indicator": "cls"}),
    ("pumer", {"similarity": "l2"}),
    ("utr", {"average": "successive", "pruned": "most_similar", "residual": "hybrid", "hidden": "prune"}),
    ("hsa", {"class_position": "middle"}),
    ("evit", {"fuse": True, "order": "leave"}),
    ("neighbor", {"protect_class_neighbors": True}),
    ("random", {"operation": "merge", "seed": 7}),
    ("mtr", {"operation": "hybrid", "average": "successive", "importance_weight": 0.1}),
]
EVERY = [(method, GIVEN.get((method, name), {}) | {name: value}) for method, name, value in every_option()]
SHAPES = {"hidden": 8, "residual": 8, "delta": 16, "ssm_B": 4, "ssm_C": 4, "y": 16, "keys": 4, "attention": 1}


def inputs(dtype=torch.float32, batch=3, device="cpu"):
    """All that a state is made of, with two special tokens at other places in each sample."""
    rng = torch.Generator().manual_seed(0)
    signals = {name: torch.randn(batch, 23, width, generator=rng) for name, width in SHAPES.items()}
    special = torch.tensor([[0, 11], [3, 4], [21, 22]])[:batch]
    return {name: value.to(device, dtype) for name, value in signals.items()} | {"special": special.to(device)}


def configured(method, options):
    """A method's function and config."""
    chosen = METHODS.get(method)
    return chosen.decide, chosen.configure({name: value for name, value in options.items() if name != "ratio"})


def there_and_back(method, options, signals):
    """Decide, reduce, restore."""
    return pipeline(*configured(method, options), signals)


def pipeline(decide, config, signals):
    """The same with a config that exists already, as in a model."""
    stream = open_stream(signals["residual"])
    state = {name: signals[name] for name in ("hidden", "residual", "special")}
    seen = Signals(**{name: value for name, value in signals.items() if name not in state})
    decision = decide(BlockState(size=stream.size, signals=seen, **state), 16, config)
    hidden, stream = reduce_stream(signals["hidden"], stream, decision.token_map, decision.hidden_map)
    return hidden, stream.residual, stream.slot, *restore_stream(hidden, stream)


@pytest.mark.parametrize(("method", "options"), COMBINED)
def test_one_graph(method, options):
    torch._dynamo.reset()
    compiled = torch.compile(pipeline, fullgraph=True, backend="aot_eager")
    given = *configured(method, options), inputs()
    for mine, expected in zip(compiled(*given), pipeline(*given), strict=True):
        torch.testing.assert_close(mine, expected)


@pytest.mark.parametrize(("method", "options"), EVERY)
def test_shapes_need_no_values(method, options):
    with FakeTensorMode() as mode:
        fake = {name: mode.from_tensor(value) for name, value in inputs().items()}
        hidden, residual, slot, *restored = there_and_back(method, options, fake)
    assert hidden.shape == residual.shape == (3, 16, 8)
    assert slot.shape == (3, 23) and all(tensor.shape == (3, 23, 8) for tensor in restored)


@pytest.mark.parametrize(("method", "options"), EVERY)
def test_every_sample_is_alone_and_special_tokens_stay_apart(method, options):
    together = there_and_back(method, options, inputs(torch.float64))
    for sample in range(3):
        one = {name: value[sample : sample + 1] for name, value in inputs(torch.float64).items()}
        for mine, all_of_them in zip(there_and_back(method, options, one), together, strict=True):
            torch.testing.assert_close(mine[0], all_of_them[sample], rtol=1e-12, atol=1e-12)
        slot, special = together[2][sample], inputs()["special"][sample]
        own = slot[special]
        assert (own >= 0).all() and (slot[:, None] == own).sum() == len(special)


def test_fused_tokens_of_float64_do_not_see_their_batch():
    """At a size at which a matrix product in float32 rounds otherwise for one sample than for eight."""
    hidden, residual = torch.randn(2, 8, 197, 192, dtype=torch.float64)
    signals = {"hidden": hidden, "residual": residual, "special": torch.full((8, 1), 98)}
    together = there_and_back("evit", {"fuse": True}, signals)
    for sample in range(8):
        alone = there_and_back("evit", {"fuse": True}, {name: value[[sample]] for name, value in signals.items()})
        torch.testing.assert_close(alone[0][0], together[0][sample], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("method", "options"), EVERY)
def test_half_precision_decides_as_float32_does(method, options):
    half = inputs(torch.bfloat16)
    half["residual"].zero_()  # so that the features, their sum, are not rounded
    full = {name: value.float() if value.is_floating_point() else value for name, value in half.items()}
    decided = there_and_back(method, options, half)
    assert torch.equal(decided[2], there_and_back(method, options, full)[2])
    assert decided[0].dtype == decided[1].dtype == torch.bfloat16


@pytest.mark.parametrize(("method", "options"), COMBINED)
def test_gradients_reach_every_token_that_stays(method, options):
    signals = inputs(torch.float64)
    signals["hidden"].requires_grad_()
    hidden, _, slot, *_ = there_and_back(method, options, signals)
    hidden.sum().backward()
    reached = signals["hidden"].grad.abs().sum(dim=2) > 0
    if options.get("merge") == "max" or method == "utr":  # some tokens that stay as a slot give nothing to it
        assert not (reached & (slot < 0)).any()
    else:
        assert torch.equal(reached, slot >= 0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize(("method", "options"), COMBINED)
def test_a_gpu_never_waits_and_decides_alike(method, options):
    there_and_back(method, options, inputs(device="cuda"))
    signals = inputs(device="cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        results = there_and_back(method, options, signals)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for mine, expected in zip(results, there_and_back(method, options, inputs()), strict=True):
        torch.testing.assert_close(mine.cpu(), expected)
