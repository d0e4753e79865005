"""Reduced models that keep time: tokens last as many positions as they stand for, in every method and family."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import mtrkit
from mtrkit.adapters import find_adapter
from mtrkit.errors import OptionError, UnsupportedModelError
from mtrkit.models.videomamba import VideoMamba
from mtrkit.ops import count_lengths, open_stream, reduce_stream, token_map
from mtrkit.patch import RECORD
from mtrkit.types import MixerCall, Runs
from tests.helpers.families import FAMILIES
from tests.standins import official
from tests.standins.language import LANGUAGE
from tests.test_matrix import IMAGES, run

KINDS = ("sizes", "positions")
STACKS = ("vim", "vim_front", "vim_videomamba", "vim_mean", "vim_mambar", "hustvl_vim", "videomamba", "mambar")


def sees_itself_only(mixer):
    """Take the taps away that look back; what is constant over a run then stays so."""
    with torch.no_grad():
        for name, parameter in mixer.named_parameters():
            if name.startswith("conv1d") and name.endswith("weight"):
                parameter[..., :-1] = 0
    return mixer


@pytest.mark.parametrize("family", [*STACKS, *LANGUAGE])
@given(lengths=st.lists(st.integers(1, 7), min_size=1, max_size=12))
@settings(deadline=None, max_examples=10)
@torch.no_grad()
def test_runs_that_are_constant_lose_nothing(family, lengths):
    """The mixer's output is the dense one's on the sequence that is written out, averaged over the copies."""
    model = (FAMILIES[family]() if family in FAMILIES else LANGUAGE[family]()).double()
    model = getattr(model, "backbone", model)
    adapter, mixer = find_adapter(model), sees_itself_only(model.layers[1].mixer)
    count = torch.tensor(lengths)
    tokens = torch.randn(2, len(lengths), 32, dtype=torch.float64)
    runs = Runs(count.expand(2, -1).contiguous(), int(count.sum()))
    ours, _ = adapter.run_mixer(mixer, tokens, MixerCall(runs=runs))
    written, _ = adapter.run_mixer(mixer, tokens.repeat_interleave(count, dim=1), MixerCall())
    means = torch.stack([copies.mean(dim=1) for copies in written.split(lengths, dim=1)], dim=1)
    torch.testing.assert_close(ours, means, rtol=1e-10, atol=1e-12)


def nearest(kept, special, length):
    """Lengths by asking every position which token it is nearest to."""
    lasts = [1 if token in special else 0 for token in kept]
    for position in range(length):
        if position not in special:
            distance = [(abs(token - position), token, i) for i, token in enumerate(kept) if token not in special]
            lasts[min(distance)[2]] += 1
    return lasts


@given(data=st.data())
@settings(deadline=None)
def test_every_position_belongs_to_the_nearest_token(data):
    length = data.draw(st.integers(2, 30))
    special = tuple(sorted(data.draw(st.sets(st.integers(0, length - 1), max_size=min(4, length - 1)))))
    patches = [i for i in range(length) if i not in special]
    kept = data.draw(st.lists(st.sampled_from(patches), min_size=1, unique=True))
    order = data.draw(st.permutations([*special, *kept]))
    stream = open_stream(torch.zeros(1, length, 1))
    _, stream = reduce_stream(
        torch.zeros(1, length, 1), stream, token_map(length, torch.tensor([order]), ordered=False)
    )
    found = count_lengths(stream, "positions", special)
    assert found.tolist() == [nearest(order, special, length)]


def streams_of(model, *inputs):
    """How long the tokens last in every block behind the first reduction."""
    seen = []
    for block in vars(model)[RECORD].blocks:
        block.register_forward_pre_hook(lambda _, given: seen.append(given[1] if len(given) > 1 else given[0]))
    with torch.no_grad():
        run(model, *inputs)
    return [stream for stream in seen if getattr(stream, "stages", None)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", mtrkit.list_methods())
def test_no_position_is_lost(method, kind):
    model = mtrkit.apply_reduction(FAMILIES["vim"](), method, ratio=0.3, lengths=kind)
    streams = streams_of(model)
    assert streams
    for stream in streams:
        whole = kind == "positions" or not any(stage.token_map.drops for stage in stream.stages)
        total = stream.lengths.sum(dim=1)
        assert (total == 65).all() if whole else (total < 65).all()
        assert (stream.lengths.gather(1, stream.slot[:, 32:33]) == 1).all()  # the class token
        if kind == "sizes":
            assert torch.equal(stream.lengths, stream.size.squeeze(-1).long())


@pytest.mark.parametrize("family", STACKS)
@torch.no_grad()
def test_the_class_that_others_wrote_keeps_the_same_time(family):
    """Blocks of other packages, read through their mixers, give what single operators give."""
    model = FAMILIES[family]()
    dense = run(model)
    mtrkit.apply_reduction(model, "neighbor", ratio=0.3, lengths="sizes")
    timed = run(model)
    with mtrkit.use_scan_backend("reference"):
        torch.testing.assert_close(run(model), timed, rtol=1e-3, atol=1e-4)
    mtrkit.apply_reduction(model, "neighbor", ratio=0.3)
    assert not torch.allclose(run(model), timed, atol=1e-4)
    assert torch.equal(run(mtrkit.remove_reduction(model)), dense)


def test_gradients_flow_through_the_runs():
    model = mtrkit.apply_reduction(FAMILIES["vim"](), "neighbor", ratio=0.3, lengths="sizes").double()
    images = IMAGES.double().requires_grad_()
    model(images).square().sum().backward()
    ours = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    with mtrkit.use_scan_backend("reference"):
        model(images).square().sum().backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(ours[name], parameter.grad, rtol=1e-7, atol=1e-9)


def test_time_is_counted():
    """The convolution at all positions; a multiply-add and an addition per state at each beyond a token's first."""
    model = FAMILIES["vim"]()
    left = [65, 40, 40, 40, 40, 40]
    mtrkit.apply_reduction(model, "neighbor", tokens=left)
    plain = mtrkit.reduction_info(model, directions="all").flops_reduced.blocks
    mtrkit.apply_reduction(model, "neighbor", tokens=left, lengths="sizes")
    timed = mtrkit.reduction_info(model, directions="all").flops_reduced.blocks
    extra = 2 * (65 - 40) * 64 * (4 + 2 * 16)
    assert [t - p for t, p in zip(timed, plain, strict=True)] == [0, 0, extra, extra, extra, extra]


