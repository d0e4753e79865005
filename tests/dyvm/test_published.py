"""Figures of the paper and of its released code, and its files."""

import pytest
import torch

import mtrkit
from mtrkit.dyvm import DyVM, DyVMCheckpoint, load_release
from mtrkit.errors import CheckpointError, OptionError
from mtrkit.patch import RECORD
from mtrkit.schedule import MambaShape, solve_keep


def applied(name, share=None, **options):
    """A model without memory for its weights, reduced."""
    with torch.device("meta"):
        model = mtrkit.create_model(name)
        parts = DyVM(model.embed_dim, 2 * model.embed_dim, 24, **options)
    parts.scan_share = share
    special = (98,) if "vim" in name else model.places
    mark = torch.zeros(24, 2)
    checkpoint = DyVMCheckpoint(parts, "vim", (3, 224, 224), special, mark)
    return checkpoint, model


def info(name, share=None, **options):
    from mtrkit.adapters import find_host
    from mtrkit.patch import install, prepare_trained

    checkpoint, model = applied(name, share, **options)
    install(model, prepare_trained(model, *find_host(model), checkpoint.parts))
    return mtrkit.reduction_info(model)


@pytest.mark.parametrize(("keep", "patches"), [(0.7, (137, 96, 67)), (0.9, (176, 158, 142))])
def test_patches_left_behind_blocks_6_12_and_18(keep, patches):
    found = info("vim_small_patch16_224", keep=keep)
    assert found.layers == (6, 12, 18)
    assert tuple(found.tokens[layer - 1] - 1 for layer in found.layers) == patches


def test_flops_of_vim_small():
    """−35.2 % is published for a target of 0.8; the block ratio that it stands for is near 0.90."""
    assert info("vim_small_patch16_224").flops_reduced.gflops == pytest.approx(3.345, abs=0.001)
    found = info("vim_small_patch16_224", 0.90)
    assert found.flops_reduced.gflops == pytest.approx(3.292, abs=0.001)
    assert 100 * found.ratio_reached == pytest.approx(35.2, abs=0.1)
    assert sum(found.flops_reduced.reductions) / 1e9 == pytest.approx(0.103, abs=0.0005)
    assert info("vim_small_patch16_224", 0.80).flops_reduced.gflops == pytest.approx(3.239, abs=0.001)


@pytest.mark.parametrize(
    ("name", "keep", "share", "dense", "reduced"),
    [
        ("vim_tiny_patch16_224", 0.9, 0.8, 1.449, 1.215),
        ("vim_base_patch16_224", 0.7, 0.7, 18.868, 12.04),
    ],
)
def test_flops_of_other_models(name, keep, share, dense, reduced):
    found = info(name, share, keep=keep)
    assert found.flops_dense.gflops == pytest.approx(dense, abs=0.002)
    assert found.flops_reduced.gflops == pytest.approx(reduced, abs=0.01)


@pytest.fixture
def release(tmp_path):
    """A file as their training code writes it, of a small model: ours have the names of the official ones."""
    torch.manual_seed(0)
    sizes = {"img_size": 32, "patch_size": 4, "embed_dim": 16, "depth": 4, "num_classes": 5}
    donor = mtrkit.VisionMamba(**sizes).eval()
    state = dict(donor.state_dict())
    linear = {"in_conv.0": (16,), "in_conv.1": (16, 16)}
    linear |= {"out_conv.0": (8, 16), "out_conv.2": (4, 8), "out_conv.4": (2, 4)}
    for stage in range(3):
        for layer, shape in linear.items():
            state[f"score_predictors.{stage}.{layer}.weight"] = torch.randn(shape)
            state[f"score_predictors.{stage}.{layer}.bias"] = torch.randn(shape[0])
    for block in range(4):
        state[f"layers.{block}.mixer.block_head.weight"] = torch.randn(2, 64)
        state[f"layers.{block}.mixer.block_head.bias"] = torch.randn(2)
    path = tmp_path / "dyvm.pth"
    torch.save({"model": state, "epoch": 29}, path)
    return path, state, donor, mtrkit.VisionMamba(**sizes).eval()


def test_a_published_file_loads(release):
    path, state, donor, model = release
    checkpoint = load_release(model, path, keep=0.6)
    for name, value in donor.state_dict().items():
        assert torch.equal(model.state_dict()[name], value)
    parts = checkpoint.parts
    assert torch.equal(parts.block_heads[2].weight, state["layers.2.mixer.block_head.weight"])
    assert torch.equal(parts.score_predictors[1].out_conv[4].bias, state["score_predictors.1.out_conv.4.bias"])
    count = sum(name.startswith("score") or "block_head" in name for name in state)
    assert len(parts.state_dict()) == count == 3 * 10 + 4 * 2
    assert (parts.layers, parts.keep) == ((1, 2, 3), 0.6)
    mtrkit.apply_reduction(model, "dyvm", checkpoint=checkpoint)
    with torch.no_grad():
        assert model(torch.randn(2, 3, 32, 32)).isfinite().all()
    assert vars(model)[RECORD].plan.schedule == (39, 24, 14, 14)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda state: state.pop("score_predictors.1.in_conv.1.weight"), "score_predictors.1.in_conv.1.weight"),
        (lambda state: state.pop("layers.3.mixer.block_head.bias"), "block_heads.3.bias"),
        (lambda state: state.update({"score_predictors.0.in_conv.1.weight": torch.zeros(8, 8)}), "size mismatch"),
        (lambda state: state.update({"layers.0.mixer.block_head.bias": torch.tensor([1.0, torch.nan])}), "NaN"),
        (lambda state: state.pop("norm_f.weight"), "norm_f.weight"),
        (lambda state: [state.pop(n) for n in list(state) if "block_head" in n or "score" in n], "not a file of DyVM"),
    ],
)
def test_a_file_that_does_not_fit_changes_nothing(release, change, says):
    path, state, _, model = release
    change(state)
    torch.save({"model": state}, path)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=says):
        load_release(model, path)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def shape(**changes):
    """Of a stack of 4 blocks on 100 patches and a class token."""
    sizes = {"depth": 4, "dim": 8, "tokens": 101, "special": 1, "patches": 100, "patch_macs": 0, "head_macs": 0}
    return MambaShape(**sizes, inner=16, state=4, dt_rank=1, conv=4, **changes)


def test_shares_of_patches_are_exact_and_leave_one():
    assert solve_keep(shape(), (1, 2, 3), 0.7) == [71, 50, 35, 35]  # 0.7² in binary is a little less
    assert solve_keep(shape(), (2, 3), 0.01) == [101, 2, 2, 2]
    assert solve_keep(shape(), (), 0.5) == solve_keep(shape(), (1,), 1.0) == [101] * 4
    for keep in (0, 1.5, True, "0.7"):
        with pytest.raises(OptionError, match="keep"):
            solve_keep(shape(), (1,), keep)


@pytest.mark.parametrize("directions", ["one", "all"])
def test_a_share_of_the_scans_scales_what_is_in_one_direction(directions):
    """All but the outer projections, which are there for every image."""
    whole, half, none = (shape(scan_share=share).block_flops(101, directions) for share in (1.0, 0.5, 0.0))
    assert none == 101 * 8 * 3 * 16 and 2 * half == whole + none
    with pytest.raises(OptionError, match="scan_share"):
        shape(scan_share=1.1)
