"""Language Mamba: reduced scoring gives what loops give, padding stays out of it, generation is refused."""

import copy
import inspect
import io
import pickle
from functools import partial

import pytest
import torch
from torch import nn

import mtrkit
from mtrkit.adapters import find_adapter
from mtrkit.adapters import hf_mamba as hf_mamba_adapter
from mtrkit.errors import InputError, OptionError, UnsupportedModelError
from mtrkit.types import MixerCall
from tests.helpers.threads import answers_of_two_threads
from tests.helpers.tolerances import rms_error
from tests.standins.language import LANGUAGE, MixerModel, hf_mamba, mamba_lm, plain_mixer, plain_mtr, twins
from tests.test_matrix import fingerprint

IDS = torch.randint(40, (3, 37), generator=torch.Generator().manual_seed(1))
MATRIX = [(method, family) for method in mtrkit.list_methods() for family in LANGUAGE]
MIXER_ERROR, MODEL_ERROR = 1e-5, 1e-4  # float32 sums in another order, against float64 loops; six mixers in a row
SIZE = {"input_size": (37,)}

pytestmark = pytest.mark.filterwarnings("ignore::mtrkit.errors.SmallModelWarning")


@pytest.fixture(params=LANGUAGE)
def model(request):
    """A model of each family under its language head."""
    return LANGUAGE[request.param]()


@torch.no_grad()
def run(model, ids=IDS, **options):
    """Its logits."""
    return model(ids, **options).logits


def stack_of(model):
    """Its stack and the embedding of it."""
    stack = model.backbone
    return stack, getattr(stack, "embedding", None) or stack.embeddings


