"""Two processes measure what one does, and the main one alone prints and writes."""

import json
import subprocess
import sys

import pytest

from mtrkit.cli.main import main
from mtrkit.measure import evaluation
from mtrkit.measure.processes import Processes
from tests.cli.conftest import MODEL
from tests.helpers.running import HOME, environment

LAUNCH = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "mtrkit")
CHANGES = ("images_per_second", "milliseconds", "quartiles", "speedup", "speedup_quartiles", "time", "command")


def two(*arguments, launch=LAUNCH):
    """What two processes print that run a command together."""
    settings = environment(OMP_NUM_THREADS="1", CUDA_VISIBLE_DEVICES="")
    command = [sys.executable, *map(str, (*launch, *arguments)), "--device", "cpu", "--threads", "1"]
    # Not in the checkout: `python -m` would take its mtrkit before the one that the tests import.
    done = subprocess.run(command, cwd=HOME, env=settings, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    return done.stdout


def one(*arguments):
    """The same command in this process."""
    assert main([*map(str, arguments), "--device", "cpu", "--threads", "1"]) == 0


def rows_of(file):
    """Rows without what differs from run to run, and whole."""
    rows = json.loads(file.read_text())
    return [{k: v for k, v in row.items() if k not in CHANGES} for row in rows], rows


def test_eval_gives_the_rows_of_one_process_and_goes_on(tmp_path, monkeypatch):
    command = ("eval", MODEL, "--data", "bundled", "--limit", 21, "--batch-size", 4, "--rounds", 1)
    shared, alone = tmp_path / "shared.json", tmp_path / "alone.json"
    one(*command, "--ratio", 0.3, "--out", shared)
    begun = json.loads(shared.read_text())
    printed = two(*command, "--ratio", 0, 0.3, 0.2, "--out", shared)
    one(*command, "--ratio", 0, 0.3, 0.2, "--out", alone)
    (rows, whole), (expected, _) = rows_of(shared), rows_of(alone)
    assert whole[0] == begun[0] and sorted(rows, key=str) == sorted(expected, key=str) and len(rows) == 3
    assert all(row["images_per_second"] > 0 for row in whole)
    assert printed.count("3 configurations are in") == 1 == printed.count("21 images from")
    monkeypatch.setattr(evaluation, "predict", None)  # one process finds all rows of two
    one(*command, "--ratio", 0, 0.3, 0.2, "--out", shared)


def test_compare_gives_the_paired_differences_of_one_process(tmp_path):
    command = ("compare", "--model", MODEL, "--data", "bundled", "--limit", 51, "--batch-size", 16, "--rounds", 0)
    command += ("--method", "mtr", "random", "--ratio", 0.4)
    tables = []
    for call, name in ((two, "two.md"), (one, "one.md")):
        call(*command, "--table", tmp_path / name, "--out", tmp_path / f"{name}.json")
        tables.append([line for line in (tmp_path / name).read_text().splitlines() if line.startswith("|")])
    assert tables[0] == tables[1] and len(tables[0]) == 5
    rows = [rows_of(tmp_path / f"{name}.json")[0] for name in ("two.md", "one.md")]
    assert rows[0] == rows[1]


SLOW_TO_WRITE = """
import sys, time
from mtrkit.cli.main import main
from mtrkit.patch import Calibration
save = Calibration.save
Calibration.save = lambda self, path: (time.sleep(3), save(self, path))
end = sys.argv.index("then")
assert main([*sys.argv[1:end], "--device", "cpu", "--threads", "1"]) == 0
assert main(sys.argv[end + 1 :]) == 0
"""


def test_calibrate_writes_the_bits_of_one_process_and_the_next_command_finds_them(tmp_path):
    command = ("calibrate", MODEL, "--data", "bundled", "--limit", 20, "--ratio", 0.4, "--batch-size", 3)
    shared, alone = tmp_path / "two.safetensors", tmp_path / "one.safetensors"
    after = ("eval", MODEL, "--data", "bundled", "--limit", 5, "--ratio", 0, "--rounds", 0, "--calibration", shared)
    program = tmp_path / "program.py"
    program.write_text(SLOW_TO_WRITE)
    printed = two(*command, "--out", shared, "then", *after, launch=(*LAUNCH[:-2], program))
    one(*command, "--out", alone)
    assert shared.read_bytes() == alone.read_bytes()
    assert printed.count("saved: ") == 1 == printed.count("runs, calibrated")


def test_one_process_needs_no_accelerate(mtrkit_run, monkeypatch):
    monkeypatch.setitem(sys.modules, "accelerate", None)  # to import it fails
    few = ("eval", MODEL, "--data", "bundled", "--limit", 5, "--rounds", 0, "--ratio", 0)
    assert mtrkit_run(*few).code == 0
    monkeypatch.setenv("WORLD_SIZE", "2")
    ran = mtrkit_run(*few)
    assert ran.code == 2 and "pip install 'mtrkit[train]'" in ran.err


def test_one_gpu_for_all_is_refused(mtrkit_run, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    ran = mtrkit_run("eval", MODEL, "--data", "bundled", "--device", "cuda:1")
    assert ran.code == 2 and "cannot share cuda:1" in ran.err


class Together:
    """Processes that run one after another, each seeing what all gather: enough to test how work is dealt out."""

    def __init__(self, count):
        self.count, self.calls = count, []

    def results(self, work, do):
        done = [[do(piece) for piece in work[index :: self.count]] for index in range(self.count)]
        found = []
        for index in range(self.count):
            process = Fake(index, self.count, done)
            found.append(list(process.deal(work, lambda piece: do(piece))))
        return found


class Fake(Processes):
    """One of them."""

    def __init__(self, index, count, done):
        super().__init__(index, count)
        object.__setattr__(self, "turns", iter(range(len(done[0]))))
        object.__setattr__(self, "done", done)

    def gather(self, value):
        turn = next(self.turns)
        return [done[turn] if turn < len(done) else None for done in self.done]


@pytest.mark.parametrize("count", [1, 2, 3, 5])
@pytest.mark.parametrize("length", [0, 1, 5, 6])
def test_work_comes_back_in_order(count, length):
    work = list(range(length))
    assert Together(count).results(work, lambda n: 10 * n) == [[10 * n for n in work]] * count
