"""The commands that redo the papers' tables run, on the bundled model and a few images."""

import dataclasses
import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import mtrkit
from mtrkit.data import bundled_images
from mtrkit.models import load_checkpoint
from mtrkit.models.registry import MODELS
from mtrkit.models.variants import BUNDLED, Release
from tests.helpers.registries import as_before

ROOT = Path(__file__).parents[1]
MODEL = "vim_micro_patch4_32"


@pytest.fixture(autouse=True)
def _forget():
    """A benchmark may register a method of its own."""
    with as_before(lambda _, file: Path(file).parent == ROOT / "benchmarks"):
        yield


@pytest.fixture
def run(monkeypatch, tmp_path, photos):
    """Call the main function of a benchmark script in an empty folder."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    monkeypatch.chdir(tmp_path)

    def call(script, *arguments):
        module = importlib.import_module(script)
        monkeypatch.setattr(sys, "argv", [script, "--data", str(photos), *arguments])
        return module.main()

    return call


def test_laboratory_writes_rows_and_tables(run, tmp_path):
    shared = ("mtr_operation", "mtr_indicator")
    assert run("laboratory", "--model", MODEL, "--only", *shared, "--limit", "10") == 0
    rows = json.loads((tmp_path / f"benchmarks/results/laboratory/{MODEL}/ablations.json").read_text())
    assert len(rows) == 1 + 3 * (2 + 5) and {row["n"] for row in rows} == {10}  # dense and mtr are in both
    table = (tmp_path / f"docs/laboratory/{MODEL}/mtr_operation.md").read_text()
    assert "| mtr:operation=prune |" in table and "mtrkit compare" in table and "mtr_operation.md" in table


def test_laboratory_measures_the_methods_of_every_model(run, monkeypatch, tmp_path):
    laboratory = pytest.importorskip("laboratory", exc_type=ImportError)
    few = dataclasses.replace(laboratory.METHODS, methods=("mtr", "random"), ratios=(0.2,))
    monkeypatch.setattr(laboratory, "METHODS", few)
    monkeypatch.setattr(laboratory, "TABLES", (few,))
    nano = "vim_nano_patch4_stride2_32"
    save_file(mtrkit.create_model(nano).state_dict(), tmp_path / "nano.safetensors")
    given = (MODEL, f"{nano}={tmp_path / 'nano.safetensors'}")
    assert run("laboratory", "--model", *given, "--only", "methods", "--limit", "4", "--main-limit", "6") == 0
    found = [tmp_path / f"benchmarks/results/laboratory/{model}/methods.json" for model in (MODEL, nano)]
    counts = [json.loads(file.read_text()) for file in found]
    assert [len(rows) for rows in counts] == [4, 3] and [rows[0]["n"] for rows in counts] == [6, 4]
    plot = (tmp_path / f"docs/laboratory/{MODEL}/speed.svg").read_text()
    assert nano in plot


def test_laboratory_tunes_on_other_images(run, tmp_path, photos):
    chosen = ("--only", "mtr_layers", "mtr_operation", "--limit", "4", "--tuning-limit", "2")
    chosen += ("--tuning-data", str(photos))
    assert run("laboratory", "--model", MODEL, *chosen) == 0
    folder = tmp_path / "docs/laboratory" / MODEL
    assert {file.name for file in folder.glob("*.md")} == {"mtr_layers.md", "mtr_operation.md"}
    assert [file.name for file in (folder / "tuning").iterdir()] == ["mtr_layers.md"]


def test_laboratory_draws(run, tmp_path):
    assert run("laboratory", "--model", MODEL, "--only", "tokens") == 0
    assert (tmp_path / f"docs/laboratory/{MODEL}/tokens.webp").stat().st_size > 10_000


def test_plots_are_drawn_from_rows_alone(run, tmp_path, monkeypatch):
    """As they lie in the repository; what is timed has a second plot."""
    monkeypatch.setattr("mtrkit.measure.evaluation.predict", lambda *_, **__: pytest.fail("measured"))
    for model in ("vim_micro_patch4_stride2_32", "vim_nano_patch4_stride2_32"):
        rows = tmp_path / "benchmarks/results/runs" / model / "compare.json"
        rows.parent.mkdir(parents=True)
        rows.write_bytes((ROOT / "benchmarks/results/runs" / model / "compare.json").read_bytes())
        (tmp_path / "docs/laboratory" / model).mkdir(parents=True)
    run("plots")
    made = {str(file.relative_to(tmp_path / "docs/laboratory")) for file in tmp_path.glob("docs/laboratory/*/*.png")}
    assert made == {
        "vim_micro_patch4_stride2_32/runs.png",
        "vim_micro_patch4_stride2_32/runs_speed.png",
        "vim_nano_patch4_stride2_32/runs.png",
    }


def test_laboratory_drops_every_token_alone(run, tmp_path):
    assert run("laboratory", "--model", MODEL, "--only", "leave_one_out", "--limit", "50") == 0
    file = tmp_path / f"benchmarks/results/laboratory/{MODEL}/leave_one_out.json"
    rows = json.loads(file.read_text())
    assert {row["layer"] for row in rows} == {3, 6, 9} and len(rows) == 3 * 7 and {row["n"] for row in rows} == {2}
    assert all(-1 < value < 1 for row in rows for value in row["values"])
    written = file.stat().st_mtime_ns
    assert run("laboratory", "--model", MODEL, "--only", "leave_one_out") == 0 and file.stat().st_mtime_ns == written


def test_imagenet_stands_beside_what_is_published(run, monkeypatch, capsys):
    tables = pytest.importorskip("tables", exc_type=ImportError)
    imagenet = importlib.import_module("imagenet")
    table = next(table for table in tables.TABLES if table.name == "mtr_operation")
    published = tables.Published(74.1, {"mtr": (66.9, 61.4, None)})
    small = tables.Table(table.name, table.title, table.methods, published={MODEL: published})
    monkeypatch.setattr(imagenet, "TABLES", (small,))
    monkeypatch.setattr(imagenet, "OFFICIAL", {MODEL: Release("", BUNDLED[MODEL].name, 74.1)})
    run("imagenet", "--weights", str(BUNDLED[MODEL].parent), "--limit", "10")
    printed = capsys.readouterr().out
    assert "(66.9)" in printed and "(61.4)" in printed and "(None)" not in printed


def test_what_needs_a_gpu_is_tried_without_one(tmp_path):
    """A dry run of benchmarks/on_gpu.sh: every part leaves its file; one that fails is said, and the rest goes on."""
    (tmp_path / "throughput.part").mkdir()  # where that part writes: it fails
    environment = os.environ | {"PYTHON": sys.executable, "CUDA_VISIBLE_DEVICES": ""}
    script = ["bash", ROOT / "benchmarks" / "on_gpu.sh", tmp_path]
    done = subprocess.run(script, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 1 and "throughput: 0 rows" in done.stdout and "FAILED" in done.stdout, done.stderr
    (tmp_path / "throughput.part").rmdir()
    again = subprocess.run([*script, "--part", "throughput"], env=environment, check=False)
    assert again.returncode == 0
    reports = {file.stem: json.loads(file.read_text()) for file in tmp_path.glob("*.json")}
    parts = {"kernels", "modes", "throughput", "training", "profile", "tiles"}
    assert reports.keys() == {"environment", "tests", "parity", "models"} | parts
    for report in reports.values():
        assert report["dry_run"] and report["machine"]["commit"] and report["rows"] and "failed" not in report
    calls = {row["call"]: row["microseconds"] for row in reports["kernels"]["rows"]}
    assert {"scan", "scan, gradients", "convolution, gradients", "sum and norm", "match", "merge"} < calls.keys()
    assert all("native" in timings for timings in calls.values())
    assert {row["mode"] for row in reports["modes"]["rows"]} == {"eager"}
    assert all(row.get("good") or row.get("reason") for row in reports["parity"]["rows"])
    assert all(row["error"] < 1e-5 for row in reports["models"]["rows"])
    assert {row["method"] for row in reports["throughput"]["rows"]} == {"dense", "mtr", "runs", "rmeeto"}
    assert {row["method"] for row in reports["training"]["rows"]} == {"dense", "mtr", "runs"}


@pytest.fixture
def videos(tmp_path):
    """Two short videos of noise in a list, as Kinetics comes."""
    av = pytest.importorskip("av", reason="videos need PyAV")
    for name in ("a", "b"):
        with av.open(str(tmp_path / f"{name}.mp4"), "w") as container:
            stream = container.add_stream("mpeg4", rate=10)
            stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
            for _ in range(12):
                noise = (255 * torch.rand(48, 64, 3)).byte().numpy()
                container.mux(stream.encode(av.VideoFrame.from_ndarray(noise, format="rgb24")))
            container.mux(stream.encode())
    (tmp_path / "val.csv").write_text("a.mp4 0\nb.mp4 1\n")
    return tmp_path / "val.csv"


@pytest.mark.parametrize(
    ("script", "given", "expected"),
    [
        ("throughput", ["--models", MODEL, "deit_tiny_patch16_224", "--method", "mtr", "--batch-size", "1"], 4),
        ("reduction_cost", ["--model", MODEL, "--method", "mtr", "--r", "4", "--layers", "2", "--batch-size", "1"], 1),
        ("scaling", ["--model", MODEL, "--method", "mtr", "--size", "32", "48"], 6),
    ],
)
def test_speed_is_written_with_its_conditions(monkeypatch, tmp_path, script, given, expected):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    module = importlib.import_module(script)
    monkeypatch.setattr(module, "RESULTS", tmp_path)
    ratio = {"throughput": ["--ratio", "0.3", "--seconds", "0"], "scaling": ["--ratio", "0.3"]}.get(script, [])
    name = "found" if script == "throughput" else "found.json"
    monkeypatch.setattr(sys, "argv", [script, *given, *ratio, "--rounds", "1", "--device", "cpu", "--out", name])
    assert module.main() == 0
    found = json.loads((tmp_path / "found.json").read_text())
    assert len(found["rows"]) == expected and {"commit", "torch", "command"} <= found["conditions"].keys()
    assert script != "throughput" or (tmp_path / "found.csv").read_text().startswith("model,infer_samples_per_sec")


def test_where_the_time_goes_is_told_by_parts(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    module = importlib.import_module("where_time_goes")
    for name, value in {"RESULTS": tmp_path, "LARGE": 32, "COPIED": 1024, "TOKENS": (1, 5)}.items():
        monkeypatch.setattr(module, name, value)
    given = ["--model", MODEL, "--ratio", "0.2", "--batch-size", "1", "--rounds", "1", "--out", "out.json"]
    monkeypatch.setattr(sys, "argv", ["where_time_goes.py", *given])
    assert module.main() == 0
    found = json.loads((tmp_path / "out.json").read_text())
    assert [row["ratio"] for row in found["passes"]] == [0, 0.2]
    assert all(0 < row["ms_in_library"] < row["ms"] and row["calls"] for row in found["passes"])
    assert [row["tokens"] for row in found["blocks"]] == [1, 5]
    assert {"products", "scan", "packing of weights"} < found["kernels"][0].keys() < found["kernels"][1].keys()


def test_the_scan_is_timed_beside_the_reference(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    module = importlib.import_module("scan")
    monkeypatch.setattr(module, "RESULTS", tmp_path)
    monkeypatch.setattr(module, "VIM", MODEL)
    given = ["--batch", "1", "--train-batch", "1", "--rounds", "1", "--out", "out.json"]
    monkeypatch.setattr(sys, "argv", ["scan.py", *given])
    module.main()
    found = json.loads((tmp_path / "out.json").read_text())
    assert len(found["images_per_second"]) == 5 and found["ratios"].keys() == found["bars"].keys()
    with mtrkit.use_scan_backend("materialised"), torch.no_grad():
        model, images = mtrkit.create_model(MODEL, "pretrained").eval(), torch.randn(2, 3, 32, 32)
        slow = model(images)
    with torch.no_grad():
        torch.testing.assert_close(model(images), slow, rtol=1e-3, atol=1e-4)


def test_kinetics_stands_beside_what_is_published(monkeypatch, tmp_path, videos, capsys):
    """On a small model under the name of a published one, through every step of the script."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    kinetics = importlib.import_module("kinetics")
    model, sizes = next(iter(kinetics.KINETICS.published)), {"img_size": 32, "patch_size": 4, "embed_dim": 32}

    weights = tmp_path / "weights" / "videomamba_t16_k400_f8_res224.pth"
    weights.parent.mkdir()
    weights.touch()

    def load(small, checkpoint, name, **how):
        assert (name, Path(checkpoint)) == (model, weights)
        return small

    monkeypatch.setitem(
        MODELS._entries, model, lambda: mtrkit.models.VideoMamba(num_frames=8, depth=8, num_classes=2, **sizes)
    )
    monkeypatch.setattr("mtrkit.cli.loading.load_weights", load)
    command = ["kinetics", "--data", str(videos), "--weights", str(weights.parent), "--out", str(tmp_path / "out")]
    command += ["--model", model, "--r", "8", "88", "--beside", "runs:layers=even", "--device", "cpu"]
    monkeypatch.setattr(sys, "argv", command)
    kinetics.main()
    rows = json.loads((tmp_path / f"out/kinetics_{model}.json").read_text())
    assert [(row["method"], row["amount"]) for row in rows] == [
        ("dense", "0"),
        ("rmeeto:layers=even", "r=8"),
        ("rmeeto:layers=even", "r=88"),
        ("runs:layers=even", "r=8"),
        ("runs:layers=even", "r=88"),
    ]
    assert {(row["n"], row["views"]) for row in rows} == {(2, 12)}
    assert sorted(set(rows[2]["tokens"])) == [513 - 3 * 88, 513 - 2 * 88, 513 - 88, 513]
    printed = capsys.readouterr().out
    for figure in ("(76.89)", "(76.94)", "(75.45)", "(75.4, re-trained 76.5)", "(9.49)", "| runs:layers=even |"):
        assert figure in printed
    assert "(76.95)" not in printed


