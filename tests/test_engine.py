"""Reduced models against an independent loop, and the promises it makes about the sequence."""

import pytest
import torch

import mtrkit
from mtrkit.types import MixerCall
from tests.helpers import plain_mtr
from tests.helpers.families import FAMILIES
from tests.test_matrix import IMAGES, run

MIXER_ERROR = 1e-5  # float32 sums in another order, against float64 loops


def relative_error(value, wanted):
    """Norm of the difference over the norm of what is wanted."""
    return ((value - wanted).norm() / wanted.norm()).item()


OFFICIAL = [name for name in FAMILIES if name.startswith("hustvl")]


@pytest.mark.parametrize("ratio", [0.1, 0.3, 0.5])
@torch.no_grad()
def test_mtr_equals_the_plain_loop(ratio):
    model = FAMILIES["hustvl_vim"]()
    mtrkit.apply_reduction(model, "mtr", ratio=ratio, layers=(1, 3, 4))
    reduced, info = run(model), mtrkit.reduction_info(model)
    mtrkit.remove_reduction(model)
    for image, logits in zip(IMAGES, reduced, strict=True):
        plain = plain_mtr.forward(model, image, info.layers, info.tokens)
        torch.testing.assert_close(logits, plain, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("family", OFFICIAL)
@torch.no_grad()
def test_unfused_mixer_equals_the_fused_one(family):
    model = FAMILIES[family]()
    adapter = mtrkit.adapters.find_adapter(model)
    hidden = torch.randn(2, 65, 32)
    for block in model.layers:
        out, _ = adapter.run_mixer(block.mixer, hidden, MixerCall())
        assert relative_error(out, block.mixer(hidden)) < MIXER_ERROR


@pytest.mark.parametrize("reads", [(), ("delta",), ("y",), ("delta", "ssm_B", "ssm_C", "y")])
@torch.no_grad()
def test_reading_signals_does_not_change_the_output(reads):
    model = FAMILIES["hustvl_vim"]()
    adapter, hidden = mtrkit.adapters.find_adapter(model), torch.randn(2, 65, 32)
    mixer = model.layers[0].mixer
    out, signals = adapter.run_mixer(mixer, hidden, MixerCall(frozenset(reads)))
    assert relative_error(out, mixer(hidden)) < MIXER_ERROR
    present = {name for name, value in signals._asdict().items() if value is not None}
    assert present == set(reads)
    if "delta" in reads:
        wanted = torch.stack([plain_mtr.delta_of(mixer, tokens) for tokens in hidden])
        assert relative_error(signals.delta, wanted) < MIXER_ERROR


@torch.no_grad()
def test_backward_delta_lines_up_with_the_tokens():
    model = FAMILIES["hustvl_vim"]()
    adapter, mixer = mtrkit.adapters.find_adapter(model), model.layers[0].mixer
    for name in ("conv1d", "x_proj", "dt_proj"):
        getattr(mixer, f"{name}_b").load_state_dict(getattr(mixer, name).state_dict())
    half = torch.randn(1, 32, 32)
    palindrome = torch.cat([half, torch.randn(1, 1, 32), half.flip(1)], dim=1)
    _, signals = adapter.run_mixer(mixer, palindrome, MixerCall(frozenset({"delta", "ssm_B", "ssm_C"})))
    for signal in (signals.delta, signals.ssm_B, signals.ssm_C):
        torch.testing.assert_close(signal, signal.flip(1), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_class_token_is_followed_per_sample():
    model = FAMILIES["hustvl_vim"]()
    mtrkit.apply_reduction(model, "mtr", ratio=0.4)
    with mtrkit.trace_reduction(model) as trace:
        run(model)
    places = set()
    for sample in range(len(IMAGES)):
        groups = trace.groups(sample)
        own = next(i for i, group in enumerate(groups) if 32 in group)
        assert groups[own] == [32], "the class token was merged"
        before = {i for group in groups[:own] for i in group if group.index(i) == 0}
        assert all(min(group) < 64 for group in groups) and before
        places.add(own)
    assert len(places) > 1, "this batch cannot show whether positions are per sample"


@torch.no_grad()
def test_what_follows_the_blocks_sees_the_whole_sequence():
    model = FAMILIES["hustvl_vim_max"]()
    mtrkit.apply_reduction(model, "mtr", ratio=0.4)
    seen = []
    handle = model.norm_f.register_forward_hook(lambda module, args, out: seen.append(out))
    with mtrkit.trace_reduction(model) as trace:
        run(model)
    handle.remove()
    assert seen[0].shape[1] == 64
    for sample in range(len(IMAGES)):
        for group in trace.groups(sample):
            rows = seen[0][sample, group]
            assert torch.equal(rows, rows[:1].expand_as(rows))


@torch.no_grad()
def test_pruned_tokens_keep_their_last_features():
    model, images = FAMILIES["hustvl_vim_mean"]().double(), IMAGES.double()  # sums of some 500 nearly cancel
    mtrkit.apply_reduction(model, "mtr", ratio=0.3, layers=(2,), operation="prune")
    states = []
    hooks = [
        model.layers[1].mixer.register_forward_hook(lambda m, a, out: states.append(out)),
        model.layers[2].norm.register_forward_hook(lambda m, a, out: states.append(a[0])),
        model.norm_f.register_forward_hook(lambda m, a, out: states.append(a[0])),
    ]
    with mtrkit.trace_reduction(model) as trace:
        model(images)
    for hook in hooks:
        hook.remove()
    dropped = trace.slot < 0
    assert dropped.any()
    after_block_two, final = states[0], states[-1]
    assert torch.isfinite(final).all() and after_block_two.shape[1] == 64
    mtrkit.remove_reduction(model)
    hidden, residual = model.pos_drop(model.patch_embed(images) + model.pos_embed), None
    for block in model.layers[:2]:
        hidden, residual = block(hidden, residual)
    torch.testing.assert_close(final[dropped], (hidden + residual)[dropped], rtol=1e-4, atol=1e-5)
