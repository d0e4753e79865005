"""What a page holds is what the API says, and nothing that is called oddly becomes markup."""

import base64
import io
import re

import numpy as np
import pytest
import torch
from PIL import Image

import mtrkit
from mtrkit.cli.main import main
from mtrkit.data import bundled_images
from mtrkit.measure import preprocess_for
from mtrkit.vis import Answer, Cost, Pass, Shown, data_of, frame_grids, patch_grid, tokens_data, tokens_page
from mtrkit.vis.page import as_script, render_page
from mtrkit.vis.tokens import embed
from tests.cli.conftest import MODEL

NUMBERS = (13, 310, 555)
RATIOS = (0.2, 0.4)
METHODS = ("mtr", "evit")


@pytest.fixture(scope="module")
def model():
    return mtrkit.create_model(MODEL, "pretrained").eval()


@pytest.fixture(scope="module")
def batch(model):
    normalise = preprocess_for(model.pretrained_cfg).tensor
    return torch.stack([normalise(bundled_images().images[number]) for number in NUMBERS])


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The data of a page that the command wrote, and the page."""
    out = tmp_path_factory.mktemp("page") / "tokens.html"
    images = [f"bundled:{number}" for number in NUMBERS]
    reductions = ["--method", *METHODS, "--ratio", *map(str, RATIOS)]
    assert main(["draw", MODEL, *images, *reductions, "--rounds", "1", "--page", str(out)]) == 0
    text = out.read_text(encoding="utf-8")
    return data_of(text), text


def test_the_page_says_what_the_api_says(page, model, batch):
    data, _ = page
    names = bundled_images().classes
    mtrkit.remove_reduction(model)
    assert data["dense"]["gflops"] == mtrkit.count_flops(model).gflops
    assert [(done["method"], done["amount"]) for done in data["passes"]] == [
        (method, f"ratio {ratio}") for method in METHODS for ratio in RATIOS
    ]
    with torch.inference_mode():
        assert_answers([one["top"] for one in data["inputs"]], model(batch), names)
    for done in data["passes"]:
        mtrkit.apply_reduction(model, done["method"], float(done["amount"].split()[1]))
        info = mtrkit.reduction_info(model)
        with torch.inference_mode(), mtrkit.trace_reduction(model) as trace:
            assert_answers([one["top"] for one in done["inputs"]], model(batch), names)
        assert done["gflops"] == info.flops_reduced.gflops
        assert done["ratio"] == pytest.approx(info.ratio_reached)
        assert done["promised"] == pytest.approx(info.promised_speedup)
        assert done["images_per_second"] > 0 and done["speedup"] > 0
        assert [stage["layer"] for stage in done["stages"]] == list(info.layers)
        assert [stage["after"] for stage in done["stages"]] == [info.tokens[layer - 1] for layer in info.layers]
        for sample, one in enumerate(done["inputs"]):
            assert_merges(one["stages"][-1]["slot"], trace, sample, patch_grid(model))
            for stage, recorded in zip(one["stages"], trace.stages, strict=True):
                assert stage["slot"] == recorded.slot[sample, list(patch_grid(model).positions)].tolist()


def assert_answers(tops, logits, names):
    """The five likeliest classes with their probabilities; those that are as likely may stand in any order."""
    for top, row in zip(tops, logits.softmax(dim=-1), strict=True):
        assert [share for _, share in top] == pytest.approx(row.topk(5).values.tolist(), abs=1e-5)
        assert [float(row[names.index(label)]) for label, _ in top] == pytest.approx([s for _, s in top], abs=1e-5)
        assert len({label for label, _ in top}) == 5


def assert_merges(slot, trace, sample, grid):
    """The patches that share a token on the page are those that the trace has in one group."""
    patch = {position: index for index, position in enumerate(grid.positions)}
    groups = [[patch[position] for position in group if position in patch] for group in trace.groups(sample)]
    shared = [sorted(i for i, token in enumerate(slot) if token == one) for one in sorted(set(slot) - {-1})]
    assert shared == sorted((sorted(group) for group in groups if group), key=lambda group: slot[group[0]])
    assert {i for i, token in enumerate(slot) if token < 0} == set(range(len(slot))) - set(sum(groups, []))


def test_the_page_shows_what_the_model_saw(page):
    data, _ = page
    assert [one["name"] for one in data["inputs"]] == [
        "bundled image 13 (airplane)",
        "bundled image 310 (cat)",
        "bundled image 555 (dog)",
    ]
    for one, number in zip(data["inputs"], NUMBERS, strict=True):
        kind, _, content = one["frames"][0].partition(",")
        assert kind == "data:image/png;base64"
        with Image.open(io.BytesIO(base64.b64decode(content))) as image:
            assert (np.asarray(image) == bundled_images().images[number]).all()


def test_the_page_stands_alone_and_is_small(page):
    _, text = page
    outside = re.findall(r"""(?:src|href|url|import|fetch|action)\s*[=(:]?\s*["'(]\s*(?!data:)[\w/.:]+""", text)
    assert not [found for found in outside if "//" in found]
    assert set(re.findall(r"https?://[\w./-]+", text)) == {"http://www.w3.org/2000/svg"}  # a name, never fetched
    assert len(text.encode()) < 500_000
    assert "default-src 'none'" in text


def test_photos_make_a_small_page():
    """Three photos of 224 pixels, which compress badly, on a Vim with five ratios."""
    model = mtrkit.create_model("vim_tiny_patch16_224", embed_dim=16).eval()
    grid, images = patch_grid(model), [Image.effect_noise((224, 224), 60).convert("RGB") for _ in range(3)]
    passes = []
    for ratio in (0.1, 0.2, 0.3, 0.4, 0.5):
        mtrkit.apply_reduction(model, ratio=ratio)
        with torch.inference_mode(), mtrkit.trace_reduction(model) as trace:
            model(torch.randn(3, 3, 224, 224))
        passes.append(Pass("mtr", f"ratio {ratio}", trace, cost=Cost(1.0)))
    page = tokens_page([Shown([image], "photo") for image in images], passes, grid, Cost(2.0), "title", {})
    assert len(page.encode()) < 1_000_000


def test_a_clip_is_numbered_frame_after_frame():
    name = "videomamba_tiny_patch16_224_f8"
    model = mtrkit.create_model(name, img_size=(32, 48), num_frames=3, embed_dim=16, depth=4).eval()
    mtrkit.apply_reduction(model, "rmeeto", r=3, layers=[1, 2])
    with torch.inference_mode(), mtrkit.trace_reduction(model) as trace:
        model(torch.randn(1, 3, 3, 32, 48))
    grid, frames = patch_grid(model), [Image.new("RGB", (48, 32), colour) for colour in ("red", "lime", "blue")]
    inputs = [Shown(frames, "clip", times=(0.0, 0.5, 1.0))]
    data = tokens_data(inputs, [Pass("rmeeto", "r=3", trace, cost=Cost(1.0))], grid, Cost(2.0), "title", {})
    assert data["grid"] == {"rows": 2, "columns": 3, "frames": 3} and data["inputs"][0]["times"] == [0.0, 0.5, 1.0]
    slot = data["passes"][0]["inputs"][0]["stages"][-1]["slot"]
    assert slot == trace.slot[0, 1:].tolist()  # the class token stands in front, then frame after frame
    assert [part.positions for part in frame_grids(grid, 3)][1] == (7, 8, 9, 10, 11, 12)


HOSTILE = "</script><img src=x onerror=alert(1)>\"'&\u2028{{data}}{{script}}"


def test_names_never_become_markup():
    model = mtrkit.create_model(MODEL).eval()
    mtrkit.apply_reduction(model, ratio=0.3)
    with torch.inference_mode(), mtrkit.trace_reduction(model) as trace:
        model(torch.randn(1, 3, 32, 32))
    inputs = [Shown([Image.new("RGB", (32, 32))], HOSTILE, [Answer(HOSTILE, 1.0)])]
    done = Pass(HOSTILE, HOSTILE, trace, [[Answer(HOSTILE, 1.0)]], Cost(1.0))
    page = tokens_page(inputs, [done], patch_grid(model), Cost(2.0), HOSTILE, {HOSTILE: HOSTILE})
    assert "<img src=x" not in page and "onerror=alert(1)&gt;" in page  # in the title, as text
    assert page.count("</script>") == 2 and page.count("<script") == 2
    data = data_of(page)
    assert data["title"] == data["inputs"][0]["name"] == data["passes"][0]["method"] == HOSTILE
    assert data["about"] == {HOSTILE: HOSTILE}


def test_only_the_own_script_may_run():
    page = render_page("compare", "title", {"title": "title", "about": {}, "points": []})
    assert "unsafe" not in page
    assert re.search(r"script-src 'sha256-[\w+/]+=*'", page)


def test_what_json_does_not_know_is_refused():
    with pytest.raises(ValueError, match="JSON"):
        as_script({"speed": float("nan")})
    with pytest.raises(ValueError, match="not a page"):
        data_of("<html></html>")


def test_large_images_are_embedded_as_jpeg():
    assert embed(Image.new("RGB", (224, 224))).startswith("data:image/jpeg;base64,")
    assert embed(Image.new("RGB", (32, 32))).startswith("data:image/png;base64,")
