"""The pages in a real browser: what they show follows pointer, keyboard and slider, in light and dark, on a phone too.

Every test fails if the page prints an error, breaks its own policy, or asks for anything but itself.
"""

import pytest

from mtrkit.cli.main import main
from mtrkit.vis import data_of
from tests.helpers.browser import find_chromium, open_chromium

sync_api = pytest.importorskip(
    "playwright.sync_api", reason="the browser tests need playwright: pip install playwright"
)
pytestmark = pytest.mark.skipif(find_chromium() is None, reason="the browser tests need Chromium on PATH, or CHROMIUM")

MODEL = "vim_micro_patch4_stride2_32"  # 15 × 15 patches
DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}

CONTRAST = """() => {
  const parse = (text) => text.match(/[\\d.]+/g).map(Number);
  const light = (colour) => {
    const [r, g, b] = colour.map((c) => c / 255).map((c) => (c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const [r, g, b, alpha = 1] = parse(getComputedStyle(at).backgroundColor);
      if (alpha > 0) return [r, g, b];
    }
    return [255, 255, 255];
  };
  const found = [];
  for (const element of document.querySelectorAll("body *")) {
    const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
    if (!own || !element.checkVisibility() || element.closest("svg, script, .hidden, :disabled")) continue;
    const [a, b] = [light(parse(getComputedStyle(element).color)), light(behind(element))];
    found.push([(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), element.textContent.trim().slice(0, 40)]);
  }
  return found;
}"""

