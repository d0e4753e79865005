"""Methods, families and models of other packages are found by entry points and by --import."""

import sys
import warnings

import pytest

import mtrkit
from mtrkit import plugins
from mtrkit.methods import METHODS
from tests.cli.conftest import MODEL
from tests.helpers.registries import as_before
from tests.helpers.running import ROOT

METHOD = '''
"""A method of somebody else."""

import mtrkit
from mtrkit.methods import METHODS


@mtrkit.register_method("every_other", max_share=0.5, source="nowhere")
def every_other(state, num_kept, config):
    """Do as random does."""
    random = METHODS.get("random")
    return random.decide(state, num_kept, random.configure({}))
'''


@pytest.fixture(autouse=True)
def _forget(monkeypatch):
    """Nothing that a test has registered, imported or looked for is left behind."""
    monkeypatch.setattr(plugins, "_loaded", False)
    with as_before(lambda name, _: name.startswith(("mtrkit_", "extra_"))):
        yield


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Make a package that is installed, with one module and its entry point."""

    def make(text, module="extra_method"):
        (tmp_path / f"{module}.py").write_text(text)
        about = tmp_path / "extra-1.0.dist-info"
        about.mkdir()
        (about / "METADATA").write_text("Metadata-Version: 2.1\nName: extra\nVersion: 1.0\n")
        (about / "entry_points.txt").write_text(f"[mtrkit.plugins]\nextra = {module}\n")
        monkeypatch.syspath_prepend(tmp_path)

    return make


def test_a_method_by_its_entry_point(install, mtrkit_run):
    install(METHOD)
    assert "extra_method" not in sys.modules
    model = mtrkit.create_model(MODEL)
    assert mtrkit.reduction_info(mtrkit.apply_reduction(model, "every_other", ratio=0.3)).method == "every_other"
    assert "every_other" in mtrkit.list_methods()
    ran = mtrkit_run("list", "methods", "every_other")
    assert "Do as random does." in ran.out and "nowhere" in ran.out


def test_known_names_import_no_plugin(install):
    install("raise AssertionError")
    METHODS.get("mtr")
    assert not plugins._loaded


def test_a_plugin_that_fails_is_left_out_with_a_word(install):
    install("import a_package_that_is_not_there")
    with pytest.warns(mtrkit.PluginWarning, match="plug-in extra_method of extra cannot be imported .*not_there"):
        assert "mtr" in mtrkit.list_methods()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mtrkit.list_methods()


def test_a_module_or_file_by_import(mtrkit_run, tmp_path, monkeypatch):
    (tmp_path / "random.py").write_text(METHOD)  # a name that a module of Python has
    ran = mtrkit_run("info", MODEL, "--import", tmp_path / "random.py", "--method", "every_other", "--ratio", 0.3)
    assert ran.code == 0 and ran.out.count("every_other(") == 1, ran.err
    METHODS.remove("every_other")
    (tmp_path / "extra_here.py").write_text(METHOD)
    monkeypatch.chdir(tmp_path)
    ran = mtrkit_run("list", "methods", "every_other", "--import", "extra_here")
    assert ran.code == 0 and "nowhere" in ran.out, ran.err


def test_a_family_and_a_model_by_import(mtrkit_run, tmp_path):
    text = """
from mtrkit.models import VisionMamba, register_model

@register_model
def extra_model(**options):
    "A model of somebody else."
    return VisionMamba(img_size=32, patch_size=4, embed_dim=32, depth=6, num_classes=10)
"""
    (tmp_path / "extra_model.py").write_text(text)
    ran = mtrkit_run("info", "extra_model", "--import", tmp_path / "extra_model.py")
    assert ran.code == 0 and "tokens: 65" in ran.out, ran.err
    assert "extra_model" in mtrkit_run("list", "models").out
    families = mtrkit_run("list", "families", "--import", ROOT / "examples" / "own_family.py")
    assert families.code == 0 and "signal_mamba" in families.out


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("none.py", None, "none.py does not exist"),
        ("no_such_module_anywhere", None, "cannot be imported (ModuleNotFoundError"),
        ("extra_broken.py", "1 / 0", "extra_broken.py cannot be imported (ZeroDivisionError: division by zero)"),
        ("extra_taken.py", METHOD.replace("every_other", "mtr"), "named 'mtr' is registered already"),
    ],
)
def test_what_cannot_be_imported_is_said(mtrkit_run, tmp_path, name, text, message):
    if text is not None:
        (tmp_path / name).write_text(text)
    given = tmp_path / name if name.endswith(".py") else name
    ran = mtrkit_run("list", "methods", "--import", given)
    assert ran.code == 2 and message in ran.err and "Traceback" not in ran.err
