"""Inference in every precision, memory format and at every size: finite, near float32, and at ratio 0 the same bits."""

from functools import partial

import pytest
import torch

import mtrkit
from mtrkit.measure.precision import Precision
from tests.models.shared import real_images
from tests.standins import hustvl_vim, official
from tests.test_matrix import IMAGES

CPU = torch.device("cpu")
TINY = {"img_size": 32, "patch_size": 4, "embed_dim": 32, "depth": 4, "num_classes": 10}
MODELS = {
    "vim": partial(mtrkit.VisionMamba, **TINY),
    "vim_mean": partial(mtrkit.VisionMamba, **TINY, class_token="none"),
    "hustvl_vim": partial(hustvl_vim.VisionMamba, **TINY),
    "hustvl_vim_mean": partial(hustvl_vim.VisionMamba, **TINY, if_cls_token=False, final_pool_type="mean"),
    "videomamba": partial(official.VideoMamba, **TINY),
    "mambar": partial(official.MambaReg, **TINY),
}
PRECISIONS = ("bfloat16", "float16", "amp-bfloat16", "amp-float16")
FORMATS = (torch.contiguous_format, torch.channels_last)

# Norm of the error over the norm of the float32 logits: 8 or 11 bits of each value, through four blocks.
ROUNDING = {"bfloat16": 0.02, "float16": 0.0025}

# Of the bundled model, over its images: the norm of the error over the norm of the float32 logits, its median, and the
# share that get the same class. Rounding features to 8 or 11 bits costs 0.004 and 0.0005 without any reduction; where
# two scores are nearer to each other than that, another token is merged, and that image differs by some percent.
NEAR = {"bfloat16": (0.04, 0.9), "float16": (0.004, 0.95)}


@torch.no_grad()
def answer(model, images, precision="float32", memory_format=torch.contiguous_format):
    """Logits of the model as it is; the images get its dtype."""
    chosen = Precision(precision)
    with chosen.context(CPU):
        return model(images.to(chosen.weights, memory_format=memory_format))


def error(value, wanted):
    return ((value.float() - wanted).norm() / wanted.norm()).item()


@pytest.mark.parametrize("memory_format", FORMATS, ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("precision", ["float32", *PRECISIONS])
@pytest.mark.parametrize("name", MODELS)
def test_ratio_zero_changes_no_bit(name, precision, memory_format):
    model = Precision(precision).cast(MODELS[name]().eval()).to(memory_format=memory_format)
    dense = answer(model, IMAGES, precision, memory_format)
    mtrkit.apply_reduction(model, ratio=0)
    assert torch.equal(answer(model, IMAGES, precision, memory_format), dense)
    mtrkit.apply_reduction(model, ratio=0.3)
    with mtrkit.reduction_disabled(model):
        assert torch.equal(answer(model, IMAGES, precision, memory_format), dense)


@pytest.mark.parametrize("batch", [1, len(IMAGES)])
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", MODELS)
def test_a_reduction_adds_no_error_of_its_own(name, precision, batch):
    """Where the choice of tokens does not depend on them, nothing but rounding tells the precisions apart."""
    model = mtrkit.apply_reduction(MODELS[name]().eval(), "random", ratio=0.3)
    wanted = answer(model, IMAGES[:batch])
    found = answer(Precision(precision).cast(model), IMAGES[:batch], precision)
    assert found.isfinite().all() and found.shape == wanted.shape
    assert 0 < error(found, wanted) < ROUNDING[precision.removeprefix("amp-")]


def theirs():
    """The official class with the bundled weights, which have its layout."""
    model = hustvl_vim.VisionMamba(embed_dim=96, depth=12).eval()
    model.load_state_dict(ours().state_dict())
    return model


def ours():
    return mtrkit.create_model("vim_micro_patch4_32", "pretrained")


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(("build", "step"), [(ours, 20), (theirs, 50)])
def test_a_trained_model_answers_as_in_float32(build, step, precision):
    images = real_images(step)[0]
    model = mtrkit.apply_reduction(build(), ratio=0.2)
    wanted = answer(model, images)
    found = answer(Precision(precision).cast(model), images, precision).float()
    median, same = NEAR[precision.removeprefix("amp-")]
    assert ((found - wanted).norm(dim=1) / wanted.norm(dim=1)).median() < median
    assert (found.argmax(dim=1) == wanted.argmax(dim=1)).float().mean() >= same


@pytest.mark.parametrize("name", MODELS)
def test_channels_last_is_near(name):
    """Chance chooses the tokens: the last bit of a convolution may turn any other choice between near-equal ones."""
    model = mtrkit.apply_reduction(MODELS[name]().eval(), "random", ratio=0.3)
    wanted = answer(model, IMAGES)
    found = answer(model.to(memory_format=torch.channels_last), IMAGES, memory_format=torch.channels_last)
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "amp-float16"])
@pytest.mark.parametrize("size", [224, 384, 1248])
def test_sizes(size, precision):
    chosen = Precision(precision)
    model = chosen.cast(mtrkit.VisionMamba(img_size=size, embed_dim=32, depth=4, num_classes=10).eval())
    image = torch.randn(1, 3, size, size)
    dense = answer(model, image, precision)
    mtrkit.apply_reduction(model, ratio=0)
    assert torch.equal(answer(model, image, precision), dense)
    mtrkit.apply_reduction(model, ratio=0.3)
    info = mtrkit.reduction_info(model)
    assert info.num_tokens == (size // 16) ** 2 + 1 and info.ratio_reached == pytest.approx(0.3, abs=0.01)
    with torch.no_grad(), chosen.context(CPU):
        tokens = model.forward_features(image.to(chosen.weights))
    assert tokens.shape == (1, info.num_tokens, 32) and tokens.isfinite().all()
    assert answer(model, image, precision).isfinite().all()