@torch.no_grad()
@pytest.mark.parametrize("conv_bias", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("family", LANGUAGE)
def test_the_mixer_is_one_direction_token_by_token(family, bias, conv_bias):
    stack, _ = stack_of(LANGUAGE[family](bias=bias, conv_bias=conv_bias))
    adapter, hidden = find_adapter(stack), torch.randn(2, 11, 32)
    for block in stack.layers:
        ours, signals = adapter.run_mixer(block.mixer, hidden, MixerCall(frozenset({"delta", "delta_mean"})))
        wanted, delta, _ = plain_mixer(block.mixer, hidden)
        assert rms_error(ours, wanted) < MIXER_ERROR and rms_error(ours, block.mixer(hidden)) < MIXER_ERROR
        assert rms_error(signals.delta, delta) < MIXER_ERROR
        assert rms_error(signals.delta_mean, delta.mean(-1)) < MIXER_ERROR


@pytest.mark.parametrize(("method", "family"), MATRIX)
def test_changes_then_restores(method, family):
    model = LANGUAGE[family]()
    before, dense, keys = fingerprint(model), run(model), list(model.state_dict())
    assert mtrkit.apply_reduction(model, method, ratio=0.3, **SIZE) is model
    reduced = run(model)
    assert reduced.shape == dense.shape and reduced.dtype == dense.dtype and reduced.isfinite().all()
    assert not torch.allclose(reduced, dense)
    assert mtrkit.reduction_info(model).ratio_reached == pytest.approx(0.3, abs=0.02)
    assert list(model.state_dict()) == keys
    with mtrkit.reduction_disabled(model):
        assert torch.equal(run(model), dense)
    assert torch.equal(run(model), reduced)
    mtrkit.remove_reduction(model)
    assert fingerprint(model) == before
    assert torch.equal(run(model), dense)


def test_ratio_zero_changes_no_bit(model):
    dense = run(model)
    mtrkit.apply_reduction(model, "utr", ratio=0)
    assert torch.equal(run(model), dense)


@torch.no_grad()
def test_every_place_is_what_plain_loops_give(model):
    mtrkit.apply_reduction(model, "mtr", ratio=0.4, layers=(1, 3, 4), **SIZE)
    reduced, info = run(model), mtrkit.reduction_info(model)
    mtrkit.remove_reduction(model)
    stack, embedding = stack_of(model)
    features = [plain_mtr(stack, embedding, ids, info.layers, info.tokens) for ids in IDS]
    assert rms_error(reduced, model.lm_head(stack.norm_f(torch.stack(features)))) < MODEL_ERROR


@pytest.mark.parametrize(
    ("method", "options"),
    [("mtr", {}), ("utr", {}), ("utr", {"residual": "prune"}), ("hsa", {}), ("rmeeto", {"merge": "max"})],
)
def test_both_families_reduce_the_same_weights_alike(method, options):
    hf, plain = twins()
    assert rms_error(run(hf), run(plain)) < MODEL_ERROR
    for model in (hf, plain):
        mtrkit.apply_reduction(model, method, ratio=0.3, layers=(2, 4), **SIZE, **options)
    assert rms_error(run(hf), run(plain)) < MODEL_ERROR


def test_the_last_token_stays_alone_and_merged_places_answer_alike(model):
    mtrkit.apply_reduction(model, "utr", ratio=0.35, hidden="merge", **SIZE)
    with mtrkit.trace_reduction(model) as trace:
        logits = run(model)
    assert (trace.slot == trace.slot[:, -1:]).sum() == len(IDS)
    merged = 0
    for sample in range(len(IDS)):
        for group in trace.groups(sample):
            merged += len(group) > 1
            assert torch.equal(logits[sample, group], logits[sample, group[:1]].expand(len(group), -1))
    assert merged


def test_a_text_does_not_depend_on_its_batch(model):
    mtrkit.apply_reduction(model, "mtr", **SIZE)
    others = torch.cat([IDS[:1], IDS.flip(0)])
    assert torch.equal(run(model)[0], run(model, torch.cat([IDS[:1], IDS[:2].flip(0)]))[0])
    torch.testing.assert_close(run(model)[0], run(model, others)[0], rtol=1e-4, atol=1e-4)


def padded(side, lengths=(37, 20, 20, 1, 6)):
    """Texts of these lengths in one batch, their mask, and the texts."""
    texts = [IDS[i % 3, :length] for i, length in enumerate(lengths)]
    ids, mask = torch.full((len(texts), 40), 7), torch.zeros(len(texts), 40, dtype=torch.long)
    for row, text in enumerate(texts):
        start = {"left": 40 - len(text), "right": 0, "both": (40 - len(text)) // 2}[side]
        ids[row, start : start + len(text)], mask[row, start : start + len(text)] = text, 1
    return ids, mask, texts


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("method", ["mtr", "hsa"])
@pytest.mark.parametrize("side", ["left", "right", "both"])
def test_a_padded_text_is_reduced_as_it_is_alone(side, method, bias):
    model = mtrkit.apply_reduction(hf_mamba(bias=bias), method, ratio=0.3, **SIZE)
    ids, mask, texts = padded(side)
    logits = run(model, ids, attention_mask=mask)
    for row, text in enumerate(texts):
        alone = run(model, text[None])[0]
        torch.testing.assert_close(logits[row, mask[row] == 1], alone, rtol=1e-4, atol=1e-4)
    ids[mask == 0] = 3
    assert torch.equal(run(model, ids, attention_mask=mask), logits)


@torch.no_grad()
def test_padding_in_every_form_of_call():
    model = mtrkit.apply_reduction(hf_mamba(), "mtr", **SIZE).backbone
    ids, mask, texts = padded("left")
    answer = model(ids, attention_mask=mask.bool(), output_hidden_states=True)
    last, every = model(
        inputs_embeds=model.embeddings(ids), attention_mask=mask, return_dict=False, output_hidden_states=True
    )
    assert torch.equal(last, answer.last_hidden_state) and len(every) == len(answer.hidden_states) == 7
    alone = model(input_ids=texts[1][None], output_hidden_states=True)
    for batch, single in zip(every, alone.hidden_states, strict=True):
        assert batch.shape == (5, 40, 32) and not batch[mask == 0].any()
        torch.testing.assert_close(batch[1, 20:], single[0], rtol=1e-4, atol=1e-4)
    full = model(IDS, attention_mask=torch.ones_like(IDS)).last_hidden_state
    assert torch.equal(full, model(IDS).last_hidden_state)


def test_masks_that_say_nothing_clear_are_refused():
    model = mtrkit.apply_reduction(hf_mamba(), "mtr", **SIZE)
    hole, nothing = torch.ones_like(IDS), torch.ones_like(IDS)
    hole[1, 5], nothing[2] = 0, 0
    for mask in (hole, nothing):
        with pytest.raises(InputError, match="row without tokens or with padding between tokens"):
            run(model, attention_mask=mask)
    with pytest.raises(InputError, match=r"shape \(3, 36\), not \(3, 37\)"):
        run(model, attention_mask=hole[:, 1:])


@torch.no_grad()
def test_hidden_states_have_every_place():
    model = hf_mamba()
    dense = model(IDS, output_hidden_states=True)
    mtrkit.apply_reduction(model, "mtr", layers=(2, 4), **SIZE)
    reduced = model(IDS, output_hidden_states=True)
    assert [h.shape for h in reduced.hidden_states] == [h.shape for h in dense.hidden_states]
    assert torch.equal(reduced.hidden_states[0], dense.hidden_states[0])
    assert not torch.allclose(reduced.hidden_states[1], dense.hidden_states[1])
    before_norm, after_norm = reduced.hidden_states[-2:]
    assert torch.equal(model.backbone.norm_f(before_norm), after_norm)
    with mtrkit.trace_reduction(model) as trace:
        run(model)
    for slots, features in zip(trace.stages[0].slot, reduced.hidden_states[1], strict=True):
        assert len(features.unique(dim=0)) == len(slots.unique())


def test_generation_is_refused_and_works_without_reduction():
    model = hf_mamba()
    wanted = model.generate(IDS[:1], max_new_tokens=3, do_sample=False)
    with torch.no_grad():
        cache = model(IDS).cache_params
    name = "cache" if "cache" in inspect.signature(type(model).forward).parameters else "cache_params"
    mtrkit.apply_reduction(model, "mtr", **SIZE)
    with torch.no_grad():
        assert model(IDS).cache_params is None and model.config.use_cache
    calls = [
        lambda: model.generate(IDS[:1], max_new_tokens=3),
        lambda: run(model, use_cache=True),
        lambda: run(model, IDS[:, :1], **{name: cache}),
        lambda: model.backbone(IDS, None, cache),
        lambda: model.backbone(IDS, None, None, True),
    ]
    for call in calls:
        with pytest.raises(UnsupportedModelError, match=r"cached generation .* mtrkit.reduction_disabled\(model\)"):
            call()
    with mtrkit.reduction_disabled(model):
        assert torch.equal(model.generate(IDS[:1], max_new_tokens=3, do_sample=False), wanted)
    with pytest.raises(ValueError, match="exactly one of input_ids or inputs_embeds"):
        model.backbone()


def test_generation_of_mamba_ssm_is_refused():
    model = mtrkit.apply_reduction(mamba_lm(), "mtr", **SIZE)
    with pytest.raises(UnsupportedModelError, match="generation .*inference_params"):
        model(IDS, inference_params={})
    with pytest.raises(UnsupportedModelError, match="seq_idx has an entry per token"):
        model(IDS, seq_idx=torch.zeros_like(IDS))
    torch.testing.assert_close(run(model, num_last_tokens=1), run(model)[:, -1:])
    with mtrkit.reduction_disabled(model):
        model(IDS, inference_params={})


@torch.no_grad()
def test_only_dropping_by_chance_is_causal(model):
    changed = IDS.clone()
    changed[:, 30:-1] = (changed[:, 30:-1] + 1) % 40
    mtrkit.apply_reduction(model, "random", **SIZE)
    torch.testing.assert_close(run(model)[:, :30], run(model, changed)[:, :30], rtol=1e-5, atol=1e-5)
    mtrkit.apply_reduction(model, "mtr", **SIZE)
    assert not torch.allclose(run(model)[:, :30], run(model, changed)[:, :30], atol=1e-2)


def test_texts_of_any_length(model):
    dense = {length: run(model, IDS[:, :length]) for length in (1, 2, 5, 20)}
    mtrkit.apply_reduction(model, "mtr", ratio=0.35, **SIZE)
    for length, wanted in dense.items():
        assert run(model, IDS[:, :length]).shape == wanted.shape
    assert rms_error(run(model, IDS[:, :1]), dense[1]) < MODEL_ERROR  # nothing can go
    plan = vars(model.backbone)["_mtrkit_reduction"].plan
    assert plan.num_kept(5, 5) < 5 and plan.num_kept(5, 20) < 14
    assert run(model, IDS[:0]).shape == (0, 37, 40)


def test_copies_work(model):
    dense = run(model)
    reduced = run(mtrkit.apply_reduction(model, "utr", **SIZE))
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    copies = [copy.deepcopy(model), pickle.loads(pickle.dumps(model)), torch.load(buffer, weights_only=False)]
    mtrkit.remove_reduction(model)
    for twin in copies:
        assert torch.equal(run(twin), reduced)
        assert torch.equal(run(mtrkit.remove_reduction(twin)), dense)


def test_two_threads_share_a_model(model):
    mtrkit.apply_reduction(model, "mtr", **SIZE)
    inputs = [IDS, IDS.flip(1)[:, 5:]]
    wanted = [run(model, ids) for ids in inputs]
    answers = answers_of_two_threads(partial(run, model), inputs)
    for i in range(2):
        assert len(answers[i]) == 3 and all(torch.equal(answer, wanted[i]) for answer in answers[i])


@pytest.mark.parametrize("method", ["mtr", "hsa"])
def test_gradients_reach_every_parameter(model, method):
    mtrkit.apply_reduction(model.train(), method, **SIZE)
    masks = {"attention_mask": padded("right")[1]} if hasattr(model, "config") else {}
    model(padded("right")[0], **masks).logits.square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name


def test_half_precision(model):
    mtrkit.apply_reduction(model, "utr", **SIZE)
    with torch.autocast("cpu", torch.bfloat16):
        assert run(model).isfinite().all()
    assert run(model.to(torch.bfloat16)).isfinite().all()


@torch.no_grad()
@pytest.mark.parametrize("fp32", [True, False])
def test_the_residual_keeps_its_precision(fp32):
    model = hf_mamba(residual_in_fp32=fp32).to(torch.bfloat16)
    dense = model(IDS, output_hidden_states=True).hidden_states
    mtrkit.apply_reduction(model, "utr", **SIZE)
    reduced = model(IDS, output_hidden_states=True).hidden_states
    assert [h.dtype for h in reduced] == [h.dtype for h in dense]


@torch.no_grad()
@pytest.mark.filterwarnings("ignore:Dynamo detected a call to a `functools.lru_cache`")  # in transformers
def test_compiles_without_a_break_at_every_length():
    model = mtrkit.apply_reduction(hf_mamba(), **SIZE).backbone
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="eager", fullgraph=True, dynamic=False)
    for length in (8, 12):
        answer = compiled(IDS[:, :length]).last_hidden_state
        torch.testing.assert_close(answer, model(IDS[:, :length]).last_hidden_state)


def test_flops_are_those_of_what_was_passed(model):
    inner, state, rank, width, length = 64, 8, 2, 4, 100
    block = length * (32 * 3 * inner + inner * (2 * rank + 2 * state) + inner * (9 * state + 2))
    block += (length + width - 1) * inner * width
    report = mtrkit.count_flops(model, (length,))
    assert report.total == 6 * block + length * 32 * 40 and report.embedding == 0
    assert mtrkit.count_flops(model, (length,), directions="all").total == report.total
    assert mtrkit.count_flops(model.backbone, (length,)).total == 6 * block
    mtrkit.apply_reduction(model, "random", ratio=0.3)
    info = mtrkit.reduction_info(model)
    assert info.input_size == (2048,) and info.flops_reduced.head == 2048 * 32 * 40
    assert info.ratio_reached == pytest.approx(0.3, abs=1e-3)


@pytest.mark.parametrize("size", [(3, 32, 32), (1,), (0,), (2.0,), ()])
def test_a_size_that_is_no_length_is_refused(model, size):
    with pytest.raises((InputError, OptionError), match="give \\(length,\\)"):
        mtrkit.count_flops(model, size) if size else mtrkit.apply_reduction(model, input_size=size)
    assert mtrkit.reduction_info(model) is None


def test_a_ratio_out_of_reach_is_refused_when_asked_for(model):
    with pytest.raises(mtrkit.errors.ScheduleError, match="out of reach"):
        mtrkit.apply_reduction(model, ratio=0.9)


def test_what_the_weights_do_not_say_is_refused(model):
    class Adapted(nn.Linear):
        def forward(self, x):
            return super().forward(x) + 1

    block = model.backbone.layers[4]
    block.mixer.activation = "gelu"
    with pytest.raises(UnsupportedModelError, match="activation is 'gelu', not SiLU"):
        mtrkit.apply_reduction(model)
    block.mixer.activation, block.mixer.dt_proj = "silu", Adapted(2, 64)
    with pytest.raises(UnsupportedModelError, match="`dt_proj` of a .* is a Adapted with more than its weights"):
        mtrkit.apply_reduction(model)


def test_other_mixers_and_blocks_are_refused_by_name():
    transformers = pytest.importorskip("transformers")
    sizes = {"vocab_size": 40, "hidden_size": 32, "state_size": 8, "num_hidden_layers": 2}
    second = transformers.Mamba2Config(**sizes, head_dim=16, num_heads=4, n_groups=1)
    with pytest.raises(UnsupportedModelError, match="family mamba2 .* one decay per head"):
        mtrkit.apply_reduction(transformers.Mamba2ForCausalLM(second))


@pytest.mark.parametrize("trace", ["buffer", "attribute", "parameter"])
def test_mixers_that_do_more_are_no_plain_mamba(model, trace):
    mixer = model.backbone.layers[2].mixer
    if trace == "buffer":
        mixer.register_buffer("b_c_rms", torch.ones(8), persistent=False)
    elif trace == "attribute":
        mixer.rms_eps = 1e-6
    else:
        mixer.A_b_log = nn.Parameter(torch.zeros(64, 8))
    with pytest.raises(UnsupportedModelError, match=r"`layers.2` has a mixer with `(b_c_rms|A_b_log|rms_eps)`"):
        mtrkit.apply_reduction(model)


def test_blocks_with_an_mlp_are_refused():
    model = MixerModel()
    model.layers[3].mlp = nn.Identity()
    with pytest.raises(UnsupportedModelError, match="MLP behind the mixer"):
        mtrkit.apply_reduction(model)


@torch.no_grad()
def test_state_alignment_decays_by_the_whole_delta(monkeypatch):
    model, seen = mamba_lm(), []
    adapter = find_adapter(model.backbone)
    plain = type(adapter).run_mixer

    def recording(self, mixer, hidden, call):
        seen.append((hidden, call.gaps))
        return plain(self, mixer, hidden, call)

    monkeypatch.setattr(type(adapter), "run_mixer", recording)
    mtrkit.apply_reduction(model, "hsa", layers=(1,), state="decay", removed_delta="last", **SIZE)
    with mtrkit.trace_reduction(model) as trace:
        run(model)
    delta, gaps = plain_mixer(model.backbone.layers[0].mixer, seen[0][0])[1], seen[1][1]
    dropped = delta * (trace.slot < 0)[..., None]
    torch.testing.assert_close(gaps.forward.sum(1), dropped.sum(1).float(), rtol=1e-4, atol=1e-4)


def test_state_alignment_is_refused_where_blocks_hand_nothing_on():
    with pytest.raises(UnsupportedModelError, match="gap-aware scans, which 'hf_mamba' models do not support"):
        mtrkit.apply_reduction(hf_mamba(), "hsa", state="decay")


def test_adapters_that_a_fused_kernel_would_ignore_in_training_are_refused(monkeypatch):
    """transformers hands mamba_ssm's fused mixer the weights of x_proj and out_proj, in training only."""
    model = hf_mamba()
    for block in model.backbone.layers:
        block.mixer.x_proj.register_forward_hook(lambda *_: None)  # as good as an adapter
    mtrkit.apply_reduction(model, "random", **SIZE)
    model.train()(IDS)
    monkeypatch.setattr(hf_mamba_adapter, "fused_kernels_installed", lambda: True)
    run(model.eval())
    with pytest.raises(UnsupportedModelError, match="`x_proj` of a MambaMixer is a Linear with more than its weights"):
        model.train()(IDS)
    with pytest.raises(UnsupportedModelError, match="`x_proj` of a MambaMixer"):
        mtrkit.apply_reduction(model, "mtr", **SIZE)
