"""``mtrkit eval``: its numbers, and that nothing measured is ever lost or measured twice."""

import csv
import json
import signal

import pytest
import torch

import mtrkit
from mtrkit.data import bundled_images
from mtrkit.measure import evaluation, preprocess_for, wilson_interval
from tests.cli.conftest import MODEL

TINY = ("eval", MODEL, "--data", "bundled", "--limit", 20, "--rounds", 1)


@pytest.fixture
def counted(monkeypatch):
    """Configurations whose accuracy is measured while the test runs."""
    seen, predict = [], evaluation.predict

    def count(model, *args, **kwargs):
        seen.append(mtrkit.reduction_info(model))
        return predict(model, *args, **kwargs)

    monkeypatch.setattr(evaluation, "predict", count)
    return seen


def test_numbers_are_those_of_a_plain_loop(mtrkit_run, tmp_path):
    out = tmp_path / "out.json"
    assert mtrkit_run(*TINY, "--ratio", 0, 0.3, "--batch-size", 7, "--out", out).code == 0
    dense, reduced = json.loads(out.read_text())
    images, labels, _ = bundled_images()
    model = mtrkit.create_model(MODEL, "pretrained")
    x = torch.stack([preprocess_for(model.pretrained_cfg).tensor(image) for image in images[::50]])
    right = int((model(x).argmax(1) == torch.tensor(labels[::50])).sum())
    assert (dense["correct"], dense["n"]) == (right, 20)
    assert (dense["top1_low"], dense["top1_high"]) == wilson_interval(right, 20)
    mtrkit.apply_reduction(model, ratio=0.3)
    assert reduced["correct"] == int((model(x).argmax(1) == torch.tensor(labels[::50])).sum())
    assert reduced["gflops"] == mtrkit.count_flops(model).gflops
    assert reduced["images_per_second"] > 0 and reduced["torch"] == torch.__version__


@pytest.mark.parametrize("suffix", ["json", "csv"])
def test_speed_is_measured_again_if_it_was_measured_otherwise(mtrkit_run, tmp_path, counted, suffix):
    run, file = (*TINY, "--ratio", 0.3, "--out", tmp_path / f"out.{suffix}"), tmp_path / f"out.{suffix}"
    assert mtrkit_run(*run, "--batch-size", 20).code == 0
    before = file.read_text()
    assert mtrkit_run(*run, "--batch-size", 20).code == 0 and file.read_text() == before
    assert mtrkit_run(*run, "--batch-size", 5).code == 0
    (row,) = json.loads(file.read_text()) if suffix == "json" else csv.DictReader(file.read_text().splitlines())
    assert int(row["batch_size"]) == 5 and len(counted) == 1
    assert float(row["images_per_second"]) > 0 and int(row["n"]) == 20


def test_a_method_that_says_how_much_stands_once_and_says_it(mtrkit_run, tmp_path):
    out = tmp_path / "out.json"
    methods = ("rmeeto:r=5", "tome")
    assert mtrkit_run(*TINY[:-2], "--rounds", 0, "--ratio", 0.2, 0.3, "--method", *methods, "--out", out).code == 0
    assert [row["amount"] for row in json.loads(out.read_text())] == ["r=5", "0.2", "0.3"]


@pytest.mark.parametrize("suffix", ["json", "csv"])
def test_a_second_run_measures_only_what_is_new(mtrkit_run, tmp_path, counted, suffix):
    run = (*TINY, "--out", tmp_path / f"out.{suffix}", "--ratio")
    first = mtrkit_run(*run, 0.3)
    again = mtrkit_run(*run, 0.3)
    assert (first.code, again.code, len(counted)) == (0, 0, 1)
    assert again.out == first.out
    assert mtrkit_run(*run, 0.2, 0.3).code == 0
    assert [info.ratio for info in counted] == [0.3, 0.2]
    assert mtrkit_run(*run, 0.3, "--option", "similarity=l2").code == 0
    assert mtrkit_run(*run, 0.3, "--limit", 10).code == 0
    assert len(counted) == 4


def test_csv_rows_stand_alone(mtrkit_run, tmp_path):
    out = tmp_path / "out.csv"
    assert mtrkit_run(*TINY, "--ratio", 0, 0.2, "--out", out).code == 0
    with out.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["method"] for row in rows] == ["dense", "mtr"]
    assert all(row["model"] == MODEL and row["device"] and row["mtrkit"] == mtrkit.__version__ for row in rows)


@pytest.mark.usefixtures("interruptible")
def test_interruption_loses_only_the_running_configuration(mtrkit_run, tmp_path, monkeypatch, counted):
    out, measure = tmp_path / "out.json", evaluation.predict

    def interrupted(model, *args, **kwargs):
        info = mtrkit.reduction_info(model)
        if info is not None and info.ratio == 0.3:
            signal.raise_signal(signal.SIGINT)
        return measure(model, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(evaluation, "predict", interrupted)
        ran = mtrkit_run(*TINY, "--ratio", 0, 0.2, 0.3, 0.4, "--out", out)
    assert ran.code == 130 and "interrupted" in ran.err
    assert "2 configurations" in ran.out
    assert [row["ratio"] for row in json.loads(out.read_text())] == [0, 0.2]
    assert not list(tmp_path.glob("*.part"))
    counted.clear()
    assert mtrkit_run(*TINY, "--ratio", 0, 0.2, 0.3, 0.4, "--out", out).code == 0
    assert [info.ratio for info in counted] == [0.3, 0.4]


def test_a_folder_of_images(mtrkit_run, photos, tmp_path):
    ran = mtrkit_run("eval", MODEL, "--data", photos, "--ratio", 0, "--rounds", 1, "--crop", 0.9, "--workers", 1)
    assert ran.code == 0, ran.err
    assert "n = 20" in ran.out


def test_a_folder_whose_name_is_no_text(mtrkit_run, photos, tmp_path):
    """On Linux a name may be any bytes, which Python writes as lone surrogates."""
    folder, table = tmp_path / "caf\udce9", tmp_path / "table.md"
    try:
        photos.rename(folder)
    except OSError:
        pytest.skip("the file system takes only UTF-8")
    few = ("--data", folder, "--limit", 2, "--rounds", 0, "--ratio", 0.3, "--out", tmp_path / "rows.json")
    for command in (("eval", MODEL), ("compare", "--model", MODEL, "--table", table)):
        ran = mtrkit_run(*command, *few)
        assert ran.code == 0, ran.err
    rows = json.loads((tmp_path / "rows.json").read_text(encoding="utf-8"))
    assert {row["data"] for row in rows} == {str(folder)} and "caf\\udce9" in table.read_text(encoding="utf-8")
    assert json.loads(mtrkit_run("eval", MODEL, *few, "--json").out)["rows"][0]["data"] == str(folder)


@pytest.mark.usefixtures("interruptible")
def test_bench_saves_finished_rounds_on_interruption(mtrkit_run, tmp_path, monkeypatch):
    def rounds(passes, device, **kwargs):
        yield dict.fromkeys(passes, 0.5)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr("mtrkit.cli.bench.interleave", rounds)
    out = tmp_path / "bench.json"
    ran = mtrkit_run("bench", MODEL, "--batch-size", 2, 4, "--ratio", 0.3, "--out", out)
    assert ran.code == 130
    rows = json.loads(out.read_text())
    assert [(row["method"], row["batch_size"], row["rounds"]) for row in rows] == [("dense", 2, 1), ("mtr", 2, 1)]
    assert rows[0]["images_per_second"] == 4
