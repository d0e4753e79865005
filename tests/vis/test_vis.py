"""Pictures tell what the trace tells, whatever the grid and wherever the class token is."""

import numpy as np
import pytest
import torch
from PIL import Image

import mtrkit
from mtrkit.errors import InputError, UnsupportedModelError
from mtrkit.vis import (
    ROLE_COLOURS,
    PatchGrid,
    draw_groups,
    draw_methods,
    draw_reduction,
    draw_roles,
    patch_grid,
    roles,
    strip,
)
from tests.helpers.families import FAMILIES

GREY = Image.new("RGB", (32, 32), (128, 128, 128))


def traced(model, batch=2, **options):
    mtrkit.apply_reduction(model, ratio=0.4, **options)
    channels_and_size = mtrkit.reduction_info(model).input_size
    with torch.inference_mode(), mtrkit.trace_reduction(model) as trace:
        model(torch.randn(batch, *channels_and_size))
    return trace


def micro(**options):
    return mtrkit.create_model("vim_micro_patch4_32", **options).eval()


@pytest.mark.parametrize("family", FAMILIES)
def test_grid_has_every_patch_and_no_special_token(family):
    model = FAMILIES[family]()
    grid = patch_grid(model)
    tokens = mtrkit.reduction_info(mtrkit.apply_reduction(model, indicator="X")).num_tokens
    assert len(grid.positions) == grid.rows * grid.columns == model.patch_embed.num_patches
    skipped = sorted(set(range(tokens)) - set(grid.positions))
    places = {"double": [0, tokens - 1], "front": [0], "mean": [], "last": [], "max": []}
    places |= {"registers": [0, 1, 2, 3, 4], "vit": [0], "videomamba": [0]}
    places |= {"neck": [12, 25, 38, 51], "mambar": [16, 33, 50]}
    places |= {"early": [0], "vim4path": [0, (tokens - 1) // 2]}
    expected = next((places[word] for word in places if word in family.split("_")), [(tokens - 1) // 2])
    assert skipped == expected


@pytest.mark.parametrize(("size", "expected"), [((32, 48), (8, 12)), ((64, 16), (16, 4)), ((20, 36), (5, 9))])
def test_grid_need_not_be_square(size, expected):
    grid = patch_grid(micro(img_size=size))
    assert (grid.rows, grid.columns) == expected


def test_grid_of_overlapping_patches():
    model = mtrkit.create_model("vim_tiny_patch16_stride8_224", embed_dim=16, depth=2)
    assert (patch_grid(model).rows, patch_grid(model).columns) == (27, 27)


def test_grid_of_a_clip_is_the_strip_of_its_frames():
    model = mtrkit.create_model(
        "videomamba_tiny_patch16_224_f8", img_size=(32, 48), num_frames=3, embed_dim=16, depth=2
    )
    grid = patch_grid(model)
    assert (grid.rows, grid.columns) == (2, 9)
    patches = np.arange(18).reshape(3, 2, 3) + 1  # frame, row, column, behind the class token
    assert grid.positions == tuple(np.concatenate(list(patches), axis=1).flatten())


def test_frames_stand_side_by_side():
    picture = strip([Image.new("RGB", (4, 6), colour) for colour in ("red", "lime", "blue")])
    assert picture.size == (12, 6)
    assert [picture.getpixel((x, 3)) for x in (0, 3, 4, 11)] == [(255, 0, 0)] * 2 + [(0, 255, 0), (0, 0, 255)]


def test_grid_of_an_unknown_model():
    with pytest.raises(UnsupportedModelError):
        patch_grid(torch.nn.Linear(3, 3))


@pytest.mark.parametrize(("rows", "columns", "size"), [(3, 5, (50, 31)), (27, 27, (224, 224)), (8, 8, (32, 32))])
def test_boxes_cover_the_picture_once(rows, columns, size):
    grid = PatchGrid(rows, columns, tuple(range(rows * columns)), rows * columns)
    covered = np.zeros(size[::-1], dtype=int)
    for patch in range(rows * columns):
        left, top, right, bottom = grid.box(patch, size)
        covered[top:bottom, left:right] += 1
    assert (covered == 1).all()


def test_roles_are_the_groups_of_the_method():
    model = micro()
    trace = traced(model)
    before = 65
    for stage in trace.stages:
        found = list(roles(stage, 1).values())
        removed = stage.present.shape[1] - (int(stage.slot.max()) + 1)
        assert found.count("source") == removed == found.count("keep") - 1  # the class token is kept beside the best
        assert found.count("gone") == before - stage.present.shape[1]
        assert len(found) == before


@pytest.mark.parametrize("operation", ["merge", "prune"])
def test_without_groups_roles_follow_from_where_tokens_went(operation):
    stage = traced(micro(), operation=operation).stages[0]
    recorded = roles(stage, 0)
    derived = roles(type(stage)(stage.layer, None, stage.present, None, stage.slot), 0)
    assert list(derived.values()).count("source") == list(recorded.values()).count("source")
    assert ("target" in derived.values()) == (operation == "merge")


def test_tints():
    grid = PatchGrid(2, 2, (0, 2, 3, 4), 5)  # position 1 is a class token
    picture = draw_roles(GREY, grid, {0: "keep", 1: "keep", 2: "target", 3: "source", 4: "gone"})
    red, blue, dark, pale = (picture.getpixel(place) for place in ((5, 5), (25, 5), (5, 25), (25, 25)))
    assert red[0] > red[2] and blue[2] > blue[0]
    assert max(dark) < 80 and min(pale) > 200
    assert set(ROLE_COLOURS) == {"keep", "target", "source", "gone"}


def test_merged_patches_get_their_mean_and_an_outline():
    pixels = np.zeros((40, 40, 3), dtype=np.uint8)
    pixels[:20, :20], pixels[:20, 20:], pixels[20:, :20], pixels[20:, 20:] = 10, 50, 200, 255
    picture = draw_groups(Image.fromarray(pixels), PatchGrid(2, 2, (0, 1, 2, 3), 4), [[0, 1], [2]])
    at = picture.getpixel
    assert at((10, 10)) == at((30, 10)) == (30, 30, 30)
    assert at((10, 30)) == (200, 200, 200)
    assert at((30, 30)) == (0, 0, 0)  # in no token: dropped
    assert len(set(at((0, 5)))) > 1  # an outline has a hue


def test_a_whole_picture():
    model = micro(img_size=(32, 48))
    images = [Image.new("RGB", (48, 32), colour) for colour in ("red", "green")]
    trace = traced(model)
    sheet = draw_reduction(images, trace, patch_grid(model), ["a", "b"], "title")
    assert sheet.width > 5 * 336 and sheet.height > 2 * 224
    with pytest.raises(InputError, match="trace is of 2"):
        draw_reduction(images[:1], trace, patch_grid(model))
    with pytest.raises(InputError, match="trace is of 0"):
        draw_reduction(images, mtrkit.Trace(), patch_grid(model))


def test_methods_side_by_side_show_what_each_alone_does():
    model, images = micro(), torch.randn(1, 3, 32, 32)
    traces = {}
    for name, options in (("delta", {}), ("prune", {"operation": "prune", "indicator": "X"})):
        mtrkit.apply_reduction(model, ratio=0.4, **options)
        with torch.inference_mode(), mtrkit.trace_reduction(model) as traces[name]:
            model(images)
    grid = patch_grid(model)
    sheet = np.asarray(draw_methods([GREY], traces, grid, ["grey"]))
    for column, trace in enumerate(traces.values(), start=1):
        alone = np.asarray(draw_reduction([GREY], trace, grid))
        width, step = 224, 224 + 24
        for row in range(4):  # three reductions, then the groups
            cell = sheet[40 + row * step :, 14 + column * (width + 14) :][:224, :224]
            assert (cell == alone[40:, 14 + (row + 1) * (width + 14) :][:224, :224]).all()


def test_methods_that_reduce_elsewhere_do_not_stand_side_by_side():
    traces = {name: traced(micro(), batch=1, layers=layers) for name, layers in (("a", [3, 6]), ("b", [2, 4]))}
    with pytest.raises(InputError, match="same blocks"):
        draw_methods([GREY], traces, patch_grid(micro()), [""])