NAMELESS = """() => {
  const named = (element) =>
    element.labels?.length || element.getAttribute("aria-label") || element.getAttribute("aria-labelledby") ||
    element.textContent.trim();
  const wanted = "input, select, button, canvas[tabindex], [role=img], [role=region]";
  return [...document.querySelectorAll(wanted)].filter((one) => !named(one)).map((one) => one.outerHTML);
}"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("pages")


@pytest.fixture(scope="module")
def tokens(folder):
    """A page of two images, by a method that merges and one that drops."""
    out = folder / "tokens.html"
    run = ["draw", MODEL, "bundled:13", "bundled:310", "--method", "runs", "hsa", "--ratio", "0.2", "0.3", "0.4"]
    assert main([*run, "--rounds", "1", "--page", str(out)]) == 0
    return out


@pytest.fixture(scope="module")
def clip(folder):
    """A page of one clip with random weights."""
    av = pytest.importorskip("av", reason="videos need PyAV")
    from PIL import Image

    video, out = folder / "clip.mp4", folder / "clip.html"
    with av.open(str(video), "w") as container:
        stream = container.add_stream("mpeg4", rate=8)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for index in range(16):
            image = Image.new("RGB", (64, 48), (15 * index, 60, 200 - 12 * index))
            container.mux(stream.encode(av.VideoFrame.from_image(image)))
        container.mux(stream.encode())
    run = ["draw", "videomamba_tiny_patch16_224_f8", "--checkpoint", "random", "--input-size", "32x48", str(video)]
    assert main([*run, "--method", "mtr", "--r", "10", "--rounds", "0", "--page", str(out)]) == 0
    return out


@pytest.fixture(scope="module")
def compared(folder):
    out = folder / "compare.html"
    run = ["compare", "--model", MODEL, "--data", "bundled", "--limit", "30", "--method", "mtr", "runs", "evit", "hsa"]
    assert main([*run, "--ratio", "0.2", "0.4", "--rounds", "1", "--page", str(out)]) == 0
    return out


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        opened = open_chromium(playwright)
        yield opened
        opened.close()


@pytest.fixture
def visit(browser):
    """A function that opens a page; at the end nothing may have gone wrong on it."""
    contexts, wrong = [], []

    def open_page(file, size=DESKTOP, dark=False):
        context = browser.new_context(viewport=size, color_scheme="dark" if dark else "light", reduced_motion="reduce")
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: wrong.append(message.text) if message.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        own = file.as_uri()
        page.on(
            "request", lambda request: None if request.url.startswith(("data:", own)) else wrong.append(request.url)
        )
        page.goto(own)
        page.wait_for_load_state("load")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert wrong == []


def status(page):
    return page.locator("#status").inner_text()


def middle_of(page, canvas, patch, rows, columns):
    """Where on the screen the middle of a patch is."""
    box = page.locator("#panels canvas").nth(canvas).bounding_box()
    row, column = divmod(patch, columns)
    return box["x"] + (column + 0.5) / columns * box["width"], box["y"] + (row + 0.5) / rows * box["height"]


def pixels(page, canvas):
    """All bytes of one canvas."""
    return page.locator("#panels canvas").nth(canvas).evaluate("canvas => canvas.toDataURL()")


def test_the_slider_changes_what_is_shown(visit, tokens):
    page, data = visit(tokens), data_of(tokens.read_text(encoding="utf-8"))
    slider = page.get_by_label("How much is removed")
    slider.press("Home")
    for number in range(3):
        done = data["passes"][number]
        stage, end = done["stages"][0], done["stages"][-1]["after"]
        captions = page.locator("figcaption").all_inner_texts()
        assert captions[1] == f"Block {stage['layer']}: {stage['before']} to {stage['after']} tokens"
        assert captions[-1] == f"The {end} tokens at the end"
        assert f"{data['tokens']} → {end}" in page.locator("#numbers").inner_text()
        assert done["amount"] in slider.get_attribute("aria-valuetext")
        for answer, top in zip(
            page.locator("#answers table").all(), (data["inputs"][0], done["inputs"][0]), strict=True
        ):
            cells = answer.locator("tbody td:first-child").all_inner_texts()
            assert cells == [label for label, _ in top["top"]]
        slider.press("ArrowRight")


def test_the_pointer_shows_the_patches_of_a_token(visit, tokens):
    """Over a patch of the largest token at the end: all its patches, and nothing else, stay bright in every picture."""
    page, data = visit(tokens), data_of(tokens.read_text(encoding="utf-8"))
    slot = data["passes"][1]["inputs"][0]["stages"][-1]["slot"]  # the slider starts in the middle
    token = max(set(slot) - {-1}, key=slot.count)
    members = [patch for patch, other in enumerate(slot) if other == token]
    before = [pixels(page, canvas) for canvas in range(5)]
    page.mouse.move(*middle_of(page, 4, members[0], 15, 15))
    assert status(page).endswith(f"{len(members)} patches are one token.")
    assert page.evaluate("state.chosen.members") == members
    assert all(pixels(page, canvas) != before[canvas] for canvas in range(5))
    page.mouse.move(5, 5)
    assert status(page) == "No patch is chosen." and pixels(page, 4) == before[4]


def test_a_tap_keeps_the_choice(visit, tokens):
    page = visit(tokens)
    page.mouse.click(*middle_of(page, 1, 17, 15, 15))
    said = status(page)
    assert said.startswith("Block 1, row 2, column 3: ")
    page.mouse.move(5, 5)
    assert status(page) == said
    page.mouse.click(*middle_of(page, 1, 17, 15, 15))
    page.mouse.move(5, 5)
    assert status(page) == "No patch is chosen."


def test_everything_can_be_reached_by_keyboard(visit, tokens):
    page = visit(tokens)
    seen = set()
    for _ in range(20):
        page.keyboard.press("Tab")
        seen.add(
            page.evaluate("document.activeElement.id || document.activeElement.name || document.activeElement.tagName")
        )
    assert {"input", "method", "amount", "map", "CANVAS", "SUMMARY"} <= seen
    page.locator("#panels canvas").nth(1).focus()
    page.keyboard.press("ArrowRight")
    assert "row 8, column 9" in status(page)
    page.keyboard.press("ArrowUp")
    assert "row 7, column 9" in status(page)
    page.keyboard.press("Enter")
    page.keyboard.press("Escape")
    assert status(page) == "No patch is chosen."


def test_importance_is_there_for_methods_that_have_it(visit, tokens):
    page = visit(tokens)
    importance = page.get_by_label("Importance")
    assert importance.is_disabled()  # runs ranks nothing
    page.get_by_label("Method").select_option("hsa")
    before = pixels(page, 1)
    importance.check()
    assert pixels(page, 1) != before
    page.mouse.move(*middle_of(page, 1, 17, 15, 15))
    assert "More important than" in status(page)
    page.get_by_label("Method").select_option("runs")
    assert page.get_by_label("What happens").is_checked() and "rank" not in page.locator("#legend").inner_text()


def test_another_input(visit, tokens):
    page, data = visit(tokens), data_of(tokens.read_text(encoding="utf-8"))
    before = pixels(page, 0)
    page.get_by_label("bundled image 310 (cat)").check(force=True)
    assert pixels(page, 0) != before
    assert page.locator("#answers tbody td:first-child").first.inner_text() == data["inputs"][1]["top"][0][0]


def test_a_clip_has_a_scrubber(visit, clip):
    page, data = visit(clip), data_of(clip.read_text(encoding="utf-8"))
    frame = page.get_by_label("Frame", exact=True)
    before = pixels(page, 0)
    frame.press("ArrowRight")
    assert pixels(page, 0) != before
    assert frame.get_attribute("aria-valuetext") == f"frame 2 of 8, {data['inputs'][0]['times'][1]:.2f} s"
    slot = data["passes"][0]["inputs"][0]["stages"][-1]["slot"]
    spread = next(s for s in slot if len({patch // 6 for patch, other in enumerate(slot) if other == s}) > 1)
    patch = slot.index(spread)
    page.locator("#film button").nth(patch // 6).click()
    page.mouse.move(*middle_of(page, len(data["passes"][0]["stages"]) + 1, patch % 6, 2, 3))
    badges = page.locator("#film li").all_inner_texts()
    counts = [sum(other == spread for other in slot[6 * t : 6 * t + 6]) for t in range(8)]
    assert [int(text or 0) for text in badges] == counts
    shown = page.locator("#frame-text").inner_text()
    page.get_by_role("button", name="Play").click()
    sync_api.expect(page.locator("#frame-text")).not_to_have_text(shown)
    page.get_by_role("button", name="Pause").click()
    assert page.get_by_role("button", name="Play").is_visible()


@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("name", ["tokens", "clip", "compared"])
def test_pages_fit_and_can_be_read(visit, request, name, size, dark):
    page = visit(request.getfixturevalue(name), size, dark)
    assert page.evaluate("document.documentElement.scrollWidth") <= size["width"]
    too_weak = [(round(ratio, 2), text) for ratio, text in page.evaluate(CONTRAST) if ratio < 4.5]
    assert too_weak == []
    bright = page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert bright != dark


def test_controls_have_names(visit, tokens, compared):
    for file in (tokens, compared):
        page = visit(file)
        nameless = page.evaluate(NAMELESS)
        assert nameless == []


def test_points_of_a_comparison_tell_their_numbers(visit, compared):
    page, data = visit(compared), data_of(compared.read_text(encoding="utf-8"))
    assert page.locator("#plot g.point").count() == len(data["points"]) == 9
    point = data["points"][3]
    mark = page.locator('#plot g.point[data-index="3"] .mark').bounding_box()
    page.mouse.move(mark["x"] + mark["width"] / 2, mark["y"] + mark["height"] / 2)
    assert f"top-1 {100 * point['top1']:.1f} %" in status(page) and point["method"] in status(page)
    assert page.locator("#table tr.chosen").get_attribute("data-index") == "3"
    page.get_by_role("checkbox", name="hsa").uncheck()
    assert page.locator("#plot g.point").count() == 7
    page.get_by_role("radio", name="Inputs per second").check()
    assert "inputs per second" in page.locator("#plot").text_content()
    page.get_by_role("radio", name="Top-1").check()
    assert "top-1, %" in page.locator("#plot").text_content()


def test_tables_of_a_comparison_can_be_sorted(visit, compared):
    page, data = visit(compared), data_of(compared.read_text(encoding="utf-8"))
    page.get_by_role("button", name="GFLOPs").click()
    heads = page.locator("#table th[scope=col]")
    assert heads.nth(3).get_attribute("aria-sort") == "descending"
    order = [int(row.get_attribute("data-index")) for row in page.locator("#table tbody tr").all()]
    costs = [data["points"][index]["gflops"] for index in order]
    assert costs == sorted(costs, reverse=True)


def test_names_stay_text(visit, folder, photos):
    hostile = folder / "<img src=x onerror=window.hit=1>&amp;.png"
    hostile.write_bytes(next(photos.glob("cat/*.png")).read_bytes())
    out = folder / "hostile.html"
    assert main(["draw", MODEL, str(hostile), "--ratio", "0.3", "--rounds", "0", "--page", str(out)]) == 0
    page = visit(out)
    assert page.get_by_text(hostile.name).count() >= 1
    assert page.evaluate("window.hit") is None and page.locator("img[src=x]").count() == 0
