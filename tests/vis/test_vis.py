"""Pictures tell what the trace tells, whatever the grid and wherever the class token is."""

import numpy as np
import pytest
import torch
from PIL import Image

import mtrkit
from mtrkit.errors import InputError, UnsupportedModelError
from mtrkit.vis import (
    ROLE_COLOURS,
    Answer,
    Pass,
    PatchGrid,
    Shown,
    StageView,
    animate_reduction,
    draw_groups,
    draw_importance,
    draw_reduction,
    draw_roles,
    frame_grids,
    merged_groups,
    patch_grid,
    stage_views,
)
from mtrkit.vis.groups import pieces
from tests.helpers.families import FAMILIES

GREY = Image.new("RGB", (32, 32), (128, 128, 128))
FOUR = PatchGrid(2, 2, (0, 2, 3, 4), 5)  # position 1 is a class token


def traced(model, method="mtr", batch=2, **options):
    mtrkit.apply_reduction(model, method, **({"ratio": 0.4} | options))
    channels_and_size = mtrkit.reduction_info(model).input_size
    with torch.inference_mode(), mtrkit.trace_reduction(model) as trace:
        model(torch.randn(batch, *channels_and_size))
    return trace


def micro(**options):
    return mtrkit.create_model("vim_micro_patch4_32", **options).eval()


def clips(frames=3):
    name = "videomamba_tiny_patch16_224_f8"
    return mtrkit.create_model(name, img_size=(32, 48), num_frames=frames, embed_dim=16, depth=4).eval()


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
    grid = patch_grid(clips())
    assert (grid.rows, grid.columns) == (2, 9)
    patches = np.arange(18).reshape(3, 2, 3) + 1  # frame, row, column, behind the class token
    assert grid.positions == tuple(np.concatenate(list(patches), axis=1).flatten())
    assert [part.positions for part in frame_grids(grid, 3)] == [tuple(frame.flatten()) for frame in patches]


def test_frames_that_one_patch_covers_have_one_grid():
    name = "videomamba_tiny_patch16_224_f8"
    options = {"img_size": (32, 48), "num_frames": 4, "tubelet_size": 2, "embed_dim": 16, "depth": 4}
    grid = patch_grid(mtrkit.create_model(name, **options))
    assert (grid.rows, grid.columns, grid.frames) == (2, 6, 2)
    patches = np.arange(12).reshape(2, 2, 3) + 1  # time, row, column, behind the class token
    expected = [tuple(patches[time].flatten()) for time in (0, 0, 1, 1)]
    assert [part.positions for part in frame_grids(grid, 4)] == expected
    with pytest.raises(InputError, match="3 frames were given for a model with 2 patches in the direction of time"):
        frame_grids(grid, 3)


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


@pytest.mark.parametrize("method", [*mtrkit.list_methods(), "mtr, dropping"])
def test_roles_are_what_happened_to_each_token(method):
    """By the definition of the words, from where each position was and where it went."""
    name, _, drops = method.partition(", ")
    model = micro()
    trace = traced(model, name, **({"operation": "prune"} if drops else {}))
    for view in stage_views(trace, patch_grid(model), 1):
        for position, role in enumerate(view.roles):
            before, after = view.entering[position], view.slot[position]
            met = (
                {view.entering[other] for other, slot in enumerate(view.slot) if slot == after} if after >= 0 else set()
            )
            meets = {view.roles[view.entering.index(token)] for token in met - {before}}
            expected = {
                "gone": before < 0,
                "dropped": before >= 0 > after,
                "keep": after >= 0 and not meets,
                "target": after >= 0 and meets == {"source"},
                "source": after >= 0 and "target" in meets and meets <= {"source", "target"},
            }
            assert expected[role] and sum(expected.values()) == 1, (position, role, meets)
        assert view.before == len(set(view.entering) - {-1}) and view.after == len(set(view.slot) - {-1})


def test_what_receives_nothing_is_no_target():
    """MTR's middle group may receive; only the tokens of it that do are targets."""
    model = micro()
    trace = traced(model)
    stage, view = trace.stages[0], stage_views(trace, patch_grid(model), 0)[0]
    might = {int(stage.present[0, index]) for index in stage.split.dst[0]}
    targets = {position for position, role in enumerate(view.roles) if role == "target"}
    assert targets < might and len(targets) <= view.roles.count("source")


