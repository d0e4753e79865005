"""The pages keep up with the package: its public names, its methods, its messages."""

import ast
import importlib
import re

import pytest

import mtrkit
from mtrkit.methods import METHODS
from tests.helpers.running import ROOT

DOCS = ROOT / "docs"
pytestmark = pytest.mark.skipif(not DOCS.is_dir(), reason="the pages lie in the repository only")


def documented():
    """Every name that the pages of the API show."""
    text = "\n".join(page.read_text(encoding="utf-8") for page in (DOCS / "api").glob("*.md"))
    return set(re.findall(r"^::: (\S+)", text, re.M))


def test_every_public_name_is_in_the_api():
    shown = {name.rpartition(".")[2] for name in documented() if name.startswith("mtrkit.")}
    assert set(mtrkit.__all__) <= shown


def test_the_api_has_no_name_that_is_gone():
    for name in documented():
        module, _, last = name.rpartition(".")
        assert getattr(importlib.import_module(module), last).__doc__, name


def test_every_method_is_described():
    page = (DOCS / "choosing.md").read_text(encoding="utf-8")
    for method in METHODS:
        assert f"| `{method.name}` |" in page
        assert f"mtrkit.methods.{method.name}.{method.config.__name__}" in documented()


def test_messages_in_troubleshooting_are_those_of_the_package():
    page = (DOCS / "troubleshooting.md").read_text(encoding="utf-8").partition("## Messages")[2].partition("\n## ")[0]
    quoted = re.findall(r"^\| `([^`]+)` \|", page, re.M)
    said = [
        node.value
        for file in (ROOT / "mtrkit").rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]
    assert len(quoted) > 10
    assert not [message for message in quoted if not any(message in text for text in said)]
