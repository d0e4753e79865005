"""Rows of an evaluation: what they keep of the answers, and whom they tell how far they are."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import mtrkit
from mtrkit.measure import Precision, open_images, preprocess_for
from mtrkit.measure.candidates import MethodChoice, calibrated_names, candidates
from mtrkit.measure.evaluation import Evaluation, measure, pack_right, right_images
from mtrkit.measure.results import Results

SAVED = Path(__file__).parents[2] / "benchmarks/results/laboratory/vim_micro_patch4_stride2_32/methods.json"


@pytest.mark.parametrize("n", [1, 8, 13])
def test_right_answers_survive_packing(n):
    right = torch.arange(n) % 3 == 0
    assert torch.equal(right_images({"right": pack_right(right), "n": str(n)}), right)  # a CSV file keeps text


def test_rows_of_earlier_commits_can_be_read():
    rows = Results(SAVED).rows
    assert rows and all(int(right_images(row).sum()) == row["correct"] for row in rows)
    assert json.loads(SAVED.read_text()) == rows


def test_progress_names_what_is_measured_and_counts_its_images():
    model = mtrkit.create_model("vim_micro_patch4_32").eval()
    images, preprocess = open_images("bundled").spread(5), preprocess_for(model.pretrained_cfg)
    evaluation = Evaluation("vim", "random", images, preprocess, Precision("float32"), 2, 1, 0, "")
    few = candidates(model, [MethodChoice("mtr", "mtr", {})], [0.3])
    results, counts = Results(None), {}

    def begin(name):
        counts[name] = []
        return counts[name].append

    rows = list(measure(evaluation, model, few, results, progress=begin))
    assert counts == {"dense": [2, 2, 1], "mtr 0.3": [2, 2, 1]}
    counts.clear()
    assert list(measure(evaluation, model, few, results, progress=begin)) == rows and not counts


def test_calibrations_of_one_method_at_one_ratio_have_names_of_their_own():
    found = [
        SimpleNamespace(method="runs", ratio=ratio, digest=digest * 16) for ratio, digest in ((0.3, "a"), (0.3, "b"))
    ]
    assert calibrated_names(found) == ["runs, calibrated (aaaaaa)", "runs, calibrated (bbbbbb)"]
    assert calibrated_names(found[:1]) == ["runs, calibrated"]


@pytest.mark.parametrize("field", ["batch_size", "timed_beside", "device", "threads", "scan_reason"])
def test_a_row_that_was_timed_otherwise_is_timed_again(field):
    """The accuracy stays; a speed by other instructions, on a processor of the same name, stood beside new ones."""
    model = mtrkit.create_model("vim_micro_patch4_32").eval()
    images, preprocess = open_images("bundled").spread(2), preprocess_for(model.pretrained_cfg)
    evaluation = Evaluation("vim", "random", images, preprocess, Precision("float32"), 2, 1, 1, "")
    results, few = Results(None), candidates(model, [MethodChoice("mtr", "mtr", {})], [0.3])[:1]
    (row,) = measure(evaluation, model, few, results)
    results.add(row | {field: "another", "images_per_second": 0.0})
    (again,) = measure(evaluation, model, few, results)
    assert again["images_per_second"] > 0 and again[field] == row[field] and again["right"] == row["right"]
