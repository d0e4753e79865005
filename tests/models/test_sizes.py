"""Other image sizes: positions follow, and the class token's row stays the class token's."""

import pickle
from functools import partial

import pytest
import torch

from mtrkit.models import MambaReg, create_model
from mtrkit.models.positions import insert_at, resize_positions, square_grid, without
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
        assert torch.equal(without(again, now), without(resized, now))


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
