"""What is saved beside the model: there and back, and what does not fit is refused."""

import json
import warnings

import pytest
import torch
from safetensors.torch import load_file, save_file

import mtrkit
from mtrkit.dyvm import DyVM, DyVMCheckpoint
from mtrkit.errors import CheckpointError, OptionError, SmallModelWarning, UnknownNameError, UnsupportedModelError
from tests.dyvm.models import SIZE, build, choosing, images, trained
from tests.helpers.families import FAMILIES


@pytest.fixture
def saved(tmp_path):
    """A model, its checkpoint and the file."""
    model = build()
    checkpoint = trained(model)
    checkpoint.parts.scan_share = 0.625
    checkpoint.save(tmp_path / "dyvm.safetensors")
    return model, checkpoint, tmp_path / "dyvm.safetensors"


@pytest.mark.parametrize("block_target", [0.8, None])
@torch.no_grad()
def test_there_and_back(tmp_path, block_target):
    model, path = build(), tmp_path / "dyvm.safetensors"
    checkpoint = trained(model, block_target=block_target, keep=0.5)
    checkpoint.parts.scan_share = 0.625
    checkpoint.save(path)
    found = DyVMCheckpoint.load(path)
    for name in ("adapter", "input_size", "special"):
        assert getattr(found, name) == getattr(checkpoint, name)
    for name in ("dim", "inner", "depth", "layers", "keep", "block_target", "scan_share"):
        assert getattr(found.parts, name) == getattr(checkpoint.parts, name)
    wanted = mtrkit.apply_reduction(model, "dyvm", checkpoint=checkpoint)(images())
    own = mtrkit.reduction_info(model)
    for given in (found, path, str(path)):
        answer = mtrkit.apply_reduction(model, "dyvm", checkpoint=given)(images())
        torch.testing.assert_close(answer, wanted)
        assert mtrkit.reduction_info(model) == own
    torch.testing.assert_close(mtrkit.apply_reduction(model, checkpoint=path)(images()), wanted)


def test_the_same_weights_in_the_official_class_and_in_another_dtype():
    torch.manual_seed(0)
    ours, official = FAMILIES["vim"](), FAMILIES["hustvl_vim"]()
    official.load_state_dict(ours.state_dict())
    checkpoint = DyVMCheckpoint.of(ours, choosing(DyVM(32, 64, 6)))
    x = torch.randn(4, 3, 32, 32)
    with torch.no_grad():
        found = mtrkit.apply_reduction(official, "dyvm", checkpoint=checkpoint)(x)
        wanted = mtrkit.apply_reduction(ours, "dyvm", checkpoint=checkpoint)(x)
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4)
    mtrkit.apply_reduction(ours.bfloat16(), "dyvm", checkpoint=checkpoint)


def refused(model, checkpoint, error, says, **options):
    dense = model(images()) if model.training is False and not options.get("other") else None
    options.pop("other", None)
    with pytest.raises(error, match=says):
        mtrkit.apply_reduction(model, "dyvm", checkpoint=checkpoint, **options)
    assert mtrkit.reduction_info(model) is None
    if dense is not None:
        assert torch.equal(model(images()), dense)


@torch.no_grad()
def test_another_model_is_refused(saved):
    model, checkpoint, path = saved
    torch.manual_seed(9)
    refused(mtrkit.VisionMamba(**SIZE).double().eval(), path, OptionError, "other weights")
    model.norm_f.weight.mul_(3)  # not of a block: still the same model
    mtrkit.remove_reduction(mtrkit.apply_reduction(model, "dyvm", checkpoint=path))
    for block in model.layers:  # as little as some epochs of training change
        block.norm.weight.add_(torch.randn(16, dtype=torch.float64), alpha=0.05)
    refused(model, path, OptionError, "other weights")
    refused(mtrkit.VisionMamba(**SIZE, class_token="front").double().eval(), checkpoint, OptionError, "tokens at")
    refused(
        mtrkit.VisionMamba(**SIZE | {"depth": 5}).double().eval(), path, OptionError, r"\(16, 32, 4\).*\(16, 32, 5\)"
    )
    refused(mtrkit.VisionMamba(**SIZE | {"embed_dim": 32}).double().eval(), path, OptionError, r"\(32, 64, 4\)")
    refused(FAMILIES["timm_vit"](), path, UnsupportedModelError, "two-direction Mamba", other=True)


@pytest.mark.parametrize(
    ("option", "value"),
    [("ratio", 0.3), ("layers", [1]), ("tokens", [65, 40, 40, 40]), ("r", 3), ("keep", 0.5), ("lengths", "one")],
)
def test_what_the_checkpoint_says_already_is_not_given_twice(saved, option, value):
    model, checkpoint, _ = saved
    refused(model, checkpoint, OptionError, f"{option}=", **{option: value})


def test_what_was_trained_is_not_warned_of(saved):
    model, checkpoint, _ = saved
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mtrkit.apply_reduction(model, "dyvm", checkpoint=checkpoint)
        with pytest.raises(SmallModelWarning):
            mtrkit.apply_reduction(model, "random")


def test_a_checkpoint_and_its_method_go_together(saved):
    model, checkpoint, _ = saved
    refused(model, None, OptionError, "give checkpoint")
    with pytest.raises(OptionError, match="'mtr' is not trained"):
        mtrkit.apply_reduction(model, "mtr", checkpoint=checkpoint)
    with pytest.raises(UnknownNameError):
        mtrkit.apply_reduction(model, "dyvn")
    assert mtrkit.reduction_info(model) is None


def spoil(path, change, metadata=None):
    """Write the file again, with other content."""
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        data = file.metadata()
    tensors = load_file(path)
    change(tensors)
    if metadata is not None:
        data = {key: json.dumps(json.loads(value) | metadata) for key, value in data.items()}
    save_file(tensors, path, data)


@pytest.mark.parametrize(
    ("change", "metadata", "says"),
    [
        (lambda t: t.pop("block_heads.1.bias"), None, "block_heads.1.bias"),
        (lambda t: t.pop("fingerprint"), None, "fingerprint"),
        (lambda t: t.update(extra=torch.zeros(1)), None, "extra"),
        (lambda t: t.update({"block_heads.0.bias": torch.zeros(3)}), None, "size mismatch"),
        (lambda t: t.update({"block_heads.0.bias": torch.tensor([0.0, torch.inf])}), None, "NaN or infinite"),
        (lambda t: None, {"layers": [1, 2]}, "score_predictors.2"),
        (lambda t: None, {"layers": [1, 2, 9]}, "9"),
        (lambda t: None, {"keep": 7}, "keep"),
        (lambda t: None, {"dim": "wide"}, "width"),
    ],
)
def test_a_spoilt_file_is_refused(saved, change, metadata, says):
    model, _, path = saved
    spoil(path, change, metadata)
    refused(model, path, CheckpointError, says)


def test_other_files_are_refused(saved, tmp_path):
    model, _, _ = saved
    other = tmp_path / "other.safetensors"
    save_file({"weight": torch.zeros(1)}, other)
    refused(model, other, CheckpointError, "is not a dyvm checkpoint")
    torch.save({"model": model.state_dict()}, tmp_path / "release.pth")
    refused(model, tmp_path / "release.pth", CheckpointError, "load_release")
    calibration = mtrkit.calibrate(model, images(20), 0.2, show_progress=False)
    calibration.save(other)
    refused(model, other, CheckpointError, "is not a dyvm checkpoint")
    with pytest.raises(OSError):
        mtrkit.apply_reduction(model, "dyvm", checkpoint=tmp_path / "none.safetensors")