def test_every_method_of_the_tables_exists(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    from mtrkit.cli.parsing import method
    from mtrkit.methods import METHODS

    tables = importlib.import_module("tables")
    for table in (*tables.TABLES, tables.KINETICS):
        for choice in map(method, table.methods):
            METHODS.get(choice.name).configure({k: v for k, v in choice.options.items() if k != "layers"})
        for published in table.published.values():
            amounts = len(table.removals or table.ratios)
            assert set(published.reduced) <= set(table.methods)
            assert all(len(figures) == amounts for figures in published.reduced.values())


def test_imagenet_calibrates(run, monkeypatch, capsys, photos):
    tables = pytest.importorskip("tables", exc_type=ImportError)
    imagenet = importlib.import_module("imagenet")
    published = {MODEL: tables.Published(74.1, {})}
    small = tables.Table("time", "", ("runs",), ratios=(0.4,), calibrated=True, published=published)
    monkeypatch.setattr(imagenet, "TABLES", (small,))
    monkeypatch.setattr(imagenet, "OFFICIAL", {MODEL: Release("", BUNDLED[MODEL].name, 74.1)})
    run("imagenet", "--weights", str(BUNDLED[MODEL].parent), "--limit", "10", "--tuning-data", str(photos))
    assert "| runs, calibrated |" in capsys.readouterr().out


def test_runs_are_calibrated_and_compared(run, monkeypatch, tmp_path, photos):
    monkeypatch.setattr(importlib.import_module("runs"), "RATIOS", (0.4,))
    assert run("runs", "--model", MODEL, "--tuning-data", str(photos), "--limit", "10") == 0
    rows = json.loads((tmp_path / f"benchmarks/results/runs/{MODEL}/compare.json").read_text())
    assert [row["method"] for row in rows] == ["dense", "runs", "mtr", "runs, calibrated"]
    assert "| runs, calibrated |" in (tmp_path / f"docs/laboratory/{MODEL}/runs.md").read_text()


def test_the_clock_is_drawn(run, tmp_path):
    (tmp_path / "docs").mkdir()
    importlib.import_module("draw_clock").main()
    assert "What the four taps at the end see" in (tmp_path / "docs/clock.svg").read_text()


SMALL = ("--model", MODEL, "--blocks", "2", "5", "8", "11", "--size", "32", "--classes", "2")
BUILT = {"model": MODEL, "blocks": (2, 5, 8, 11), "size": 32, "classes": 2, "device": "cpu"}
SMALL += ("--batch-size", "2", "--lr", "2e-3", "--workers", "0")


@pytest.fixture
def scenes(run, tmp_path):
    """A data set in ADE20K's folders: two photographs side by side, their bright pixels 2, others 1, an edge 0."""
    pytest.importorskip("transformers.models.upernet", exc_type=ImportError)
    images = bundled_images()[0]
    for part, first, count in (("training", 0, 4), ("validation", 500, 2)):
        folders = [tmp_path / "ade" / kind / part for kind in ("images", "annotations")]
        for folder in folders:
            folder.mkdir(parents=True)
        for index in range(first, first + 2 * count, 2):
            pixels = np.concatenate([images[index], images[index + 1]], axis=1)[:, :52]
            labels = np.where(pixels.mean(axis=2) > 128, 2, 1).astype(np.uint8)
            labels[:2] = 0
            Image.fromarray(pixels).save(folders[0] / f"{index}.jpg", quality=95)
            Image.fromarray(labels).save(folders[1] / f"{index}.png")
    return tmp_path / "ade"


@pytest.fixture
def segmentor(scenes):
    """The small model of these tests, with random heads."""
    return importlib.import_module("upernet").Segmentor(MODEL, 2, 32, (2, 5, 8, 11)).eval()


def test_ade20k_is_trained_measured_and_gone_on_with(run, monkeypatch, tmp_path, scenes):
    training = importlib.import_module("train_upernet")
    advance, losses = training.advance, []

    def watched(*given):
        if len(losses) == 3:
            losses.append(None)
            raise KeyboardInterrupt
        losses.append(advance(*given))
        return losses[-1]

    reduced = ("--method", "mtr", "--ratio", "0.3")
    start = (*SMALL, "--data", str(scenes), "--init", "pretrained", "--train", "8", *reduced)
    monkeypatch.setattr(training, "advance", watched)
    with pytest.raises(KeyboardInterrupt):
        run("ade20k", *start, "--save-every", "2", "--out", "broken")  # the third step is lost
    run("ade20k", *start, "--out", "broken")
    del losses[2:4]
    assert losses[-1] < 0.8 * losses[0]
    monkeypatch.setattr(training, "advance", advance)
    run("ade20k", *start, "--out", "whole")
    files = [next((tmp_path / folder).glob("*.pth")) for folder in ("broken", "whole")]
    once, twice = (torch.load(file, weights_only=True)["state_dict"] for file in files)
    assert all(torch.equal(once[name], twice[name]) for name in twice)
    with pytest.raises(mtrkit.InputError, match=r"another training \(seed: 0 → 1\)"):
        run("ade20k", *start, "--seed", "1", "--out", "whole")

    checkpoint = ("--data", str(scenes), "--checkpoint", str(files[1]), "--out", "whole", *reduced)
    run("ade20k", *SMALL, *checkpoint)
    trained, dense = json.loads((tmp_path / "whole/rows.json").read_text())  # the trained row was there
    assert (trained["method"], trained["trained_steps"], dense["method"]) == ("mtr", 8, "dense")
    assert trained["backbone_gflops"] == pytest.approx(0.7 * dense["backbone_gflops"], rel=0.05)
    assert trained["n"] == 2 and trained["pixels"] == 2 * 30 * 52 and 0.5 < trained["pixel_accuracy"] < 1


def test_ade20k_trains_dyvm(run, monkeypatch, tmp_path, scenes):
    """Every part of the backbone's pruning takes part in the loss, and it is measured with the scans that run."""
    training, losses = importlib.import_module("train_upernet"), []
    advance = training.advance
    monkeypatch.setattr(training, "advance", lambda *given: losses.append(advance(*given)) or losses[-1])
    given = (*SMALL, "--data", str(scenes), "--init", "pretrained", "--dyvm", "0.8", "0.8")
    run("ade20k", *given, "--train", "6", "--out", "out")
    file = next((tmp_path / "out").glob("*.pth"))
    state = torch.load(file, weights_only=True)
    fresh = importlib.import_module("ade20k").build(SimpleNamespace(seed=0, init=None, checkpoint=file, **BUILT))
    mtrkit.apply_reduction(fresh, "dyvm", checkpoint=file.with_suffix(".safetensors"))
    assert losses[-1] < losses[0] and state["step"] == 6
    assert not (state["added"]["block_heads.0.weight"] == 0).all()
    (row,) = json.loads((tmp_path / "out/rows.json").read_text())
    assert row["trained_steps"] == 6 and 0.1 < row["ratio_reached"] < 0.4 and row["n"] == 2
    with pytest.raises(SystemExit):
        run("ade20k", *given, "--out", "out")


def test_miou_is_a_plain_count(run):
    miou = pytest.importorskip("miou", exc_type=ImportError)
    predicted, labels = torch.randint(4, (2, 9, 7))  # of five classes: the last one is nowhere
    labels[labels == 3] = 255  # the fourth is in the predictions only
    pairs = [(p, y) for p, y in zip(predicted.flatten().tolist(), labels.flatten().tolist(), strict=True) if y != 255]
    ious = []
    for c in range(4):
        both, either = sum(p == y == c for p, y in pairs), sum(c in pair for pair in pairs)
        ious.append(both / either)
    counts = miou.confusion(predicted, labels, 5)
    score = miou.Score.of(counts)
    assert counts.dtype == torch.int64 and score.iou == pytest.approx([*ious, None]) and ious[3] == 0
    assert score.miou == pytest.approx(sum(ious) / 4)
    assert score.pixel_accuracy == pytest.approx(sum(p == y for p, y in pairs) / len(pairs))
    with pytest.raises(mtrkit.InputError, match="nothing to measure"):
        miou.Score.of(torch.zeros(5, 5, dtype=torch.int64))


def test_windows_reach_every_pixel_and_are_averaged(run):
    miou = pytest.importorskip("miou", exc_type=ImportError)
    assert (
        miou.starts(512, 512) == [0] and miou.starts(683, 512) == [0, 171] and miou.starts(1024, 512) == [0, 341, 512]
    )
    image = torch.randn(1, 3, 12, 25)
    seen = []

    def model(window):
        assert window.shape == (1, 3, 12, 12)
        seen.append(window)
        return window + len(seen)

    found = miou.slide(model, image, 12) - image  # windows at 0, 8, 13
    assert torch.allclose(found[0, 0, 0], torch.tensor([1.0] * 8 + [1.5] * 4 + [2] + [2.5] * 7 + [3] * 5), atol=1e-6)
    assert miou.slide(lambda window: window, image[..., :9, :], 12).shape == (1, 3, 9, 25)


def test_segmentor_reads_mixers_on_the_full_grid(segmentor):
    images = torch.randn(2, 3, 32, 32)
    before, sums = (
        segmentor.backbone.model.forward_intermediates(images, blocks, intermediates_only=True)
        for blocks in ((1, 4, 7, 10), (2, 5, 8, 11))
    )
    segmentor.pyramid = torch.nn.ModuleDict({name: torch.nn.Identity() for name in segmentor.pyramid})
    for found, x, y in zip(segmentor.maps(images), before, sums, strict=True):
        assert torch.allclose(found, y - x, atol=1e-5)
    mtrkit.apply_reduction(segmentor, method="mtr", ratio=0.3, layers=(3,))
    outputs = []
    segmentor.backbone.model.layers[5].register_forward_hook(lambda block, given, output: outputs.append(output))
    maps = segmentor.maps(images)
    assert all(x.shape == (2, 96, 8, 8) for x in maps)
    ((hidden, stream),) = outputs
    assert hidden.shape[1] == mtrkit.reduction_info(segmentor).tokens[5] < 64
    for found, tokens, slot in zip(maps[1], hidden, stream.slot, strict=True):
        assert torch.equal(found.flatten(1).T, tokens[slot])


def test_segmentor_loads_files_of_mmsegmentation(segmentor, tmp_path):
    names = {"backbone.model.": "backbone.", "pyramid.": "backbone.", ".classifier.": ".conv_seg.", "batch_norm": "bn"}

    def theirs(name):
        for ours, other in names.items():
            name = name.replace(ours, other)
        return name

    state = {theirs(name): value for name, value in segmentor.state_dict().items()}
    state["backbone.norm_f.weight"] = torch.ones(96)
    for name in (
        "backbone.fpn1.1.running_mean",
        "decode_head.psp_modules.3.1.bn.weight",
        "auxiliary_head.conv_seg.bias",
    ):
        assert name in state
    torch.save({"meta": {"CLASSES": ("wall", "sky")}, "state_dict": state}, tmp_path / "mmseg.pth")
    other = type(segmentor)(MODEL, 2, 32, (2, 5, 8, 11)).eval()
    load_checkpoint(other, tmp_path / "mmseg.pth")
    images = torch.randn(1, 3, 32, 32)
    assert torch.equal(other(images), segmentor(images))
    state["decode_head.more"] = state.pop("decode_head.conv_seg.bias")
    torch.save({"state_dict": state}, tmp_path / "wrong.pth")
    found = r"1 missing \(decode_head.classifier.bias\); 1 unexpected \(decode_head.more\)"
    with pytest.raises(mtrkit.CheckpointError, match=found):
        load_checkpoint(other, tmp_path / "wrong.pth")
    torch.save({"state_dict": state | {"backbone.rope.freqs_cos": torch.ones(64, 96)}}, tmp_path / "rotary.pth")
    with pytest.raises(mtrkit.CheckpointError, match="RoPE"):
        load_checkpoint(other, tmp_path / "rotary.pth")


def test_segmentor_starts_from_a_classifier(segmentor):
    segmentor.start_from(MODEL, "pretrained")
    source, own = mtrkit.create_model(MODEL, "pretrained").state_dict(), segmentor.backbone.model.state_dict()
    positions = source.pop("pos_embed")[0]  # 32 patches, the class token, 32 patches
    assert torch.equal(own.pop("pos_embed")[0], torch.cat([positions[:32], positions[33:]]))
    assert len(own) > 100 and all(torch.equal(source[name], value) for name, value in own.items())


@pytest.mark.parametrize("fault", ["a class too high", "colours", "another size", "no file"])
def test_scenes_name_an_annotation_that_does_not_fit(scenes, fault):
    reading = importlib.import_module("scenes")
    file = scenes / "annotations/validation/500.png"
    pixels = np.full((32, 52) if fault != "another size" else (52, 32), 3 if fault == "a class too high" else 1)
    image = Image.fromarray(pixels.astype(np.uint8))
    image.convert("RGB" if fault == "colours" else "L").save(file)
    if fault == "no file":
        file.unlink()
    with pytest.raises(mtrkit.InputError, match=r"500\.png"):
        reading.Scenes(scenes, "validation", 2)[0]


def test_the_table_of_retraining_is_that_of_its_rows(run, monkeypatch, tmp_path):
    pytest.importorskip("accelerate", exc_type=ImportError)
    retrain = importlib.import_module("retrain")
    monkeypatch.setattr(retrain, "DOCS", tmp_path)
    monkeypatch.chdir(ROOT)
    run("retrain", "--training-data", "none", "--work", str(tmp_path), "--table-only")
    file = "vim_micro_patch4_stride2_32/retrain.md"
    assert (tmp_path / file).read_text() == (ROOT / "docs" / "laboratory" / file).read_text()


def test_so_is_the_table_of_findings(run, monkeypatch, tmp_path):
    pytest.importorskip("accelerate", exc_type=ImportError)
    findings = importlib.import_module("retrain_findings")
    monkeypatch.setattr(findings, "DOCS", tmp_path)
    monkeypatch.setattr(findings, "train", lambda *_: pytest.fail("trains"))
    monkeypatch.chdir(ROOT)
    run("retrain_findings", "--training-data", "none", "--work", str(tmp_path))
    file = "vim_micro_patch4_stride2_32/retrain_findings.md"
    assert (tmp_path / file).read_text() == (ROOT / "docs" / "laboratory" / file).read_text()
