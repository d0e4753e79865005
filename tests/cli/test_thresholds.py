"""--threshold measures what apply_reduction(threshold=) does on the same batches."""

import json

import pytest
import torch

import mtrkit
from mtrkit.data import bundled_images
from mtrkit.measure import preprocess_for
from mtrkit.measure.evaluation import right_images
from mtrkit.measure.processes import Processes
from tests.cli.conftest import MODEL

FEW = ("--data", "bundled", "--limit", 20, "--rounds", 0, "--method", "runs", "--threshold", "0.9", "0.95,0.9,0.85")


def plainly(threshold, batch_size):
    """Which of 20 images are right, and the mean FLOPs, by a loop of one's own."""
    images, labels, _ = bundled_images()
    model = mtrkit.apply_reduction(mtrkit.create_model(MODEL, "pretrained"), "runs", threshold=threshold)
    x = torch.stack([preprocess_for(model.pretrained_cfg).tensor(image) for image in images[::50]])
    with torch.inference_mode():
        answers = torch.cat([model(batch).argmax(1) for batch in x.split(batch_size)])
    return answers == torch.tensor(labels[::50]), mtrkit.reduction_info(model)


def test_eval_measures_what_the_data_cost(mtrkit_run, tmp_path):
    out = tmp_path / "rows.json"
    ran = mtrkit_run("eval", MODEL, *FEW, "--batch-size", 7, "--out", out)
    assert ran.code == 0, ran.err
    dense, one, each = json.loads(out.read_text())
    assert [row["amount"] for row in (dense, one, each)] == ["0", "threshold=0.9", "threshold=0.95,0.9,0.85"]
    for row, threshold in ((one, 0.9), (each, (0.95, 0.9, 0.85))):
        right, info = plainly(threshold, 7)
        assert torch.equal(right_images(row), right)
        assert row["gflops"] == info.flops_reduced.gflops and tuple(row["tokens"]) == info.tokens
        assert row["ratio"] == row["ratio_reached"] == info.ratio_reached
    assert "threshold=0.9" in ran.out and "ratio, r or threshold" in ran.out
    mtrkit_run("eval", MODEL, *FEW, "--batch-size", 7, "--out", out)
    assert len(json.loads(out.read_text())) == 3
    mtrkit_run("eval", MODEL, *FEW, "--batch-size", 1, "--out", out)  # other batches share other numbers
    assert len(json.loads(out.read_text())) == 5


def test_compare_gives_thresholds_tables_of_their_own(mtrkit_run, tmp_path):
    ran = mtrkit_run("compare", "--model", MODEL, *FEW, "--ratio", 0.3, "--table", tmp_path / "t.md")
    assert ran.code == 0, ran.err
    assert ran.out.index("ratio 0.3") < ran.out.index("threshold=0.9") < ran.out.index("threshold=0.95,0.9,0.85")
    assert "| threshold=0.9: top-1 %, difference from runs |" in (tmp_path / "t.md").read_text()


def test_bench_counts_every_batch_for_itself(mtrkit_run, photos, tmp_path):
    photo, out = next(photos.glob("ship/*.png")), tmp_path / "bench.json"
    quick = ("--rounds", 1, "--seconds", 0, "--checkpoint", "pretrained", "--input", photo)
    ran = mtrkit_run("bench", MODEL, *quick, "--method", "runs", "--threshold", 0.9, "--batch-size", 1, 3, "--out", out)
    assert ran.code == 0, ran.err
    rows = [row for row in json.loads(out.read_text()) if row["amount"] == "threshold=0.9"]
    assert [row["batch_size"] for row in rows] == [1, 3]
    assert rows[0]["gflops"] == rows[1]["gflops"] < json.loads(out.read_text())[0]["gflops"]
    assert "ratio reached" in ran.out


def test_info_tells_the_least_and_with_an_input_what_it_was(mtrkit_run, photos):
    command = ("info", MODEL, "--checkpoint", "pretrained", "--method", "runs", "--threshold", 0.9)
    assert "the least possible, as none has run yet" in mtrkit_run(*command).out
    ran = mtrkit_run(*command, "--input", next(photos.glob("ship/*.png")))
    assert ran.code == 0 and "the mean of 1 samples" in ran.out


def test_r_and_thresholds_stand_alone_without_a_ratio(mtrkit_run, tmp_path):
    out = tmp_path / "rows.json"
    few = ("--data", "bundled", "--limit", 5, "--rounds", 0, "--out", out)
    assert mtrkit_run("eval", MODEL, *few, "--r", 5).code == 0
    assert [row["amount"] for row in json.loads(out.read_text())] == ["0", "r=5"]


def test_several_processes_are_refused(mtrkit_run, monkeypatch):
    from contextlib import contextmanager

    @contextmanager
    def two(device):
        yield Processes(0, 2)

    monkeypatch.setattr("mtrkit.cli.evaluate.joined", two)
    ran = mtrkit_run("eval", MODEL, *FEW, "--ratio", 0.3, "--checkpoint", "pretrained")
    assert ran.code == 2 and "with a threshold the images of a batch share" in ran.err


@pytest.mark.parametrize("given", ["-0.5", "-0.5,-0.4,-0.3"])
def test_negative_thresholds_of_distances(mtrkit_run, given):
    command = ("info", MODEL, "--method", "rmeeto", "--option", "similarity=l2", f"--threshold={given}", "--json")
    ran = mtrkit_run(*command)
    expected = [float(value) for value in given.split(",")]
    assert ran.code == 0 and json.loads(ran.out)["thresholds"] == expected * (3 if len(expected) == 1 else 1)
