"""Every command is run for real on bundled data, at tiny sizes."""

import json

import pytest
import torch
from PIL import Image

import mtrkit
from mtrkit.cli import bench
from mtrkit.cli.main import COMMANDS
from mtrkit.models import list_models
from tests.cli.conftest import MODEL
from tests.helpers.running import run_python


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_examples(mtrkit_run, command):
    ran = mtrkit_run(command, "--help")
    assert ran.code == 0
    assert f"examples:\n  mtrkit {command}" in ran.out


def test_top_help_lists_commands_and_imports_no_extras():
    script = (
        "import sys; from mtrkit.cli.main import main\n"
        "try: main(['--help'])\n"
        "finally: assert not {'timm', 'PIL', 'rich', 'torchvision'} & set(sys.modules)"
    )
    done = run_python("-c", script)
    assert done.returncode == 0, done.stderr
    assert all(f"  {command}" in done.stdout for command in COMMANDS)


def test_runs_as_a_module():
    done = run_python("-m", "mtrkit", "--version")
    assert (done.returncode, done.stdout) == (0, f"mtrkit {mtrkit.__version__}\n")


def test_list_names_everything(mtrkit_run):
    ran = mtrkit_run("list")
    backends = [status.name for status in mtrkit.scan_backends()]
    assert ran.code == 0
    assert not [
        n for n in [*mtrkit.list_methods(), *mtrkit.list_adapters(), *list_models(), *backends] if n not in ran.out
    ]


def test_doctor_finds_this_machine_well(mtrkit_run):
    ran = mtrkit_run("doctor")
    assert ran.code == 0, ran.out
    assert "right" in ran.out and "WRONG" not in ran.out


def test_doctor_finds_a_wrong_backend(mtrkit_run, monkeypatch):
    monkeypatch.setattr(
        "mtrkit.cli.doctor.check_backend", lambda name, device: mtrkit.measure.Parity(1e-7, float("nan"))
    )
    ran = mtrkit_run("doctor")
    assert ran.code == 1 and "WRONG" in ran.out


def test_info_tells_what_apply_reduction_does(mtrkit_run):
    ran = mtrkit_run("info", MODEL, "--ratio", "0.25", "--option", "similarity=l2", "--layers", "3", "6")
    model = mtrkit.apply_reduction(mtrkit.create_model(MODEL), ratio=0.25, similarity="l2", layers=[3, 6])
    info = mtrkit.reduction_info(model)
    assert ran.code == 0
    assert str(info) in ran.out.replace("\n\n", "\n")
    assert f"65 → {info.tokens[2]} tokens" in ran.out


def test_info_at_another_size(mtrkit_run):
    assert "tokens: 97" in mtrkit_run("info", MODEL, "--input-size", "32x48").out


def test_demo(mtrkit_run, tmp_path):
    picture = tmp_path / "demo.png"
    ran = mtrkit_run("demo", "--limit", 12, "--rounds", 1, "--out", picture)
    assert ran.code == 0, ran.err
    assert all(f"\n{ratio} " in ran.out for ratio in ("dense", "0.2", "0.3", "0.4"))
    assert "n = 12" in ran.out and str(picture) in ran.out
    with Image.open(picture) as image:
        assert min(image.size) > 500


def test_bench_writes_everything(mtrkit_run, tmp_path):
    out = tmp_path / "bench.json"
    arguments = ("bench", MODEL, "--batch-size", 1, 3, "--ratio", 0, 0.3, "--rounds", 2, "--seconds", 0, "--out", out)
    ran = mtrkit_run(*arguments)
    assert ran.code == 0, ran.err
    assert "random weights" in ran.out and "torch" in ran.out and "by FLOPs" in ran.out
    rows = json.loads(out.read_text())
    assert [(row["batch_size"], row["method"]) for row in rows] == [(1, "dense"), (1, "mtr"), (3, "dense"), (3, "mtr")]
    assert all(row["rounds"] == 2 and row["images_per_second"] > 0 and row["command"] for row in rows)
    assert rows[0]["speedup"] == 1 and rows[1]["promised_speedup"] == pytest.approx(1.43, abs=0.02)
    assert rows[1]["share"] == pytest.approx(rows[1]["speedup"] / rows[1]["promised_speedup"])


def test_bench_says_from_which_amount_on_a_method_pays():
    def row(method, ratio, speedup):
        return {"method": method, "amount": f"{ratio:g}", "ratio_reached": ratio, "speedup": speedup, "batch_size": 1}

    rows = [row("dense", 0, 1.0), row("mtr", 0.3, 1.2), row("mtr", 0.1, 0.9), row("mtr", 0.2, 1.1)]
    rows += [row("runs", 0.1, 1.05), row("evit", 0.1, 0.8), row("evit", 0.2, 0.95)]
    assert bench._what_pays(rows) == [
        "mtr at 0.1 is slower than the dense model; at batch size 1 it pays from 0.2 on",
        "evit at 0.2 is slower than the dense model; at batch size 1 none of the amounts pays",
    ]


def test_bench_in_half_precision(mtrkit_run, tmp_path):
    for dtype in ("bfloat16", "amp-bfloat16"):
        ran = mtrkit_run(
            "bench", MODEL, "--batch-size", 1, "--ratio", 0.3, "--rounds", 1, "--seconds", 0, "--dtype", dtype
        )
        assert ran.code == 0, ran.err


def test_draw(mtrkit_run, photos, tmp_path):
    files = sorted(photos.glob("*/*.png"))[:2]
    for number, extra in enumerate([(), ("--option", "operation=prune"), ("--input-size", "48x32")]):
        out = tmp_path / f"{number}.png"
        ran = mtrkit_run("draw", MODEL, *files, "--ratio", 0.4, "--out", out, *extra)
        assert ran.code == 0, ran.err
        with Image.open(out) as image:
            assert image.width > image.height > 2 * 200


def test_what_a_file_is_of_can_be_said(mtrkit_run, tmp_path):
    file = tmp_path / "videomamba_micro_patch4_32.pth"  # which it is not
    torch.save(mtrkit.create_model(MODEL, "pretrained").state_dict(), file)
    ran = mtrkit_run("info", MODEL, "--checkpoint", file)
    assert ran.code != 0 and "the weights are of VideoMamba" in ran.err and "says its name" in ran.err
    ran = mtrkit_run("info", MODEL, "--checkpoint", file, "--origin", MODEL)
    assert ran.code == 0 and str(file) not in ran.err
    ran = mtrkit_run("info", MODEL, "--checkpoint", file, "--origin", MODEL, "--input-size", "1x48x48")
    assert ran.code == 0 and ran.err.count(f"mtrkit: warning: {file}: ") == 1 and "was adapted to 1" in ran.err