def test_a_merged_token_stands_where_the_one_that_was_kept_stood():
    model = micro()
    trace = traced(model, "rmeeto")
    first, second = trace.stages[:2]
    assert torch.equal(first.present.gather(1, first.kept), second.present)


def test_ranks_are_in_the_order_of_the_scores():
    model = micro()
    trace, grid = traced(model, "hsa"), patch_grid(model)
    for stage, view in zip(trace.stages, stage_views(trace, grid, 1), strict=True):
        alive = [position for position in grid.positions if view.entering[position] >= 0]
        scores = torch.tensor([float(stage.score[1, view.entering[position]]) for position in alive])
        ranks = torch.tensor([view.ranks[position] for position in alive])
        assert (ranks[scores.argsort()].diff() >= 0).all() and ranks.min() == 0 and ranks.max() == 1
        assert all(view.ranks[position] == -1 for position in set(grid.positions) - set(alive))


def test_a_method_without_importance_has_no_map_of_it():
    model = micro()
    trace, grid = traced(model, "rmeeto", batch=1), patch_grid(model)
    assert stage_views(trace, grid, 0)[0].ranks is None
    with pytest.raises(InputError, match="rmeeto at ratio 0.4 has no importance"):
        draw_reduction([Shown([GREY])], [Pass("rmeeto", "ratio 0.4", trace)], grid, map="importance")


def test_the_image_stays_visible():
    """Two images give two pictures that differ in every patch, whatever its role."""
    view = StageView(
        3, 4, 2, (0, 1, 2, 3, -1), (0, 1, 0, -1, -1), ("target", "keep", "source", "dropped", "gone"), None
    )
    dark, bright = (
        np.asarray(draw_roles(Image.new("RGB", (64, 64), (grey,) * 3), FOUR, view)).astype(int) for grey in (60, 200)
    )
    middles = [(8, 16), (8, 48), (40, 16), (40, 48)]  # beside crosses and outlines
    assert [bright[y, x].mean() - dark[y, x].mean() > 45 for y, x in middles] == [True] * 4


def test_roles_are_told_apart():
    roles = ("target", "keep", "source", "dropped", "gone")
    view = StageView(3, 4, 2, (0, 1, 2, 3, -1), (0, 1, 0, -1, -1), roles, None)
    picture = draw_roles(GREY.resize((64, 64)), FOUR, view)
    blue, orange, dark, pale = (picture.getpixel(place) for place in ((8, 16), (40, 16), (16, 35), (48, 35)))
    assert blue[2] > blue[0] and orange[0] > orange[2]
    assert max(dark) < 120 < 150 < min(pale)
    assert picture.getpixel((0, 0)) == ROLE_COLOURS["target"]  # an outline
    assert set(ROLE_COLOURS) == set(roles)


def test_dropped_patches_look_alike_in_every_column():
    view = StageView(6, 5, 5, (0, 1, 2, 3, -1), (0, 1, 2, 3, -1), ("keep",) * 4 + ("gone",), None)
    image = Image.effect_noise((64, 64), 80).convert("RGB")
    stage, end = draw_roles(image, FOUR, view), draw_groups(image, FOUR, view.slot)
    assert stage.crop((32, 32, 64, 64)).tobytes() == end.crop((32, 32, 64, 64)).tobytes()


def test_importance_goes_from_dark_to_bright():
    view = StageView(3, 5, 4, (0, 1, 2, 3, -1), (0, 1, 2, 3, -1), ("keep",) * 4 + ("gone",), (0.0, 0.5, 0.5, 1.0, -1.0))
    picture = draw_importance(GREY, FOUR, view)
    low, middle, high = (np.mean(picture.getpixel(place)) for place in ((4, 4), (20, 4), (4, 20)))
    assert low < middle < high


