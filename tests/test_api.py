"""Bad input is refused with a message that helps, and the model stays as it was."""

import warnings

import pytest
import torch
from torch import nn

import mtrkit
from tests.helpers.families import FAMILIES
from tests.standins.hustvl_vim import VisionMamba
from tests.test_matrix import IMAGES, fingerprint, run


@pytest.fixture
def model():
    return FAMILIES["hustvl_vim"]()


BAD_CALLS = [
    ({"method": "mtrr"}, mtrkit.UnknownNameError, "Did you mean 'mtr'"),
    ({"ratio": -0.1}, mtrkit.OptionError, "-0.1"),
    ({"ratio": 1.0}, mtrkit.OptionError, "1.0"),
    ({"ratio": float("nan")}, mtrkit.OptionError, "nan"),
    ({"ratio": "half"}, mtrkit.OptionError, "half"),
    ({"ratio": 0.95}, mtrkit.ScheduleError, "0\\.\\d+"),
    ({"layers": (0,)}, mtrkit.OptionError, "1 to 5"),
    ({"layers": (6,)}, mtrkit.OptionError, "1 to 5"),
    ({"layers": "all"}, mtrkit.OptionError, "all"),
    ({"tokens": [10, 10]}, mtrkit.ScheduleError, "6"),
    ({"tokens": [65, 60, 60, 60, 60, 70]}, mtrkit.ScheduleError, "70"),
    ({"tokens": [65] * 6, "layers": (1,)}, mtrkit.OptionError, "tokens"),
    ({"r": -3}, mtrkit.OptionError, "-3"),
    ({"similarty": "l2"}, mtrkit.OptionError, "similarity"),
    ({"similarity": "dot"}, mtrkit.OptionError, "cosine"),
    ({"input_size": (32, 32)}, mtrkit.InputError, "channels"),
    ({"input_size": (1, 32, 32)}, mtrkit.InputError, "3"),
    ({"input_size": (3, 2, 2)}, mtrkit.InputError, "2"),
]


@pytest.mark.parametrize("patched", [False, True])
@pytest.mark.parametrize(("options", "error", "says"), BAD_CALLS, ids=[str(call[0]) for call in BAD_CALLS])
def test_bad_calls_leave_the_model_alone(model, options, error, says, patched):
    if patched:
        mtrkit.apply_reduction(model, ratio=0.2)
    before, wanted = fingerprint(model), run(model)
    with pytest.raises(error, match=says) as caught:
        mtrkit.apply_reduction(model, **options)
    assert isinstance(caught.value, mtrkit.MtrkitError)
    assert fingerprint(model) == before
    assert torch.equal(run(model), wanted)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"if_rope": True}, "if_rope"),
        ({"if_bidirectional": True}, "if_bidirectional"),
        ({"flip_img_sequences_ratio": 0.5}, "flip_img_sequences_ratio"),
    ],
)
def test_features_that_cannot_be_right_are_refused(options, says):
    with pytest.raises(mtrkit.UnsupportedModelError, match=says):
        mtrkit.apply_reduction(VisionMamba(**options))


def test_other_models_are_refused_by_name():
    with pytest.raises(mtrkit.UnsupportedModelError, match=r"Linear.*none of the parts.*`patch_embed`"):
        mtrkit.apply_reduction(nn.Linear(2, 2))
    with pytest.raises(mtrkit.UnsupportedModelError, match="str"):
        mtrkit.apply_reduction("vim")


def test_missing_part_is_named(model):
    del model.layers[2].mixer.x_proj_b
    with pytest.raises(mtrkit.UnsupportedModelError, match=r"layers\.2.*x_proj_b"):
        mtrkit.apply_reduction(model)


def test_random_class_token_position_is_refused_at_the_call():
    model = FAMILIES["hustvl_vim_front"]()
    mtrkit.apply_reduction(model, ratio=0.2)
    with pytest.raises(mtrkit.UnsupportedModelError, match="if_random_cls_token_position"):
        model(IMAGES, if_random_cls_token_position=True)
    with mtrkit.reduction_disabled(model), torch.no_grad():
        model(IMAGES, if_random_cls_token_position=True)


def test_inference_cache_is_refused(model):
    mtrkit.apply_reduction(model, ratio=0.2)
    with pytest.raises(mtrkit.InputError, match="inference_params"):
        model(IMAGES, inference_params=object())


def test_a_wrapped_model_is_found(model):
    wrapper = nn.Sequential(model)
    dense = run(model)
    mtrkit.apply_reduction(wrapper, ratio=0.3)
    assert mtrkit.reduction_info(wrapper).method == "mtr"
    assert not torch.equal(run(wrapper), dense)
    mtrkit.remove_reduction(wrapper)
    assert torch.equal(run(wrapper), dense)


