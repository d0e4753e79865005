"""A trained model at inference: the patches of the highest scores stay, and scans are left out image by image."""

import copy
import io
import pickle

import pytest
import torch

import mtrkit
from mtrkit.dyvm import DyVM, DyVMCheckpoint, measure_scan_share
from mtrkit.errors import InputError
from mtrkit.models.mixer import MambaMixer
from mtrkit.native import mixer as native_mixer
from mtrkit.patch import RECORD
from mtrkit.scan import gates as gates_module
from mtrkit.scan import steps
from mtrkit.scan.mixer import mixer_forward, mixer_parts
from mtrkit.types import Gating
from tests.dyvm.models import MODELS, build, choosing, clips, images, trained
from tests.helpers.families import FAMILIES
from tests.standins.hustvl_vim import fused_no_out_proj

BOTH = torch.tensor([[1.0, 1], [0, 1], [0, 0], [1, 0], [1, 1]])
OTHERS = ("vim_mambar", "hustvl_vim", "hustvl_vim_double", "videomamba", "mambar_neck")


def given(mixer, gates, halve):
    """The mixer's arguments for gates that are known."""
    return mixer_parts(mixer, halve=halve), Gating(lambda seen: gates, torch.zeros(len(gates), 1, dtype=torch.int64))


def by_a_loop(mixer, tokens, gates, halve):
    """Each image by itself: both scans, what is off times zero, and half of the sum even if one is off."""
    found = []
    for x, (forward, backward) in zip(tokens, gates, strict=True):
        xz = (mixer.in_proj(x[None])).transpose(1, 2)
        out = forward * fused_no_out_proj(xz, mixer.conv1d, mixer.x_proj, mixer.dt_proj, mixer.A_log, mixer.D)
        layers = (mixer.conv1d_b, mixer.x_proj_b, mixer.dt_proj_b, mixer.A_b_log, mixer.D_b)
        out = out + backward * fused_no_out_proj(xz.flip(-1), *layers).flip(-1)
        found.append(mixer.out_proj((out / 2 if halve else out).transpose(1, 2)))
    return torch.cat(found)


@pytest.mark.parametrize("halve", [True, False])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@torch.no_grad()
def test_a_batch_of_mixed_gates_is_each_image_with_zeros(halve, dtype):
    mixer, tokens = build().to(dtype).layers[0].mixer, torch.randn(5, 9, 16, dtype=dtype)
    exact = {"rtol": 1e-9, "atol": 1e-9} if dtype is torch.float64 else {"rtol": 1e-4, "atol": 1e-4}
    wanted = by_a_loop(mixer, tokens, BOTH, halve)
    for rows in (range(5), [0, 4], [1], [2], [3], [2, 2], []):
        rows = torch.tensor(list(rows), dtype=torch.int64)
        parts, gating = given(mixer, BOTH[rows], halve)
        out, signals = mixer_forward(tokens[rows], parts, gating=gating)
        torch.testing.assert_close(out, wanted[rows], rtol=1e-4, atol=1e-4)  # the loop is in float32
        torch.testing.assert_close(steps.mix_gated(tokens[rows], parts, gating)[0], out, **exact)
        assert torch.equal(signals.gates, BOTH[rows])


@torch.no_grad()
def test_a_scan_that_is_off_does_not_run():
    mixer, ran = build().layers[0].mixer, []
    parts, _ = given(mixer, BOTH, True)

    def run(tokens, some):
        ran.append((len(tokens), len(some.directions)))
        return mixer_forward(tokens, some)[0]

    gates_module.run_chosen(torch.randn(5, 9, 16).double(), parts, BOTH, run)
    assert sorted(ran) == [(1, 1), (1, 1), (2, 2)]


@pytest.fixture
def two_at_a_time(monkeypatch):
    """Mixers that take two samples through all steps before the next ones."""
    monkeypatch.setattr(native_mixer, "_samples_at_once", lambda *_: 2)
    native_mixer._layout.cache_clear()
    yield
    native_mixer._layout.cache_clear()