def test_patches_of_one_token_can_be_found():
    """One token has two patches side by side, which need no number; two others have patches at two ends."""
    grid = PatchGrid(2, 4, tuple(range(8)), 8)
    slot = (0, 0, 1, 2, 2, 3, -1, 1)
    groups = merged_groups([grid], slot)
    assert [groups[token].number for token in (0, 1, 2)] == [None, 1, 2] and 3 not in groups
    assert len({group.colour for group in groups.values()}) == 3
    assert pieces({0, 1, 5, 3, 7}, grid) == [{0, 1, 5}, {3, 7}]
    picture = draw_groups(Image.new("RGB", (160, 80), (128, 128, 128)), grid, slot)
    white = (np.asarray(picture) > 240).all(axis=-1)
    numbered = {int(4 * (y // 40) + x // 40) for y, x in zip(*white.nonzero(), strict=True)}
    assert numbered == {2, 3, 4, 7}  # the patches of the two scattered tokens


def test_a_token_in_several_frames_is_numbered():
    grid = patch_grid(clips(2))
    slot = [*range(13)]
    slot[8] = slot[2]  # a patch of the second frame becomes one with one of the first
    groups = merged_groups(frame_grids(grid, 2), slot)
    assert list(groups) == [slot[2]] and groups[slot[2]].number == 1


def shown(*images, **more):
    return [Shown([image], f"image {number}", **more) for number, image in enumerate(images)]


def test_a_whole_picture():
    model = micro(img_size=(32, 48))
    inputs = shown(*(Image.new("RGB", (48, 32), colour) for colour in ("red", "green")), top=[Answer("cat", 0.9)])
    done = Pass("mtr", "ratio 0.4", traced(model), [[Answer("cat", 0.8)], [Answer("dog", 0.6)]])
    sheet = draw_reduction(inputs, [done], patch_grid(model), title="title")
    assert sheet.width > 5 * 480 and sheet.height > 2 * 320
    with pytest.raises(InputError, match="is of 2"):
        draw_reduction(inputs[:1], [done], patch_grid(model))
    with pytest.raises(InputError, match="is of 0"):
        draw_reduction(inputs, [Pass("mtr", "ratio 0.4", mtrkit.Trace())], patch_grid(model))
    with pytest.raises(InputError, match="97 tokens and the grid is of 65"):
        draw_reduction(inputs, [done], patch_grid(micro()))


def test_several_reductions_share_one_input():
    """They may reduce after different blocks, and each row is what its reduction alone gives."""
    model = micro()
    grid, images = patch_grid(model), torch.randn(1, 3, 32, 32)
    passes = []
    for name, options in (("a", {}), ("b", {"operation": "prune", "layers": [2, 5]})):
        mtrkit.apply_reduction(model, ratio=0.4, **options)
        with torch.inference_mode(), mtrkit.trace_reduction(model) as trace:
            model(images)
        passes.append(Pass(name, "ratio 0.4", trace))
    sheet = np.asarray(draw_reduction(shown(GREY), passes, grid))
    row, step = slice(46, 46 + 320), 30 + 320 + 24
    for number, (each, panels) in enumerate(zip(passes, (4, 3), strict=True)):
        alone = np.asarray(draw_reduction(shown(GREY), [each], grid))
        for column in range(1, 1 + panels):
            place = slice(16 + column * 336, 16 + column * 336 + 320)
            assert (sheet[row.start + number * step : row.stop + number * step, place] == alone[row, place]).all()
    first, second = (sheet[row.start + n * step : row.stop + n * step, 16:336] for n in (0, 1))
    assert (first == 128).all() and (second == 255).all()


def test_a_clip_has_a_row_for_each_frame_or_is_an_animation():
    model = clips()
    frames = [Image.new("RGB", (48, 32), colour) for colour in ("red", "lime", "blue")]
    inputs, trace = (
        [Shown(frames, "clip", times=(0.5, 1.0, 1.5))],
        traced(model, "rmeeto", batch=1, ratio=0.2, layers=[1, 2]),
    )
    done, grid = [Pass("rmeeto", "ratio 0.4", trace)], patch_grid(model)
    sheet = draw_reduction(inputs, done, grid)
    pictures = animate_reduction(inputs, done, grid)
    assert len(pictures) == 3 and len({picture.size for picture in pictures}) == 1
    assert sheet.width == pictures[0].width and sheet.height > 3 * 208
    colours = [picture.getpixel((100, 46 + 100)) for picture in pictures]
    assert colours == [(255, 0, 0), (0, 255, 0), (0, 0, 255)]
    rows = [sheet.getpixel((100, 46 + 100 + t * (208 + 24))) for t in range(3)]
    assert rows == colours
