"""README is short, its numbers are those of the raw results, its badges are true, and links of pages lead somewhere."""

import importlib
import re

import pytest

from tests.helpers.running import ROOT
from tests.helpers.snippets import pages

LINES = 130

pytestmark = pytest.mark.skipif(not (ROOT / "docs").is_dir(), reason="the pages lie in the repository only")


def test_it_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= LINES


def test_the_two_commands_stand_there():
    lines = [line.partition("#")[0].strip() for line in (ROOT / "README.md").read_text(encoding="utf-8").splitlines()]
    assert "pip install . && mtrkit demo" in lines and 'pip install ".[test]" && pytest' in lines


def test_numbers_are_those_of_the_results(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    tables = importlib.import_module("readme_tables")
    written = {name: (ROOT / name).read_text(encoding="utf-8") for name in tables.PAGES}
    assert {name: tables.filled(text) for name, text in written.items()} == written
    used = {found["name"] for text in written.values() for found in tables.BLOCK.finditer(text)}
    assert used == tables.BLOCKS.keys()


def test_badges_are_true():
    badges = {file.stem: file.read_text(encoding="utf-8") for file in (ROOT / "docs" / "badges").glob("*.svg")}
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert re.search(r'^license = "(.*)"', project, re.M)[1] in badges["license"]
    assert " | ".join(re.findall(r"Python :: (3\.\d+)", project)) in badges["python"]
    assert (ROOT / "mtrkit" / "py.typed").exists() and "disallow_untyped_defs = true" in project and "typed" in badges


@pytest.mark.parametrize("page", pages())
def test_links_of_files_lead_somewhere(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    targets = [target for target in re.findall(r"\]\(([^)\s#]+)[#)]", text) if "://" not in target]
    assert not [target for target in targets if not ((ROOT / page).parent / target).exists()]