@pytest.mark.parametrize("width", [12, 16])
@pytest.mark.parametrize("length", [1, 16, 37])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_what_is_off_is_left_out_of_the_call_of_all(two_at_a_time, dtype, length, width):
    torch.manual_seed(0)
    mixer, tokens = MambaMixer(width).to(dtype), torch.randn(5, length, width).to(dtype)
    parts, gating = given(mixer, BOTH, True)
    sound = mixer_forward(tokens, parts, gating=gating)[0]
    wanted = gates_module.run_chosen(tokens, parts, BOTH, lambda x, some: mixer_forward(x, some)[0])
    torch.testing.assert_close(sound, wanted)
    for name, on in ((("conv1d", "D"), BOTH[:, 0]), (("conv1d_b", "D_b"), BOTH[:, 1])):
        spoilt = copy.deepcopy(mixer)
        spoilt.get_submodule(name[0]).weight.fill_(torch.nan)
        getattr(spoilt, name[1]).fill_(torch.nan)
        out = mixer_forward(tokens, given(spoilt, BOTH, True)[0], gating=gating)[0]
        assert torch.equal(out[on == 0], sound[on == 0]) and out[on == 1].isnan().all()


@torch.no_grad()
def test_an_out_projection_with_a_bias_is_what_is_left_without_scans():
    mixer = build().layers[0].mixer
    mixer.out_proj = torch.nn.Linear(32, 16).double()
    tokens = torch.randn(5, 9, 16, dtype=torch.float64)
    parts, gating = given(mixer, BOTH, True)
    torch.testing.assert_close(mixer_forward(tokens, parts, gating=gating)[0], by_a_loop(mixer, tokens, BOTH, True))


@pytest.mark.parametrize("special", [(4,), (1, 5), ()])
@torch.no_grad()
def test_the_selector_sees_in_proj_at_the_special_tokens_or_the_mean(special):
    mixer, tokens, seen = build().layers[0].mixer, torch.randn(3, 9, 16, dtype=torch.float64), []
    places = torch.tensor(special, dtype=torch.int64).expand(3, -1)

    def select(value):
        seen.append(value)
        return torch.ones(3, 2)

    parts = mixer_parts(mixer, halve=True)
    mixer_forward(tokens, parts, gating=Gating(select, places))
    steps.mix_gated(tokens, parts, Gating(select, places))
    steps.mix_gated(tokens, parts, Gating(select, places, torch.ones(3, 9, 1).double()))
    projected = mixer.in_proj(tokens)
    wanted = projected[:, list(special) or slice(None)].mean(dim=1)
    assert len(seen) == 3
    for value in seen:
        torch.testing.assert_close(value, wanted)


@pytest.mark.parametrize("family", MODELS)
@torch.no_grad()
def test_the_best_patches_stay(family):
    model, x = build(family), images()
    mtrkit.apply_reduction(model, "dyvm", checkpoint=trained(model, block_target=None))
    with mtrkit.trace_reduction(model) as trace:
        model(x)
    special = model.special_positions(trace.stages[0].slot.shape[1])
    rest = [i for i in range(trace.stages[0].slot.shape[1]) if i not in special]
    assert [stage.layer for stage in trace.stages] == [1, 2, 3]
    for stage, count in zip(trace.stages, (38, 23, 13), strict=True):  # 0.6 of 64 patches, 0.36, 0.216
        for sample in range(4):
            slot = stage.slot[sample]
            kept = torch.nonzero(slot[rest] >= 0).flatten()
            assert len(kept) == count
            assert (slot[rest][kept].diff() > 0).all()
            assert slot[list(special)].tolist() == list(model.special_positions(count + len(special)))
            present, score = stage.present[sample], stage.score[sample]
            patches = torch.tensor([int(p) in rest for p in present])
            stays = slot[present] >= 0
            assert score[patches & stays].min() >= score[patches & ~stays].max()


@pytest.mark.parametrize("family", ["vim", *OTHERS])
@torch.no_grad()
def test_applied_and_removed_like_any_method(family):
    torch.manual_seed(0)
    model, x = FAMILIES[family](), torch.randn(4, 3, 32, 32)
    checkpoint = DyVMCheckpoint.of(model, choosing(DyVM(32, 64, 6)))
    dense, keys, own = model(x), list(model.state_dict()), {name: sorted(vars(m)) for name, m in model.named_modules()}
    assert mtrkit.apply_reduction(model, "dyvm", checkpoint=checkpoint) is model
    found = model(x)
    assert list(model.state_dict()) == keys and not torch.allclose(found, dense)
    with mtrkit.reduction_disabled(model):
        assert torch.equal(model(x), dense)
    assert torch.equal(model(x), found)
    assert 0.2 < measure_scan_share(model, x) < 0.8, "this batch cannot show that gates are per image"
    changed = torch.cat([x[:1], torch.randn(3, 3, 32, 32)])
    torch.testing.assert_close(model(changed)[0], found[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(torch.cat([model(x[i : i + 1]) for i in range(4)]), found, rtol=1e-4, atol=1e-5)
    assert model(x[:0]).shape == (0, 10)
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), torch.load(buffer, weights_only=False)):
        assert torch.equal(twin(x), found)
        assert torch.equal(mtrkit.remove_reduction(twin)(x), dense)
    mtrkit.remove_reduction(model)
    assert torch.equal(model(x), dense) and {name: sorted(vars(m)) for name, m in model.named_modules()} == own