def test_what_cannot_keep_time_is_refused():
    with pytest.raises(UnsupportedModelError, match="lengths='sizes' needs blocks that count positions"):
        mtrkit.apply_reduction(FAMILIES["timm_vit"](), "tome", lengths="sizes")
    with pytest.raises(OptionError, match="keeps time by itself"):
        mtrkit.apply_reduction(FAMILIES["vim"](), "hsa", state="decay", lengths="positions")


@torch.no_grad()
def test_lengths_that_do_not_arrive_are_missed():
    model = mtrkit.apply_reduction(FAMILIES["vim"](), "neighbor", lengths="sizes")
    model.layers[-1].mixer.register_forward_pre_hook(lambda _, inputs: inputs[0] * 1.0)
    with pytest.raises(UnsupportedModelError, match="holds back an argument"):
        run(model)


def test_info_says_which_backend_writes_runs_out():
    model = mtrkit.apply_reduction(FAMILIES["vim"](), "runs", 0.3)
    assert "written out" not in mtrkit.reduction_info(model).scan_backend
    with mtrkit.use_scan_backend("reference"):
        assert mtrkit.reduction_info(model).scan_backend.endswith("are written out for it")
        mtrkit.apply_reduction(model, "mtr", 0.3)
        assert "written out" not in mtrkit.reduction_info(model).scan_backend


@pytest.mark.parametrize("build", [official.VideoMamba, VideoMamba])
@pytest.mark.parametrize("method", ["runs", "neighbor"])
@torch.no_grad()
def test_runs_of_a_clip_stay_within_a_frame(build, method):
    sizes = {"depth": 6, "embed_dim": 32} if build is VideoMamba else {}
    model = build(img_size=32, patch_size=8, num_frames=4, **sizes).eval()
    clips = torch.randn(3, 3, 4, 1, 1).expand(-1, -1, -1, 32, 32)  # each frame of one colour, so that all may merge

    def crossing(**options):
        """Final tokens that have patches of more than one frame."""
        mtrkit.apply_reduction(model, method, r=7, layers=[1, 2], **options)
        with mtrkit.trace_reduction(model) as trace:
            model(clips)
        groups = [group for sample in range(3) for group in trace.groups(sample)]
        return sum(len({(position - 1) // 16 for position in group}) > 1 for group in groups)

    assert not crossing()
    torch.nn.init.zeros_(model.pos_embed), torch.nn.init.zeros_(model.temporal_pos_embedding)
    clips = clips[:, :, :1].expand(-1, -1, 4, -1, -1)  # and now all frames alike
    assert not crossing()
    assert crossing(across_frames=True)