def test_two_models_in_one_wrapper_are_ambiguous(model):
    with pytest.raises(mtrkit.UnsupportedModelError, match="2 models"):
        mtrkit.apply_reduction(nn.ModuleList([model, FAMILIES["hustvl_vim"]()]))


def test_a_shared_block_or_an_own_forward_survives(model):
    block = model.layers[4]
    original = type(block).forward

    def own(hidden_states, residual=None, inference_params=None):
        return original(block, hidden_states, residual, inference_params)

    block.forward = own
    dense = run(model)
    mtrkit.apply_reduction(model, ratio=0.3)
    run(model)
    mtrkit.remove_reduction(model)
    assert block.forward is own
    assert torch.equal(run(model), dense)


def test_applying_again_replaces(model):
    mtrkit.apply_reduction(model, ratio=0.4)
    mtrkit.apply_reduction(model, ratio=0.1)
    once = run(model)
    mtrkit.apply_reduction(mtrkit.remove_reduction(model), ratio=0.1)
    assert torch.equal(run(model), once)


def test_removing_without_a_patch_does_nothing(model):
    before = fingerprint(model)
    assert mtrkit.remove_reduction(model) is model
    assert fingerprint(model) == before


def test_info_and_flops(model):
    dense = mtrkit.count_flops(model)
    mtrkit.apply_reduction(model, ratio=0.3)
    info = mtrkit.reduction_info(model)
    assert info.flops_dense == dense
    assert mtrkit.count_flops(model) == info.flops_reduced
    assert abs(info.ratio_reached - 0.3) < 0.01
    assert info.promised_speedup == pytest.approx(dense.total / info.flops_reduced.total)
    assert info.tokens[-1] < info.num_tokens == 65
    with mtrkit.reduction_disabled(model):
        assert mtrkit.count_flops(model) == dense
    assert mtrkit.count_flops(model, directions="all").total > info.flops_reduced.total
    assert "mtr" in str(info) and info.as_dict()["method"] == "mtr"
    assert "reduction=mtr" in repr(model)


def test_tracing_an_unpatched_model_is_refused(model):
    with pytest.raises(mtrkit.InputError, match="apply_reduction"), mtrkit.trace_reduction(model):
        pass


def test_another_input_size_is_planned_anew():
    big = VisionMamba(img_size=48).eval()
    mtrkit.apply_reduction(big, ratio=0.3, input_size=(3, 32, 32))
    assert mtrkit.reduction_info(big).num_tokens == 65
    with mtrkit.trace_reduction(big) as trace:
        big_out = run(big, torch.randn(2, 3, 48, 48))
    assert big_out.isfinite().all()
    mtrkit.apply_reduction(big, ratio=0.3)
    assert int(trace.slot.max()) + 1 == mtrkit.reduction_info(big).tokens[-1]


def test_explicit_tokens_refuse_another_input_size():
    big = VisionMamba(img_size=48).eval()
    mtrkit.apply_reduction(big, tokens=[65, 65, 50, 50, 40, 40], input_size=(3, 32, 32))
    with pytest.raises(mtrkit.ScheduleError, match="145"):
        run(big, torch.randn(2, 3, 48, 48))


def test_a_sequence_too_short_to_reduce():
    tiny = VisionMamba(img_size=4).eval()  # one patch and the class token
    dense = run(tiny, torch.randn(1, 3, 4, 4))
    assert dense.shape == (1, 10)
    with pytest.raises(mtrkit.ScheduleError, match="up to 0.0000"):
        mtrkit.apply_reduction(tiny, ratio=0.3)


def test_r_removes_the_same_number_everywhere(model):
    mtrkit.apply_reduction(model, r=4, layers=mtrkit.EveryNth(2))
    assert mtrkit.reduction_info(model).tokens == (65, 61, 61, 57, 57, 57)


def test_train_mode_and_half_precision(model):
    mtrkit.apply_reduction(model.train(), ratio=0.3)
    assert model(IMAGES).requires_grad
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert run(model.eval().double(), IMAGES.double()).dtype == torch.float64


def test_a_small_model_is_warned_of_and_a_larger_one_is_not():
    small, large = (mtrkit.VisionMamba(img_size=16, patch_size=4, embed_dim=d, depth=6) for d in (192, 208))
    with pytest.warns(mtrkit.SmallModelWarning, match="D = 192.*method='runs'.*mtrkit compare"):
        mtrkit.apply_reduction(small)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mtrkit.apply_reduction(large)
        mtrkit.apply_reduction(small, "runs")
        mtrkit.apply_reduction(small, ratio=0)
