"""The official repositories' classes and their forks: mixers, clips, special tokens, and options that are refused."""

import pytest
import torch

import mtrkit
from mtrkit.adapters import find_adapter
from mtrkit.adapters.stack import spread
from mtrkit.types import MixerCall
from tests.helpers.families import FAMILIES, videomamba_checkpointed
from tests.helpers.tolerances import rms_error
from tests.standins import official
from tests.standins.forks import Vim4Path
from tests.standins.hustvl_vim import MambaLayers
from tests.test_matrix import IMAGES, fingerprint, run

MIXER = 1e-5  # float32 beside the stand-in's float64 loop, through two projections
OFFICIAL = ("hustvl_vim_early", "vim4path", "videomamba", "mambar", "mambar_neck")


@pytest.mark.parametrize("family", OFFICIAL)
@torch.no_grad()
def test_the_readable_mixer_computes_what_the_fused_one_does(family):
    model, tokens = FAMILIES[family](), torch.randn(2, 9, 32)
    adapter = find_adapter(model)
    for block in model.layers:
        ours, signals = adapter.run_mixer(block.mixer, tokens, MixerCall(frozenset({"delta", "y"})))
        assert rms_error(ours, block.mixer(tokens)) < MIXER
    assert signals.delta.shape == signals.y.shape == (2, 9, 64)


@torch.no_grad()
def test_clips_are_reduced_over_space_and_time():
    model, clips = official.VideoMamba(num_frames=4, patch_size=8).eval(), torch.randn(2, 3, 4, 32, 32)
    dense = model(clips)
    mtrkit.apply_reduction(model, ratio=0.3)
    info = mtrkit.reduction_info(model)
    assert (info.adapter, info.input_size, info.num_tokens) == ("videomamba", (3, 4, 32, 32), 65)
    reduced = model(clips)
    assert reduced.shape == dense.shape and not torch.allclose(reduced, dense)
    with mtrkit.trace_reduction(model) as trace:
        assert torch.equal(model(clips), reduced)
    assert (trace.slot[:, 0] == 0).all()
    mtrkit.remove_reduction(model)
    assert torch.equal(model(clips), dense)


@torch.no_grad()
def test_every_register_is_kept_and_read_at_its_place():
    model, images = FAMILIES["mambar"](), torch.randn(4, 3, 32, 32)
    mtrkit.apply_reduction(model, ratio=0.4)
    with mtrkit.trace_reduction(model) as trace:
        model(images)
    registers = [16, 33, 50]
    for sample in range(4):
        groups = trace.groups(sample)
        assert all([register] in groups for register in registers)  # nothing was merged into one
    assert len({tuple(slots) for slots in trace.slot[:, registers].tolist()}) > 1  # and they stand differently


@pytest.mark.parametrize(
    ("count", "patches", "expected"),
    [
        (12, 196, list(range(15, 192, 16))),
        (16, 196, list(range(11, 192, 12))),
        (12, 64, list(range(4, 60, 5))),
        (12, 576, list(range(44, 540, 45))),
    ],
)
def test_registers_stand_where_the_repository_puts_them(count, patches, expected):
    assert list(spread(count, patches + count)) == expected


def test_the_slow_path_is_never_taken():
    model = FAMILIES["videomamba"]()
    mixer, tokens = model.layers[0].mixer, torch.randn(1, 5, 32)
    assert isinstance(mixer, MambaLayers)
    forward_only = mixer(tokens, inference_params=object())
    ours, _ = find_adapter(model).run_mixer(mixer, tokens, MixerCall())
    assert not torch.allclose(ours, forward_only, atol=1e-3)


