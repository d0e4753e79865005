"""AuM, FastVim's Vim, PointMamba, Caduceus and Falcon-Mamba: reduced as their own code runs, or refused in a line."""

import pytest
import torch
from torch import nn

import mtrkit
from mtrkit.adapters import find_host
from mtrkit.types import MixerCall
from tests.helpers.families import _spread
from tests.helpers.tolerances import rms_error
from tests.standins import language, more_families
from tests.standins.mamba_vision import MambaVision
from tests.test_matrix import fingerprint

MIXER = 1e-5  # float32 beside a float64 loop, through two projections
SEED = torch.Generator().manual_seed(1)
IMAGES, SPECTROGRAMS = torch.randn(2, 3, 32, 32, generator=SEED), torch.randn(2, 32, 16, generator=SEED)
POINTS, IDS = torch.randn(2, 64, 3, generator=SEED), torch.randint(12, (2, 40), generator=SEED)


def falcon(**options):
    transformers = pytest.importorskip("transformers")
    sizes = {"vocab_size": 12, "hidden_size": 32, "state_size": 8, "num_hidden_layers": 4}
    return language._spread(transformers.FalconMambaModel(transformers.FalconMambaConfig(**sizes, **options)).eval())


def build(cls, **options):
    return lambda: _spread(cls(**options).eval())


CASES = {  # name: (family, builder, input, what an answer is, tokens, special places)
    "aum": ("audio_mamba", build(more_families.AudioMamba), SPECTROGRAMS, None, 33, [16]),
    "aum_end": (
        "audio_mamba",
        build(more_families.AudioMamba, use_middle_cls_token=False, use_end_cls_token=True),
        SPECTROGRAMS,
        None,
        33,
        [32],
    ),
    "fastvim_vim": ("fastvim_vim", build(more_families.FastVimVim), IMAGES, None, 65, [32]),
    "fastvim_vim_plain": (
        "fastvim_vim",
        build(more_families.FastVimVim, use_norm_after_ssm=False, use_middle_cls_token=False),
        IMAGES,
        None,
        65,
        [0],
    ),
    "point_mamba": ("point_mamba", build(more_families.PointMambaScan), POINTS, None, 32, []),
    "point_mamba_cls": (
        "point_mamba",
        build(more_families.PointMambaScan, use_cls_token=True),
        POINTS,
        None,
        33,
        [32],
    ),
    "caduceus": ("caduceus", build(more_families.CaduceusMixerModel), IDS, 0, 40, []),
    "caduceus_ps": ("caduceus", build(more_families.CaduceusMixerModel, rcps=True), IDS, 0, 40, []),
    "falcon_mamba": ("falcon_mamba", falcon, IDS, "last_hidden_state", 40, [39]),
}


@pytest.fixture(params=CASES)
def case(request):
    family, make, inputs, picks, tokens, special = CASES[request.param]
    model = make()

    @torch.no_grad()
    def answer():
        found = model(inputs)
        return found if picks is None else found[picks]

    size = {"input_size": tuple(inputs.shape[1:])} if inputs is IDS else {}
    return family, model, answer, size, tokens, special


@pytest.mark.parametrize("method", ["mtr", "runs", "tome"])
def test_reduced_and_restored(case, method):
    family, model, answer, size, tokens, special = case
    before, dense = fingerprint(model), answer()
    mtrkit.apply_reduction(model, method, ratio=0, **size)
    assert torch.equal(answer(), dense)
    mtrkit.apply_reduction(model, method, ratio=0.2, **size)
    info = mtrkit.reduction_info(model)
    assert (info.adapter, info.num_tokens) == (family, tokens) and info.tokens[-1] < tokens
    with mtrkit.trace_reduction(model) as trace:
        reduced = answer()
    assert reduced.shape == dense.shape and reduced.isfinite().all() and not torch.allclose(reduced, dense)
    assert all([place] in trace.groups(0) for place in special)
    mtrkit.remove_reduction(model)
    assert fingerprint(model) == before and torch.equal(answer(), dense)


@torch.no_grad()
def test_the_readable_mixer_computes_what_its_own_code_does(case, request):
    _, model, *_ = case
    host, adapter = find_host(model)
    tokens = torch.randn(2, 9, 32)
    for block in adapter.blocks(host):
        mixer = adapter.mixer(block)
        ours, signals = adapter.run_mixer(mixer, tokens, MixerCall(frozenset({"delta", "y"})))
        assert rms_error(ours, mixer(tokens)) < MIXER
        assert signals.delta.shape == signals.y.shape == (2, 9, 32 if request.node.callspec.id.endswith("_ps") else 64)
        assert rms_error(adapter.run_mixer(mixer, tokens, MixerCall())[0], ours) < MIXER


def test_dropping_one_token_moves_little(case):
    """The blocks that read run what the others run: a wrong one would move much more."""
    _, model, answer, size, *_ = case
    dense = answer()
    mtrkit.apply_reduction(model, "mtr", r=1, layers=[3], **size)
    moved = (answer() - dense).norm(dim=-1) / dense.norm(dim=-1)  # of every place, two of which are merged
    assert moved.max() > 0 and moved.median() < 0.2


