"""The examples in docstrings run and print what they say."""

import doctest
import importlib
import pkgutil

import pytest

import mtrkit

MODULES = ["mtrkit", *(module.name for module in pkgutil.walk_packages(mtrkit.__path__, "mtrkit."))]


NO_MODULES = ("__main__", "_native")  # a script, and a library that Python takes for a module


@pytest.mark.parametrize("name", [name for name in MODULES if not name.endswith(NO_MODULES)])
def test_examples_in_docstrings(name):
    result = doctest.testmod(importlib.import_module(name), optionflags=doctest.NORMALIZE_WHITESPACE)
    assert result.failed == 0
