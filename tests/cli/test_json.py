"""--json prints one object, and docs/command_line.md says what every field of it is."""

import json
import re
from importlib.util import find_spec

import pytest

from mtrkit.cli.main import COMMANDS
from tests.cli.conftest import MODEL
from tests.helpers.running import ROOT

QUICK = {
    "demo": ("demo", "--limit", 10, "--rounds", 1, "--ratio", 0.3),
    "list": ("list",),
    "list methods NAME": ("list", "methods", "tome"),
    "info": ("info", MODEL, "--checkpoint", "pretrained", "--input", "photo.png"),
    "eval": ("eval", MODEL, "--data", "bundled", "--limit", 10, "--ratio", 0, 0.3, "--rounds", 1, "--out", "out.json"),
    "compare": ("compare", "--model", MODEL, "--data", "bundled", "--limit", 10, "--ratio", 0.3, "--rounds", 1)
    + ("--method", "mtr", "runs"),
    "bench": ("bench", MODEL, "--batch-size", 1, "--ratio", 0.3, "--rounds", 1, "--seconds", 0),
    "calibrate": ("calibrate", MODEL, "--data", "bundled", "--limit", 20, "--layers", 1, 4, "--out", "c.safetensors"),
    "finetune": ("finetune", MODEL, "--data", "photos", "--out", "run", "--batch-size", 4, "--dry-run"),
    "draw": ("draw", MODEL, "photo.png", "--method", "mtr", "evit"),
    "doctor": ("doctor",),
}
NEEDS = {"finetune": "accelerate"}
CODE = re.compile("`([^`]+)`")


def documented():
    """Section → field → what is said of it, from the tables of the document."""
    sections, fields = {}, {}
    for line in (ROOT / "docs" / "command_line.md").read_text(encoding="utf-8").splitlines():
        if line.startswith("### "):
            fields = sections.setdefault(line[4:].strip("`"), {})
        elif line.startswith("All of [machine]"):
            fields |= sections["machine"]
        elif line.startswith("| `"):
            names, text = line.strip("| ").split(" | ", 1)
            fields |= dict.fromkeys(CODE.findall(names), text)
    return sections


FIELDS = documented()


def check(found, section):
    """Every field is documented, and every documented field is there, but for those that only some have."""
    fields = FIELDS[section]
    assert set(found) <= set(fields), f"{section}: not in the document: {set(found) - set(fields)}"
    missing = {name for name in set(fields) - set(found) if "only" not in fields[name]}
    assert not missing or section == "list", f"{section}: not printed: {missing}"
    for name, value in found.items():
        group = re.search(r"\[[\w ]+\]\(#([\w-]+)\)", fields[name])
        for entry in value if isinstance(value, list) else [value]:
            if not isinstance(entry, dict) or "by name" in fields[name] or "by step" in fields[name]:
                continue
            if " with `" in fields[name]:
                assert set(entry) <= set(CODE.findall(fields[name])), (section, name)
            elif group:
                check(entry, group[1].replace("-", " "))
            for nested in {"prediction", "dense", "reduced"} & set(entry):
                check(entry[nested], "prediction")


@pytest.fixture
def here(photos, monkeypatch):
    """A folder with a photo, and photos in folders."""
    monkeypatch.chdir(photos.parent)
    (photos.parent / "photo.png").write_bytes(next(photos.glob("cat/*.png")).read_bytes())


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("name", QUICK)
def test_one_object_with_the_fields_that_are_documented(mtrkit_run, name):
    if name in NEEDS and find_spec(NEEDS[name]) is None:
        pytest.skip(f"{NEEDS[name]} is not installed")
    ran = mtrkit_run(*QUICK[name], "--json")
    assert ran.code == 0, ran.err
    check(json.loads(ran.out), name)


def test_every_command_has_fields():
    assert {name.partition(" ")[0] for name in QUICK} == set(COMMANDS) - {"export"}  # tests/export/test_command.py


@pytest.mark.usefixtures("here")
def test_numbers_are_those_of_the_file(mtrkit_run, tmp_path):
    found = json.loads(mtrkit_run(*QUICK["eval"], "--json").out)
    assert found["rows"] == json.loads((tmp_path / "out.json").read_text())


def test_an_error_leaves_standard_output_empty(mtrkit_run):
    ran = mtrkit_run("info", MODEL, "--method", "mrt", "--json")
    assert (ran.code, ran.out) == (2, "") and "Did you mean" in ran.err


def test_what_json_cannot_hold():
    from mtrkit.cli.console import plain

    assert plain({"a": float("nan"), "b": (1, float("inf"))}) == {"a": None, "b": [1, None]}
    assert json.loads(json.dumps(plain("caf\udce9"))) == "caf\udce9"
