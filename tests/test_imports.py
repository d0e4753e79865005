"""Imports point downwards: a part of the package imports only parts on lower floors."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "mtrkit"
FLOORS = {
    "errors": 0,
    "importing": 0,
    "hub": 1,
    "types": 1,
    "plugins": 1,
    "registry": 2,
    "dynamo": 1,
    "data": 1,
    "native": 2,
    "schedule": 2,
    "triton": 3,
    "scan": 4,
    "ops": 5,
    "standin": 5,
    "models": 6,
    "methods": 6,
    "adapters": 6,
    "patch": 7,
    "api": 8,
    "measure": 9,
    "vis": 9,
    "dyvm": 9,
    "exporting": 9,
    "calibration": 10,
    "finetune": 10,
    "cli": 11,
}
MAY_CALL_C = {"native", "triton", "scan", "ops"}  # everyone else asks the last two


WHOLE = "api"  # the package itself stands where its verbs do


def part_of(path):
    """The part a file belongs to: its folder in the package, or its own name."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path):
    """Full names of what a file imports, wherever in the file; those of whole modules end in a dot."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (f"{alias.name}." for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def imported_parts(path):
    """Parts of mtrkit that a file imports, wherever in the file."""
    for name in imported(path):
        if name.startswith("mtrkit."):
            yield name.split(".")[1] or WHOLE


FILES = [path for path in sorted(PACKAGE.rglob("*.py")) if path.parent != PACKAGE or path.stem in FLOORS]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down(path):
    part = part_of(path)
    assert part in FLOORS, f"{part} has no floor yet"
    for other in imported_parts(path):
        allowed = FLOORS[other] < FLOORS[part] or other == part
        assert allowed, f"{part} (floor {FLOORS[part]}) imports {other} (floor {FLOORS[other]})"
        assert other != "native" or part in MAY_CALL_C, f"{part} imports mtrkit.native; ask mtrkit.scan or mtrkit.ops"


def test_benchmarks_use_the_command_line_only_as_a_user_would():
    files = sorted((ROOT / "benchmarks").glob("*.py"))
    of_cli = [(path.name, name) for path in files for name in imported(path) if name.startswith("mtrkit.cli")]
    assert of_cli, "the benchmarks that run commands were not found"
    assert [(file, name) for file, name in of_cli if not f"{name}.".startswith("mtrkit.cli.main.")] == []