def test_spectrograms_in_patches_of_another_size():
    model = CASES["aum"][1]()
    mtrkit.apply_reduction(model, ratio=0.2)
    assert mtrkit.reduction_info(model).input_size == (32, 16)
    with torch.no_grad():
        assert model(SPECTROGRAMS, patch_size=(8, 4), strides=(8, 4)).isfinite().all()
    with pytest.raises(mtrkit.UnsupportedModelError, match="if_random_cls_token_position moves the class token"):
        model(SPECTROGRAMS, if_random_cls_token_position=True)
    with pytest.raises(mtrkit.InputError, match=r"takes spectrograms such as \(32, 16\)"):
        mtrkit.apply_reduction(model, ratio=0.2, input_size=(1, 32, 16))


@pytest.mark.parametrize(
    ("name", "call", "says"),
    [
        ("fastvim_vim", lambda model: model.forward_features(IMAGES, out_indices=[1]), "out_indices reads between"),
        ("caduceus", lambda model: model(IDS, output_hidden_states=True), "output_hidden_states reads between"),
        ("falcon_mamba", lambda model: model(IDS, use_cache=True), "cached generation"),
    ],
)
def test_calls_that_need_every_token_are_refused(name, call, says):
    model = CASES[name][1]()
    mtrkit.apply_reduction(model, ratio=0.2, **({"input_size": (40,)} if name != "fastvim_vim" else {}))
    with pytest.raises(mtrkit.UnsupportedModelError, match=says):
        call(model)


@pytest.mark.parametrize("name", ["caduceus", "caduceus_ps", "point_mamba", "fastvim_vim", "aum"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_hooks_on_layers_that_the_own_code_reads_are_refused(name, when):
    _, make, inputs, *_ = CASES[name]
    model, size = make(), {"input_size": (40,)} if inputs is IDS else {}
    mixer = find_host(model)[1].mixer(find_host(model)[1].blocks(model)[0])
    inside = getattr(mixer, "submodule", mixer)
    layer = getattr(inside, "mamba_rev", inside).in_proj
    if when == "before":
        layer.register_forward_hook(lambda *args: None)
    with pytest.raises(mtrkit.UnsupportedModelError, match="`in_proj` of a .* with more than its weights"):
        mtrkit.apply_reduction(model, "tome", ratio=0.15, **size)
        layer.register_forward_hook(lambda *args: None)
        model(inputs)


def dropout_between_blocks():
    model = more_families.PointMambaScan()
    model.blocks.drop_out = nn.Dropout(0.1)
    return model


REFUSED = [
    (dropout_between_blocks, r"PointMambaScan \(point_mamba\) cannot be reduced: .*drop_out = torch.nn.Identity"),
    (lambda: more_families.CaduceusMixerModel(tie=False), "projections of its own for each direction"),
    (lambda: more_families.CaduceusMixerModel(strategy="ew_multiply"), "does not add two directions"),
    (lambda: more_families.AudioMamba(if_rope=True), r"\(audio_mamba\) cannot be reduced: if_rope=True"),
]


@pytest.mark.parametrize(("make", "says"), REFUSED, ids=[str(index) for index in range(len(REFUSED))])
def test_forms_that_are_not_served_are_told_why_in_a_line(make, says):
    model = make()
    before = fingerprint(model)
    with pytest.raises(mtrkit.UnsupportedModelError, match=says) as caught:
        mtrkit.apply_reduction(model)
    assert "\n" not in str(caught.value) and "nearest" not in str(caught.value)
    assert fingerprint(model) == before


def test_the_default_method_names_one_that_works_if_signals_are_missing():
    model = MambaVision().eval()
    with pytest.raises(mtrkit.UnsupportedModelError, match=r"apply_reduction\(model, 'tome'\)") as caught:
        mtrkit.apply_reduction(model)
    assert "'mamba_vision'" in str(caught.value)
    mtrkit.apply_reduction(model, "tome")


def test_strands_cost_twice_and_turn_with_the_text():
    one, two = (more_families.CaduceusMixerModel(dim, rcps=dim == 64) for dim in (32, 64))
    assert mtrkit.count_flops(two, (40,)).blocks[0] == 2 * mtrkit.count_flops(one, (40,)).blocks[0]
    mixer, x = two.layers[0].mixer, torch.randn(2, 9, 64)
    adapter = find_host(two)[1]
    ahead, behind = (adapter.run_mixer(mixer, tokens, MixerCall(frozenset({"delta"}))) for tokens in (x, x.flip(1, 2)))
    torch.testing.assert_close(behind[0], ahead[0].flip(1, 2))
    torch.testing.assert_close(behind[1].delta, ahead[1].delta.flip(1))


@pytest.mark.parametrize("drop", ["dt_layernorm", "norms"])
def test_falcons_norms_are_what_the_adapter_computes(drop):
    """Whether modules hold them, as now, or only an epsilon says so, as before."""
    model = falcon(mixer_rms_eps=0.3)
    names = ("dt_layernorm", "b_layernorm", "c_layernorm") if drop == "norms" else (drop,)
    wanted = model.layers[0].mixer(torch.ones(1, 5, 32))
    for name in names:
        delattr(model.layers[0].mixer, name) if hasattr(model.layers[0].mixer, name) else None
    host, adapter = find_host(model)
    found, _ = adapter.run_mixer(host.layers[0].mixer, torch.ones(1, 5, 32), MixerCall())
    assert adapter.name == "falcon_mamba" and rms_error(found.detach(), wanted.detach()) < MIXER
