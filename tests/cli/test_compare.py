"""``mtrkit compare``: differences are those of the predictions, every method has its own options, files are written."""

import json

import pytest
import torch

import mtrkit
from mtrkit.cli.parsing import layers, method
from mtrkit.data import bundled_images
from mtrkit.measure import preprocess_for
from mtrkit.measure.evaluation import right_images
from mtrkit.schedule import EveryNth
from mtrkit.vis import data_of
from tests.cli.conftest import MODEL

SMALL = ("compare", "--model", MODEL, "--data", "bundled", "--limit", 40, "--rounds", 0)


def plainly_right(**reduction):
    """Which of the 40 images a model reduced by hand classifies rightly."""
    images, labels, _ = bundled_images()
    model = mtrkit.create_model(MODEL, "pretrained")
    mtrkit.apply_reduction(model, **reduction)
    x = torch.stack([preprocess_for(model.pretrained_cfg).tensor(image) for image in images[::25]])
    with torch.inference_mode():
        return model(x).argmax(1) == torch.tensor(labels[::25])


def test_rows_tell_which_images_were_right(mtrkit_run, tmp_path):
    out, table = tmp_path / "out.json", tmp_path / "table.md"
    methods = ("mtr", "mtr:operation=prune,layers=even", "mtr:indicator=X")
    ran = mtrkit_run(*SMALL, "--method", *methods, "--ratio", 0.4, "--out", out, "--table", table)
    assert ran.code == 0, ran.err
    dense, plain, pruned, x = json.loads(out.read_text())
    assert torch.equal(right_images(plain), plainly_right(ratio=0.4))
    assert torch.equal(
        right_images(pruned), plainly_right(ratio=0.4, method="mtr", operation="prune", layers=EveryNth(2))
    )
    assert torch.equal(right_images(x), plainly_right(ratio=0.4, indicator="X"))
    assert (dense["method"], pruned["layers"], x["layers"]) == ("dense", [2, 4, 6, 8, 10], [3, 6, 9])
    gained = 100 * (right_images(pruned).sum() - right_images(plain).sum()).item() / 40
    line = next(line for line in table.read_text().splitlines() if "operation=prune" in line)
    assert f" {gained:+.1f} (" in line


def test_a_second_run_measures_nothing_again(mtrkit_run, tmp_path, monkeypatch):
    run = (*SMALL, "--ratio", 0, "--r", 5, "--out", tmp_path / "out.csv")
    first = mtrkit_run(*run)
    monkeypatch.setattr("mtrkit.measure.evaluation.predict", lambda *_, **__: pytest.fail("measured again"))
    again = mtrkit_run(*run)
    assert (first.code, first.out) == (again.code, again.out) and "r=5" in first.out


def test_plots_and_a_second_dense_model(mtrkit_run, tmp_path):
    weights = tmp_path / "small.pth"
    torch.save(mtrkit.create_model("vim_nano_patch4_stride2_32").state_dict(), weights)
    plots = [tmp_path / "plot.png", tmp_path / "plot.svg"]
    run = list(SMALL)
    run.insert(3, f"vim_nano_patch4_stride2_32={weights}")
    run[run.index("--rounds") + 1] = 1
    ran = mtrkit_run(*run, "--ratio", 0.3, "--plot", *plots, "--speed-plot", tmp_path / "speed.png")
    assert ran.code == 0, ran.err
    assert "vim_nano_patch4_stride2_32" in ran.out and "ms per batch" in ran.out
    assert "vim_nano_patch4_stride2_32" in plots[1].read_text()
    first = plots[1].read_bytes()
    assert mtrkit_run(*run, "--ratio", 0.3, "--plot", *plots, "--out", tmp_path / "rows.json").code == 0
    dense, reduced, smaller = json.loads((tmp_path / "rows.json").read_text())
    assert {row["timed_beside"] for row in (dense, reduced, smaller)} == {MODEL}
    assert dense["speedup"] == 1 != smaller["speedup"] and reduced["speedup"] > 0
    assert plots[1].read_bytes() == first
    assert plots[0].stat().st_size > 10_000 and (tmp_path / "speed.png").stat().st_size > 10_000


def test_a_page_of_what_was_measured(mtrkit_run, tmp_path):
    page, out = tmp_path / "compare.html", tmp_path / "rows.json"
    ran = mtrkit_run(
        *SMALL, "--method", "mtr", "runs", "--ratio", 0.4, "--page", page, "--out", out, "--title", "A & B"
    )
    assert ran.code == 0, ran.err
    data, rows = data_of(page.read_text(encoding="utf-8")), json.loads(out.read_text())
    assert data["title"] == "A & B" and [one["method"] for one in data["points"]] == ["dense", "mtr", "runs"]
    for one, row in zip(data["points"], rows, strict=True):
        assert (one["top1"], one["gflops"], one["interval"]) == (
            row["top1"],
            row["gflops"],
            [row["top1_low"], row["top1_high"]],
        )
    lost = (right_images(rows[1]).sum() - right_images(rows[0]).sum()).item() / 40
    assert data["points"][1]["difference"]["share"] == pytest.approx(lost) and data["points"][0]["difference"] is None
    assert mtrkit_run(*SMALL, "--page", tmp_path / "page.png").code == 2


def test_the_speed_plot_needs_speeds(mtrkit_run, tmp_path):
    ran = mtrkit_run(*SMALL, "--ratio", 0.4, "--speed-plot", tmp_path / "speed.png")
    assert ran.code == 2 and "--rounds above 0" in ran.err


def test_a_method_may_say_its_layers():
    assert method("rmeeto:metric=delta,layers=2+4").options == {"metric": "delta", "layers": (2, 4)}
    assert layers("odd").layers(6) == (1, 3, 5)
    assert layers("every4").layers(12) == (4, 8)


@pytest.mark.parametrize("wrong", ["mtr:layers=some", "mtr:operation"])
def test_mistakes_in_a_method_are_named(mtrkit_run, wrong):
    ran = mtrkit_run(*SMALL, "--method", wrong)
    assert ran.code == 2 and "expected" in ran.err


def test_a_calibration_is_a_row_of_its_own(mtrkit_run, tmp_path):
    file, out, table = tmp_path / "c.safetensors", tmp_path / "out.json", tmp_path / "table.md"
    fit = ("calibrate", MODEL, "--data", "bundled", "--limit", 40, "--ratio", 0.4, "--layers", 1, 4, 7, "--out", file)
    ran = mtrkit_run(*fit)
    assert ran.code == 0 and "divergence from the dense answers" in ran.out, ran.err
    compared = (*SMALL, "--method", "runs", "--ratio", 0.4, "--calibration", file, "--against", "dense")
    assert mtrkit_run(*compared, "--out", out, "--table", table).code == 0
    dense, _, calibrated = json.loads(out.read_text())
    assert torch.equal(right_images(calibrated), plainly_right(calibration=file))
    lost = 100 * (right_images(calibrated).sum() - right_images(dense).sum()).item() / 40
    line = next(line for line in table.read_text().splitlines() if "| runs, calibrated" in line)
    assert f" {lost:+.1f} (" in line