@pytest.mark.parametrize("method", ["mtr", "tome"])  # which reads the mixers, and which does not
@pytest.mark.parametrize("family", ["hustvl_vim", "hustvl_vim_early", "vim4path", "videomamba", "mambar"])
def test_a_model_on_the_slow_path_is_refused(family, method):
    model = FAMILIES[family]()
    model.layers[3].mixer.use_fast_path = False
    before, wanted = fingerprint(model), run(model)
    with pytest.raises(mtrkit.UnsupportedModelError, match=r"`layers.3.mixer` .*path=False.* use_fast_path=True"):
        mtrkit.apply_reduction(model, method)
    assert fingerprint(model) == before and torch.equal(run(model), wanted)
    model.layers[3].mixer.use_fast_path = True
    mtrkit.apply_reduction(model, method)


@pytest.mark.parametrize(
    ("family", "switch", "value", "published"),
    [
        ("hustvl_vim", "bimamba_type", "none", "'v2'"),
        ("hustvl_vim", "bimamba_type", "v1", "'v2'"),
        ("videomamba", "bimamba", False, "True"),
        ("mambar", "biscan", False, "True"),
    ],
)
def test_mixers_without_two_directions_are_refused_by_their_switch(family, switch, value, published):
    """Such mixers have no backward weights, of which no other family's adapter is to speak."""
    model = FAMILIES[family]()
    for block in model.layers:
        setattr(block.mixer, switch, value)
        for name in ("conv1d_b", "x_proj_b", "dt_proj_b", "D_b", *(["A_b_log"] if value != "v1" else [])):
            delattr(block.mixer, name)
    with pytest.raises(mtrkit.UnsupportedModelError) as caught:
        mtrkit.apply_reduction(model)
    said = f"`layers.0.mixer` has {switch}={value!r}; the published models have {published}"
    assert f"({family}) cannot be reduced: {said}" in str(caught.value)


@pytest.mark.parametrize(("middle", "special"), [(True, [0, 32]), (False, [0, 1])])
def test_both_class_tokens_of_vim4path_are_kept_apart(middle, special):
    model = Vim4Path(use_middle_cls_token=middle).eval()
    seen, dense = [], run(model)
    model.layers[0].mixer.register_forward_hook(lambda module, args, out: seen.append(out.shape[1]))
    mtrkit.apply_reduction(model, ratio=0.3)
    with mtrkit.trace_reduction(model) as trace:
        assert not torch.allclose(run(model), dense)
    assert mtrkit.reduction_info(model).num_tokens == seen[0] == 66
    for sample in range(len(IMAGES)):
        assert all([place] in trace.groups(sample) for place in special)


def test_what_vim4path_reads_between_its_blocks_is_refused_at_the_call():
    model = FAMILIES["vim4path"]()
    mtrkit.apply_reduction(model, ratio=0.3)
    with pytest.raises(mtrkit.UnsupportedModelError, match="return_intermediate_output reads between the blocks"):
        model.get_intermediate_layers(IMAGES, 4)
    with mtrkit.reduction_disabled(model), torch.no_grad():
        assert {len(tokens[0]) for tokens in model.get_intermediate_layers(IMAGES, 4)} == {66}


@pytest.mark.parametrize("method", ["mtr", "rmeeto", "hsa", "tome"])
def test_checkpointed_mixers_give_the_same_and_the_same_gradients(method):
    plain, model = FAMILIES["videomamba"](), videomamba_checkpointed()
    plain.load_state_dict(model.state_dict())
    answers = []
    for each in (plain, model):
        mtrkit.apply_reduction(each.train(), method, ratio=0.3)
        answers.append(each(IMAGES))
        answers[-1].square().mean().backward()
    # A reentrant checkpoint runs the mixer without gradients first: one operator then, and other roundings.
    torch.testing.assert_close(*answers, rtol=1e-4, atol=1e-4)
    for (name, wanted), found in zip(plain.named_parameters(), model.parameters(), strict=True):
        bound = 1e-3 * float(wanted.grad.abs().max())
        torch.testing.assert_close(found.grad, wanted.grad, rtol=1e-3, atol=bound, msg=name)
