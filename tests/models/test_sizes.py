"""Other image sizes: positions follow, and the class token's row stays the class token's."""

import pickle
import warnings
from functools import partial

import pytest
import torch

import mtrkit
from mtrkit import InputError, SizeWarning
from mtrkit.models import MambaReg, VideoMamba, create_model
from mtrkit.models.positions import insert_at, resize_positions, square_grid
from mtrkit.ops import columns_without
from tests.models.shared import IMAGES, real_images, tiny


@pytest.mark.parametrize("place", ["middle", "front", "none"])
@pytest.mark.parametrize(("old", "new"), [((4, 4), (7, 7)), ((7, 7), (3, 5)), ((2, 5), (5, 2)), ((1, 1), (3, 3))])
def test_class_row_moves_to_its_new_place_untouched(place, old, new):
    table = torch.randn(1, old[0] * old[1] + (place != "none"), 6)
    resized = resize_positions(table, old, new, place)
    patches = new[0] * new[1]
    assert resized.shape == (1, patches + (place != "none"), 6)
    if place != "none":
        was, now = (0, 0) if place == "front" else (old[0] * old[1] // 2, patches // 2)
        assert torch.equal(resized[:, now], table[:, was])
        changed = table.clone()
        changed[:, was] += 1e6
        again = resize_positions(changed, old, new, place)
        assert torch.equal(columns_without(again, (now,)), columns_without(resized, (now,)))


def test_a_smooth_table_stays_the_same_picture():
    rows, columns = torch.meshgrid(torch.linspace(-1, 1, 14), torch.linspace(-1, 1, 14), indexing="ij")
    table = torch.stack([rows, columns], dim=-1).reshape(1, 196, 2)
    resized = resize_positions(table, (14, 14), (20, 9), "none").reshape(20, 9, 2)
    inner = resized[3:-3, 2:-2]
    assert (inner[1:, :, 0] > inner[:-1, :, 0]).all() and (inner[:, 1:, 1] > inner[:, :-1, 1]).all()
    assert (inner[:, :, 0] - inner[:, :1, 0]).abs().max() < 1e-4
    back = resize_positions(resized.reshape(1, 180, 2), (20, 9), (14, 14), "none").reshape(14, 14, 2)
    assert (back - table.reshape(14, 14, 2))[3:-3, 3:-3].abs().max() < 0.05


def test_equal_grid_changes_nothing():
    table = torch.randn(1, 17, 6)
    assert resize_positions(table, (4, 4), (4, 4), "middle") is table


def test_half_precision_tables_keep_their_dtype():
    assert resize_positions(torch.randn(1, 17, 6).half(), (4, 4), (5, 5), "middle").dtype == torch.float16


def test_square_grid():
    assert square_grid(729) == (27, 27) and square_grid(730) is None
    assert square_grid(0) is None
    assert insert_at(torch.zeros(1, 2, 1), torch.ones(1, 1, 1), 1).flatten().tolist() == [0, 1, 0]


@torch.no_grad()
def test_set_input_size_equals_building_for_that_size():
    model, other = tiny(), tiny(img_size=(20, 28))
    state = model.state_dict()
    with pytest.raises(RuntimeError):
        other.load_state_dict(state)
    other.load_state_dict(other.adapt_state_dict(state))
    model.set_input_size((20, 28))
    images = torch.randn(2, 3, 20, 28)
    assert model.patch_embed.grid_size == (5, 7) and model.class_index == 17
    assert torch.equal(model(images), other(images))


def test_set_input_size_keeps_the_parameter_if_the_grid_is_the_same():
    model = tiny()
    before = model.pos_embed
    model.set_input_size((18, 19))
    assert model.pos_embed is before
    assert model(torch.zeros(1, 3, 18, 19)).shape == (1, 5)
    model.pos_embed.requires_grad_(False)
    model.set_input_size(32)
    assert model.pos_embed.shape == (1, 65, 32) and not model.pos_embed.requires_grad


@pytest.mark.parametrize(
    "build", [partial(tiny, class_token=place) for place in ("middle", "front", "none")] + [MambaReg]
)
def test_special_tokens_are_told_for_any_length(build):
    model, other = build(img_size=32, patch_size=4, depth=1), build(img_size=(24, 40), patch_size=4, depth=1)
    ask = pickle.loads(pickle.dumps(model.special_positions))
    for built in (model, other):
        tokens = torch.arange(built.pos_embed.shape[1] + built.num_registers)[None, :, None]
        special = built._apart(tokens)[1].flatten().tolist()
        assert list(ask(tokens.shape[1])) == special
        assert built.class_index is None or special == [built.class_index]


@torch.no_grad()
def test_a_pretrained_model_survives_a_larger_picture():
    images, labels = real_images(step=10)
    larger = torch.nn.functional.interpolate(images, scale_factor=1.25, mode="bicubic", antialias=True)
    model = create_model("vim_micro_patch4_32", "pretrained", img_size=40)
    accuracy = (model(larger).argmax(1) == labels).float().mean().item()
    assert accuracy > 0.55  # 0.70 on the original 32x32 pictures


def test_wrong_size_after_a_change_is_still_refused():
    model = tiny()
    model.set_input_size(20)
    with pytest.raises(ValueError, match="20, 20"):
        model(IMAGES)


SIZES = {"img_size": 16, "patch_size": 4, "embed_dim": 32, "depth": 3, "num_classes": 5}
KINDS = {
    "middle": tiny,
    "front": partial(tiny, class_token="front"),
    "none": partial(tiny, class_token="none"),
    "overlapping": partial(tiny, stride=2),
    "registers": lambda **options: MambaReg(**(SIZES | {"num_registers": 3} | options)).eval(),
    "clips": lambda **options: VideoMamba(**(SIZES | {"num_frames": 4} | options)).eval(),
}


def inputs(kind, height, width, frames=4):
    """Two images, or clips, of a size."""
    return torch.randn(2, 3, *((frames,) if kind == "clips" else ()), height, width)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_dynamic_size_equals_building_for_that_size(kind):
    dynamic, fixed = KINDS[kind](dynamic_img_size=True), KINDS[kind]()
    fixed.load_state_dict(dynamic.state_dict())
    assert torch.equal(dynamic(x := inputs(kind, 16, 16)), fixed(x))
    for height, width in ((20, 28), (12, 16), (32, 32)):
        fixed.set_input_size((height, width))
        x, fixed = inputs(kind, height, width), fixed.eval()
        assert torch.equal(dynamic(x), fixed(x))
        maps = [model.forward_intermediates(x, 1, intermediates_only=True)[0] for model in (dynamic, fixed)]
        assert torch.equal(*maps) and maps[0].shape[-2:] == fixed.patch_embed.grid_size
        fixed = KINDS[kind]()
        fixed.load_state_dict(dynamic.state_dict())
    assert dynamic.patch_embed.img_size == (16, 16) and dynamic.pos_embed.shape == fixed.pos_embed.shape


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_a_reduced_model_of_every_size_plans_anew(kind):
    dynamic = mtrkit.apply_reduction(KINDS[kind](dynamic_img_size=True), ratio=0.2)
    x = inputs(kind, 32, 32)
    fixed = KINDS[kind]()
    fixed.load_state_dict(dynamic.state_dict())
    fixed.set_input_size(32)
    mtrkit.apply_reduction(fixed, ratio=0.2)
    assert torch.equal(dynamic(x), fixed(x))


def test_positions_of_every_size_are_trained():
    model = tiny(dynamic_img_size=True)
    model(torch.randn(2, 3, 24, 20)).sum().backward()
    assert model.pos_embed.grad.abs().sum(-1).all()


@pytest.mark.parametrize("shape", [(2, 3, 3, 16), (2, 1, 16, 16), (2, 3, 16), (2, 3, 4, 16, 16)])
def test_no_image_of_any_size(shape):
    with pytest.raises(InputError, match=r"expected \(B, 3, 16, 16\)"):
        tiny(dynamic_img_size=True)(torch.zeros(shape))


def test_too_few_patches_for_the_registers():
    with pytest.raises(InputError, match="3 registers stand between more patches than 2"):
        KINDS["registers"](dynamic_img_size=True)(torch.zeros(1, 3, 4, 8))


@torch.no_grad()
def test_clips_of_other_lengths():
    model, dynamic = KINDS["clips"](), KINDS["clips"](dynamic_img_size=True)
    torch.nn.init.normal_(dynamic.temporal_pos_embedding)
    model.load_state_dict(dynamic.state_dict())
    x = inputs("clips", 16, 20, frames=7)
    with pytest.raises(InputError, match=r"set_input_size\(\(height, width\), num_frames=...\).*dynamic_img_size=True"):
        model(x)
    model.set_input_size((16, 20), num_frames=7)
    assert model.patch_embed.input_size == (3, 7, 16, 20) and model.temporal_pos_embedding.shape == (1, 7, 32)
    assert torch.equal(model(x), dynamic(x))
    with pytest.raises(InputError, match="7 frames, expected a multiple of tubelet_size=2"):
        KINDS["clips"](dynamic_img_size=True, tubelet_size=2)(x)


def test_what_is_cut_is_said():
    says = r"16x19 pixels are seen up to 16x16: .* leave 0 rows at the bottom and 3 columns at the right out"
    with pytest.warns(SizeWarning, match=says):
        tiny(img_size=(16, 19))
    model = tiny(dynamic_img_size=True)
    with pytest.warns(SizeWarning, match=says):
        model.set_input_size((16, 19))
    with pytest.warns(SizeWarning, match="21x16"):
        model(torch.zeros(1, 3, 21, 16))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tiny(img_size=(20, 28)), tiny(stride=2), create_model("vim_tiny_patch16_stride8_224", depth=1)
        model(torch.zeros(1, 3, 24, 16))


@torch.no_grad()
def test_what_is_cut_is_not_seen():
    model, x = tiny(dynamic_img_size=True), torch.randn(1, 3, 18, 19)
    torch.testing.assert_close(model(x), model(x[:, :, :16, :16]))