@torch.no_grad()
def test_what_is_beside_the_model_moves_with_it():
    torch.manual_seed(0)
    model, x = FAMILIES["vim"](), torch.randn(4, 3, 32, 32)
    checkpoint = DyVMCheckpoint.of(model, choosing(DyVM(32, 64, 6)))
    mtrkit.apply_reduction(model, "dyvm", checkpoint=checkpoint)
    found = model(x)
    torch.testing.assert_close(model.double()(x.double()).float(), found, rtol=1e-3, atol=1e-4)
    assert vars(model)[RECORD].trained.block_heads[0].weight.dtype is torch.float64
    assert checkpoint.parts.block_heads[0].weight.dtype is torch.float32
    assert model.bfloat16()(x.bfloat16()).isfinite().all()


@pytest.mark.filterwarnings("ignore")  # torch's own compilers warn about themselves
@pytest.mark.parametrize("family", ["vim", "vim_mean"])
@torch.no_grad()
def test_compiled_and_exported(family):
    torch._dynamo.reset()
    torch.manual_seed(0)
    model, x = FAMILIES[family](), torch.randn(4, 3, 32, 32)
    model.layers = model.layers[:3]
    checkpoint = DyVMCheckpoint.of(model, choosing(DyVM(32, 64, 3, layers=(1, 2))))
    mtrkit.apply_reduction(model, "dyvm", checkpoint=checkpoint)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x), model(x), rtol=1e-4, atol=1e-5)
    exported = torch.export.export(model, (x,)).module()
    torch.testing.assert_close(exported(x), model(x), rtol=1e-4, atol=1e-5)
    other = torch.randn(4, 3, 32, 32)  # with other gates
    torch.testing.assert_close(exported(other), model(other), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_clips():
    model = clips()
    mtrkit.apply_reduction(model, "dyvm", checkpoint=trained(model))
    assert mtrkit.reduction_info(model).tokens == (77, 47, 28, 28)  # of 128 patches and the class token
    assert model(torch.randn(2, 3, 2, 32, 32, dtype=torch.float64)).isfinite().all()


@torch.no_grad()
def test_another_input_size_gets_its_own_plan():
    model = build()
    checkpoint = trained(model)
    model.set_input_size(64)
    mtrkit.apply_reduction(model, "dyvm", checkpoint=checkpoint)
    assert mtrkit.reduction_info(model).tokens == (154, 93, 56, 56)  # of 256 patches
    model.set_input_size(32)
    with mtrkit.trace_reduction(model) as trace:
        model(images())
    assert [int(stage.slot.max()) + 1 for stage in trace.stages] == [39, 24, 14]


@torch.no_grad()
def test_the_measured_share_is_the_mean_of_all_gates():
    model, x = build(), images(6)
    with pytest.raises(InputError, match="chooses no scans"):
        measure_scan_share(model, x)
    mtrkit.apply_reduction(model, "dyvm", checkpoint=trained(model))
    assert mtrkit.reduction_info(model).scan_share is None
    before, seen = mtrkit.count_flops(model).total, []
    for head in vars(model)[RECORD].trained.block_heads:
        head.register_forward_hook(lambda head, inputs, found: seen.append(found))
    share = measure_scan_share(model, x, batch_size=4)
    assert share == pytest.approx(torch.cat(seen).mean().item()) and len(seen) == 8
    info = mtrkit.reduction_info(model)
    assert info.scan_share == share and info.flops_reduced.total == mtrkit.count_flops(model).total < before
    assert info.flops_dense.total == mtrkit.count_flops(mtrkit.remove_reduction(model)).total
    assert f"{share:.1%} of the scans" in str(info)
    mtrkit.apply_reduction(model, "dyvm", checkpoint=trained(model))
    with pytest.raises(InputError, match="no images"):
        measure_scan_share(model, [])
