"""The mixer as one operator: the same numbers as in single steps, on every code path, and only where it may run."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import mtrkit
from mtrkit.errors import InputError
from mtrkit.models.layers import RMSNorm
from mtrkit.native import library as lib
from mtrkit.native import mixer as native
from mtrkit.native.chain import Chain
from mtrkit.scan import BlockWeights, DirectionWeights, MixerWeights, fused, mixer_forward, narrow, use_scan_backend
from tests.helpers.tolerances import SCAN_VALUES, rms_error
from tests.scan.conftest import take_path


def make_weights(width=24, inner=48, states=16, rank=3, taps=4, directions=2, conv_bias=True, **outer):
    """Weights that keep every step's values near 1, as trained ones do."""

    def one():
        return DirectionWeights(
            conv_weight=torch.randn(inner, 1, taps) / taps**0.5,
            conv_bias=torch.randn(inner) if conv_bias else None,
            x_proj=torch.randn(rank + 2 * states, inner) / inner**0.5,
            dt_weight=torch.randn(inner, rank) / rank**0.5,
            dt_bias=torch.randn(inner) - 3,
            A_log=torch.log(torch.rand(inner, states) * states),
            D=torch.randn(inner),
        )

    in_proj, out_proj = torch.randn(2 * inner, width) / width**0.5, torch.randn(width, inner) / inner**0.5
    plain = {"in_bias": None, "out_bias": None}
    return MixerWeights(in_proj, out_proj=out_proj, directions=tuple(one() for _ in range(directions)), **plain | outer)


def cast(weights, dtype):
    """All weights in ``dtype``."""
    directions = tuple(DirectionWeights(*(w if w is None else w.to(dtype) for w in way)) for way in weights.directions)
    return weights._replace(
        in_proj=weights.in_proj.to(dtype), out_proj=weights.out_proj.to(dtype), directions=directions
    )


def run(hidden, weights):
    """The operator itself, whether the mixer would choose it or not."""
    return fused.mixer(hidden, weights)[0]


def check(hidden, weights):
    exact, _ = mixer_forward(hidden.double(), cast(weights, torch.float64))
    found = run(hidden, weights)
    assert found.shape == hidden.shape and found.dtype == hidden.dtype and found.is_contiguous()
    assert rms_error(found, exact) < SCAN_VALUES[hidden.dtype]


@pytest.fixture
def calls(compiled, monkeypatch):
    """How often the operator was called; skips where the compiled library or a modern instruction set is missing."""
    if lib.current_level() == 0:
        pytest.skip("the operator is for wide vectors")
    found, operator = [], fused.mixer
    monkeypatch.setattr(fused, "mixer", lambda *inputs: found.append(1) or operator(*inputs))
    return found


@pytest.mark.parametrize("length", [1, 2, 3, 15, 16, 17, 32, 33, 63, 100, 197])
@pytest.mark.parametrize("directions", [1, 2])
def test_lengths(path, length, directions):
    check(torch.randn(2, length, 24), make_weights(directions=directions))


@pytest.mark.parametrize(
    "sizes",
    [
        {"states": 1},
        {"states": 5, "rank": 1},
        {"states": 20, "rank": 17},
        {"taps": 1},
        {"taps": 7, "conv_bias": False},
        {"width": 7, "inner": 13},
        {"width": 40, "inner": 33, "states": 7},
        {"width": 64, "inner": 128, "rank": 4},
        {"width": 1, "inner": 1, "rank": 1, "states": 1},
    ],
    ids=str,
)
def test_sizes(path, sizes):
    weights = make_weights(**sizes)
    check(torch.randn(3, 21, weights.in_proj.shape[1]), weights)


def test_strided_tokens_and_weights(path):
    weights, twice = make_weights(), make_weights(48, 96)
    strided = weights._replace(in_proj=twice.in_proj[::2, ::2], out_proj=twice.out_proj[::2, ::2])
    check(torch.randn(19, 2, 48).transpose(0, 1)[..., ::2], strided)


def test_double_precision_takes_the_single_steps(path):
    check(torch.randn(2, 19, 24).double(), cast(make_weights(), torch.float64))


