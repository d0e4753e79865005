"""VideoMamba and Mamba-Reg as their users have them: mixers, clips, and registers followed sample by sample."""

import pytest
import torch

import mtrkit
from mtrkit.adapters import find_adapter
from mtrkit.adapters.mambar import spread
from tests.helpers.families import FAMILIES
from tests.helpers.tolerances import rms_error
from tests.standins import official
from tests.standins.hustvl_vim import Mamba

MIXER = 1e-5  # float32 beside the stand-in's float64 loop, through two projections
OFFICIAL = ("videomamba", "mambar", "mambar_neck")


@pytest.mark.parametrize("family", OFFICIAL)
@torch.no_grad()
def test_the_readable_mixer_computes_what_the_fused_one_does(family):
    model, tokens = FAMILIES[family](), torch.randn(2, 9, 32)
    adapter = find_adapter(model)
    for block in model.layers:
        ours, signals = adapter.run_mixer(block.mixer, tokens, frozenset({"delta", "y"}))
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
    assert isinstance(mixer, Mamba)
    forward_only = mixer(tokens, inference_params=object())
    ours, _ = find_adapter(model).run_mixer(mixer, tokens, frozenset())
    assert not torch.allclose(ours, forward_only, atol=1e-3)


@pytest.mark.parametrize("family", ["hustvl_vim", "videomamba", "mambar"])
def test_a_slow_path_that_drops_a_direction_is_refused(family):
    model = FAMILIES[family]()
    model.layers[2].mixer.use_fast_path = False
    with pytest.raises(mtrkit.errors.UnsupportedModelError, match="use_fast_path=False"):
        mtrkit.apply_reduction(model, ratio=0.3)
    assert mtrkit.reduction_info(model) is None