@torch.no_grad()
@pytest.mark.parametrize("sizes", [{}, {"halve": True}, {"inner": 33}, {"width": 7, "rank": 40}], ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision(path, dtype, sizes):
    """Rounded are the tokens, what the three products take if they are of bfloat16, and the output."""
    weights = cast(make_weights(**sizes), dtype)
    hidden = torch.randn(3, 19, weights.in_proj.shape[1]).to(dtype)
    exact, _ = mixer_forward(hidden.double(), cast(weights, torch.float64))
    found = run(hidden, weights)
    assert found.dtype == dtype
    assert rms_error(found, exact) < (5 if path == "torch" else 2) * SCAN_VALUES[dtype]


@torch.no_grad()
@pytest.mark.parametrize("steps", [1, 16, 21])
def test_products_of_bfloat16_are_those_of_their_floats(compiled, monkeypatch, steps):
    """With the instruction, and where it is written out; what they round differs in nothing but the order of sums."""
    weights, hidden = cast(make_weights(), torch.bfloat16), torch.randn(2, steps, 24).bfloat16()
    monkeypatch.setattr(type(lib.library()), "multiplies_halves", lambda self: False)
    widened = run(hidden, weights)
    monkeypatch.setattr(type(lib.library()), "multiplies_halves", lambda self: True)
    monkeypatch.setattr(native, "_BY_INSTRUCTION", 1)
    found = [run(hidden, weights)]
    monkeypatch.undo()
    if lib.library().multiplies_halves():
        found.append(run(hidden, weights))
        assert rms_error(found[1], found[0]) < 1e-3  # single bits of an output of bfloat16
    assert all(0 < rms_error(other, widened) < 2 * SCAN_VALUES[torch.bfloat16] for other in found)


@torch.no_grad()
def test_the_norm_of_half_precision_is_added_in_float32(compiled):
    norm, x, residual = RMSNorm(24).bfloat16(), torch.randn(2, 5, 24).bfloat16(), torch.randn(2, 5, 24)
    normed, total = norm(x, residual)
    assert torch.equal(total, residual + x) and normed.dtype == torch.bfloat16
    assert rms_error(normed, norm.double()(total.double())) < SCAN_VALUES[torch.bfloat16]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("level", lib.LEVELS)
def test_what_goes_from_block_to_block_is_rounded_as_torch_rounds_it(level, dtype, monkeypatch):
    take_path(level, monkeypatch)
    exponents = torch.arange(-140, 128).float()
    odd = torch.tensor([0.0, 65519.0, 65520.0, 2.0**-14, 2.0**-24, 2.0**-25, 3.4e38, torch.inf, torch.nan])
    ties = torch.cat([2**exponents * (1 + k / 2**12) for k in range(0, 64)])
    x = torch.cat([odd, ties, torch.randn(4096) * 10 ** torch.randint(-9, 6, (4096,))])
    x = torch.cat([x, -x])
    found = x.clone()
    with Chain() as chain:
        narrow(chain, found, dtype)
    torch.testing.assert_close(found, x.to(dtype).float(), rtol=0, atol=0, equal_nan=True)


def test_empty_batch(path):
    assert run(torch.randn(0, 19, 24), make_weights()).shape == (0, 19, 24)


def test_neither_threads_nor_batch_change_a_bit(compiled):
    hidden, weights = torch.randn(7, 50, 24), make_weights()
    expected = run(hidden, weights)
    assert all(torch.equal(run(hidden[i : i + 1], weights)[0], expected[i]) for i in range(7))
    for threads in (1, 3, 4):
        torch.set_num_threads(threads)
        assert torch.equal(run(hidden, weights), expected)


def test_two_callers_at_once(compiled):
    weights = make_weights()
    many = [torch.randn(2, 40 + i, 24) for i in range(6)]
    expected = [run(hidden, weights) for hidden in many]
    with ThreadPoolExecutor(2) as pool:
        for found, right in zip(pool.map(lambda hidden: run(hidden, weights), many), expected, strict=True):
            assert torch.equal(found, right)


@torch.no_grad()
def test_runs_where_nobody_looks(calls):
    hidden, weights = torch.randn(2, 19, 24), make_weights(halve=True)
    found, signals = mixer_forward(hidden, weights)
    assert len(calls) == 1 and not any(signal is not None for signal in signals)
    exact, _ = mixer_forward(hidden.double(), cast(weights, torch.float64))
    assert rms_error(found, exact) < SCAN_VALUES[torch.float32]


@pytest.mark.parametrize("directions", [1, 2])
@torch.no_grad()
def test_gives_the_signals_of_the_single_steps(calls, directions):
    hidden, weights = torch.randn(9, 19, 24), make_weights(directions=directions)
    reads = frozenset({"delta", "delta_mean", "ssm_B", "ssm_C", "y"})
    out, signals = mixer_forward(hidden, weights, reads)
    assert len(calls) == 1
    exact_out, exact = mixer_forward(hidden.double(), cast(weights, torch.float64), reads)
    assert rms_error(out, exact_out) < SCAN_VALUES[torch.float32]
    for name in reads:
        assert rms_error(getattr(signals, name), getattr(exact, name)) < SCAN_VALUES[torch.float32]
    mean = mixer_forward(hidden, weights, frozenset({"delta_mean"}))[1].delta_mean
    assert rms_error(mean, exact.delta_mean) < SCAN_VALUES[torch.float32]


@torch.no_grad()
def test_leaves_the_rest_to_the_single_steps(calls, monkeypatch):
    hidden, weights = torch.randn(2, 19, 24), make_weights()
    mixer_forward(hidden.double(), cast(weights, torch.float64))
    mixer_forward(hidden, weights._replace(out_bias=torch.randn(24)))
    mixer_forward(hidden, weights._replace(in_bias=torch.randn(96)))
    with use_scan_backend("reference"):
        mixer_forward(hidden, weights)
    with torch.autocast("cpu"):
        mixer_forward(hidden, weights)
    with torch.enable_grad():
        mixer_forward(hidden, weights)
    take_path("baseline", monkeypatch)
    mixer_forward(hidden, weights)
    take_path("torch", monkeypatch)
    mixer_forward(hidden, weights)
    assert not calls


@torch.no_grad()
def test_tokens_and_weights_of_two_dtypes_are_for_torch_to_refuse(calls):
    for tokens, weights in ((torch.bfloat16, torch.float32), (torch.float32, torch.bfloat16)):
        with pytest.raises(RuntimeError, match="dtype"):
            mixer_forward(torch.randn(2, 19, 24).to(tokens), cast(make_weights(), weights))
    assert not calls


@torch.no_grad()
@pytest.mark.parametrize("name", DirectionWeights._fields)
def test_weights_that_do_not_fit_are_named(calls, name):
    weights = make_weights()
    ahead, behind = weights.directions
    short = getattr(behind, name)[:-1]
    with pytest.raises(InputError, match=f"{name} has shape"):
        mixer_forward(torch.randn(2, 5, 24), weights._replace(directions=(ahead, behind._replace(**{name: short}))))
    with pytest.raises(InputError, match="in_proj has shape"):
        mixer_forward(torch.randn(2, 5, 23), weights)
    away = getattr(behind, name).to("meta")
    with pytest.raises(InputError, match="on meta"):
        mixer_forward(torch.randn(2, 5, 24), weights._replace(directions=(ahead, behind._replace(**{name: away}))))


@torch.no_grad()
@pytest.mark.parametrize("names", ["", "delta_mean", "delta ssm_C y"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_norm_and_mixer_in_one_call_give_the_same_bits(calls, dtype, names):
    reads = frozenset(names.split())
    norm, weights = RMSNorm(24).to(dtype), cast(make_weights(), dtype)
    torch.nn.init.uniform_(norm.weight, 0.5, 2.0)
    x, residual = torch.randn(3, 19, 24).to(dtype), torch.randn(3, 19, 24)
    out, total, signals = fused.run_block(x, residual, BlockWeights(norm.weight, norm.eps, weights), reads)
    normed, expected_total = norm(x, residual)
    expected, expected_signals = fused.mixer(normed.to(dtype), weights, reads)
    assert out.dtype == dtype and torch.equal(total, expected_total)
    if dtype == torch.float32:  # others may be rounded between the two
        assert torch.equal(out, expected)
    assert rms_error(out, expected) < 2 * SCAN_VALUES[dtype]
    for name in reads:
        assert rms_error(getattr(signals, name), getattr(expected_signals, name)) < 2 * SCAN_VALUES[dtype]


@torch.no_grad()
def test_a_norm_that_does_not_fit_is_refused(calls):
    norm, tokens = RMSNorm(24), torch.randn(2, 5, 24)
    for x, residual in ((tokens, tokens[:, :1]), (tokens[..., :20], tokens[..., :20])):
        with pytest.raises(InputError, match="shapes do not fit"):
            norm(x, residual)


class Watch(TorchDispatchMode):
    """Sees every operator."""

    def __init__(self):
        super().__init__()
        self.seen = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen.add(str(func))
        return func(*args, **kwargs or {})


@torch.no_grad()
def test_who_watches_sees_the_operators(calls):
    """Otherwise they are called without torch's dispatcher between, which gives the same bits."""
    norm, hidden, weights = RMSNorm(24), torch.randn(2, 19, 24), make_weights()

    def output():
        return mixer_forward(norm(hidden, hidden)[0], weights)[0]

    alone = output()
    with Watch() as watch:
        assert torch.equal(output(), alone)
    assert {"mtrkit.mixer.default", "mtrkit.add_rms_norm.default"} <= watch.seen
    with torch.profiler.profile() as profile:
        output()
    assert "mtrkit::mixer" in {event.key for event in profile.key_averages()}


@torch.no_grad()
@pytest.mark.filterwarnings("ignore")  # tracing says that it is deprecated
@pytest.mark.parametrize("conv_bias", [True, False])
def test_traces(calls, conv_bias):
    mixer, hidden = Mixer(conv_bias=conv_bias), torch.randn(2, 19, 24)
    traced = torch.jit.trace(mixer, torch.randn(2, 19, 24))
    assert "mtrkit::mixer" in str(traced.inlined_graph) and torch.equal(traced(hidden), mixer(hidden))


@torch.no_grad()
def test_a_model_without_memory_runs():
    """On the meta device there is no autocast to ask for."""
    with torch.device("meta"):
        model = mtrkit.VisionMamba(img_size=32, patch_size=4, embed_dim=16, depth=3, num_classes=5)
        mtrkit.apply_reduction(model, ratio=0.2)
        assert model(torch.empty(2, 3, 32, 32)).shape == (2, 5)


@pytest.mark.filterwarnings("ignore")
def test_is_a_well_formed_operator(path):
    weights = make_weights()
    directions = [weight for way in weights.directions for weight in way]
    for hidden in (torch.randn(2, 19, 24), torch.randn(2, 24, 19).transpose(1, 2)):
        inputs = (hidden, weights.in_proj, weights.out_proj, directions, True, "delta ssm_B")
        torch.library.opcheck(torch.ops.mtrkit.mixer.default, inputs)


class Mixer(torch.nn.Module):
    """A mixer with weights from outside."""

    def __init__(self, **options):
        super().__init__()
        self.weights = make_weights(**options)

    def forward(self, hidden):
        return mixer_forward(hidden, self.weights)[0] * 2


@torch.no_grad()
@pytest.mark.filterwarnings("ignore")  # torch's compiler has its own
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiles_to_one_graph(backend):
    hidden, mixer = torch.randn(2, 19, 24), Mixer()
    assert torch.equal(torch.compile(mixer, fullgraph=True, backend=backend)(hidden), mixer(hidden))


@torch.no_grad()
@pytest.mark.filterwarnings("ignore")
def test_exports_with_a_free_batch_size(compiled):
    mixer = Mixer()
    free = {"hidden": {0: torch.export.Dim("batch", min=2, max=64)}}
    program = torch.export.export(mixer, (torch.randn(2, 19, 24),), dynamic_shapes=free)
    if lib.current_level() > 0:
        assert [str(node.target) for node in program.graph.nodes].count("mtrkit.mixer.default") == 1
    other = torch.randn(5, 19, 24)
    assert torch.equal(program.module()(other), mixer(other))


@pytest.mark.parametrize("shape", [(3, 7, 24), (2, 5, 33), (1, 70, 1), (0, 4, 16), (5, 192)], ids=str)
def test_a_sum_and_its_norm(path, shape):
    x, residual, weight = torch.randn(shape), torch.randn(shape) * 3, torch.randn(shape[-1])
    normed, total = fused.add_rms_norm(x, residual, weight, 1e-5)
    assert torch.equal(total, residual + x)
    exact = residual.double() + x.double()
    exact = exact / (exact.square().mean(dim=-1, keepdim=True) + 1e-5).sqrt() * weight.double()
    assert rms_error(normed, exact) < SCAN_VALUES[torch.float32] or not normed.numel()


@pytest.mark.filterwarnings("ignore")
def test_the_norm_is_a_well_formed_operator(path):
    weight, transposed = torch.randn(24), torch.randn(2, 24, 7).transpose(1, 2)
    for x in (torch.randn(2, 7, 24), transposed):
        torch.library.opcheck(torch.ops.mtrkit.add_rms_norm.default, (x, x + 1, weight, 1e-5))
