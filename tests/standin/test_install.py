"""Stand-ins come where the real packages do not import, say what they lack, and go without trace."""

import importlib
import importlib.metadata
import importlib.util
import logging
import pickle
import sys

import pytest
import torch

import mtrkit
from mtrkit.scan import dispatch, mamba_ssm
from mtrkit.standin import scan
from mtrkit.standin.mamba import Mamba
from mtrkit.standin.names import EXTENSIONS, MODULES, PACKAGES, TRITON

NAMES = (*EXTENSIONS, *PACKAGES)
pytestmark = pytest.mark.skipif(
    any(importlib.util.find_spec(name) for name in NAMES), reason="the real packages are installed here"
)
FORK = "import selective_scan_cuda as kernels\nfrom mamba_ssm.ops.triton.layer_norm import RMSNorm\n"
NAME = "mamba_ssm.ops.selective_scan_interface"


def import_state():
    """Everything that importing goes by, but for parts of torch and Triton, which come when they are first used."""
    late = ("torch", "triton", "mtrkit.triton")
    prefixes = tuple(f"{name}." for name in late)
    modules = {name: module for name, module in sys.modules.items() if not f"{name}.".startswith(prefixes)}
    found = {path: finder for path, finder in sys.path_importer_cache.items() if finder}
    finders = {path: finder for path, finder in found.items() if not any(name in path for name in late[:2])}
    return modules, list(sys.meta_path), list(sys.path_hooks), finders, list(sys.path)


@pytest.fixture(autouse=True)
def before():
    """Every test leaves importing as it was."""
    state = import_state()
    yield state
    for found, wanted in zip(import_state(), state, strict=True):
        assert found == wanted


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Writes real packages, as files by name, for this test to find."""
    monkeypatch.syspath_prepend(tmp_path)

    def write(files):
        for name, text in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        importlib.invalidate_caches()

    yield write
    for module in [name for name in sys.modules if name.partition(".")[0] in NAMES]:
        del sys.modules[module]
    for path in [path for path in sys.path_importer_cache if path.startswith(str(tmp_path))]:
        del sys.path_importer_cache[path]


@pytest.mark.parametrize("force", [False, True])
def test_block(force, before):
    with mtrkit.as_mamba_ssm(force=force) as stand_ins:
        from mamba_ssm import Mamba as found  # noqa: TID251

        assert found is Mamba and set(stand_ins.reasons) == set(NAMES)
        assert all(name in sys.modules for name in MODULES)
        assert importlib.import_module(NAME).selective_scan_fn is scan.selective_scan_fn
        assert sys.modules["mamba_ssm"].ops.triton.layer_norm.RMSNorm
        assert "mamba_ssm" in repr(stand_ins)
    assert import_state() == before and "removed" in repr(stand_ins)
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("mamba_ssm")


def test_call(before):
    stand_ins = mtrkit.as_mamba_ssm()
    assert stand_ins.reasons["mamba_ssm"] == "it is not installed"
    importlib.import_module(NAME)
    stand_ins.remove()
    assert import_state() == before
    stand_ins.remove()


def test_an_error_inside_undoes_it_too(before):
    with pytest.raises(ZeroDivisionError), mtrkit.as_mamba_ssm():
        raise ZeroDivisionError
    assert import_state() == before


def test_calls_within_calls(before):
    first = mtrkit.as_mamba_ssm()
    module = sys.modules["mamba_ssm"]
    second, third = mtrkit.as_mamba_ssm(), mtrkit.as_mamba_ssm(force=True)
    assert sys.modules["mamba_ssm"] is module
    first.remove()
    third.remove()
    assert sys.modules["mamba_ssm"] is module and "another call" in second.reasons["mamba_ssm"]
    assert importlib.import_module("causal_conv1d").causal_conv1d_fn
    second.remove()
    assert import_state() == before


def test_specs_and_versions():
    with mtrkit.as_mamba_ssm():
        for name in MODULES:
            spec = importlib.util.find_spec(name)
            assert spec.name == name and spec is sys.modules[name].__spec__
        with pytest.raises(importlib.metadata.PackageNotFoundError):
            importlib.metadata.version("mamba_ssm")
        assert sys.modules["mamba_ssm"].__version__.endswith("+mtrkit")
    assert importlib.util.find_spec("mamba_ssm") is None


@pytest.mark.parametrize(
    "missing",
    [
        "mamba_ssm.Mamba2",
        "mamba_ssm.utils.torch",
        "mamba_ssm.modules.mha",
        "mamba_ssm.utils.generation.update_graph_cache",
        "mamba_ssm.modules.mamba2",
        f"{NAME}.selective_scan_with_state",
        "causal_conv1d.causal_conv1d_varlen",
        "selective_scan_cuda.step",
    ],
)
def test_what_is_missing_is_named(missing):
    parent, _, name = missing.rpartition(".")
    with mtrkit.as_mamba_ssm():
        with pytest.raises(mtrkit.StandInError, match=f"mtrkit stands in.* does not have {missing}"):
            exec(f"from {parent} import {name}")
        with pytest.raises(ImportError, match=missing):
            importlib.import_module(missing)
        with pytest.raises(mtrkit.StandInNameError, match=f"mtrkit stands in.* does not have {missing}"):
            getattr(sys.modules[parent], name)
        assert not hasattr(sys.modules[parent], name)


def test_code_imported_meanwhile_is_left_alone(install):
    install({"third_party.py": "from mamba_ssm import Mamba\n"})
    with mtrkit.as_mamba_ssm():
        third_party = importlib.import_module("third_party")
    assert sys.modules.pop("third_party") is third_party
    mixer = pickle.loads(pickle.dumps(third_party.Mamba(8)))
    assert mixer(torch.zeros(1, 3, 8)).shape == (1, 3, 8)


def test_a_fork_runs_its_own_code_over_our_extensions(install, before):
    install(
        {
            "mamba_ssm/__init__.py": FORK,
            "mamba_ssm/ops/__init__.py": "",
            "mamba_ssm/ops/triton/__init__.py": "",
            "mamba_ssm/ops/triton/layer_norm.py": "import triton_of_the_fork\n",
        }
    )
    with mtrkit.as_mamba_ssm() as stand_ins:
        fork = importlib.import_module("mamba_ssm")
        assert fork.__file__ and "mamba_ssm" not in stand_ins.reasons
        assert fork.kernels.fwd is MODULES["selective_scan_cuda"]["fwd"]
        assert fork.RMSNorm is MODULES[TRITON[0]]["RMSNorm"] and set(TRITON) < set(stand_ins.reasons)
    assert "mamba_ssm" not in sys.modules and "mamba_ssm.ops.triton" not in sys.modules
    with pytest.raises(ModuleNotFoundError, match="selective_scan_cuda"):
        importlib.import_module("mamba_ssm")


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
def test_norms_stay_the_own_of_a_fork_where_triton_runs(install, monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    install({"mamba_ssm/__init__.py": "", "mamba_ssm/ops/__init__.py": ""})
    with mtrkit.as_mamba_ssm() as stand_ins:
        assert set(stand_ins.reasons) == {*EXTENSIONS, "causal_conv1d"}


def test_a_broken_installation_is_replaced_and_said(install, caplog):
    install(
        {
            "mamba_ssm/__init__.py": "import mamba_ssm.ops\nimport mamba_ssm.models\n",
            "mamba_ssm/ops/__init__.py": "",
            "mamba_ssm/models/__init__.py": "raise RuntimeError('built for another torch')\n",
        }
    )
    state = set(sys.modules)
    with caplog.at_level(logging.WARNING, logger="mtrkit"), mtrkit.as_mamba_ssm() as stand_ins:
        assert "RuntimeError: built for another torch" in stand_ins.reasons["mamba_ssm"]
        assert importlib.import_module("mamba_ssm").Mamba is Mamba
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert set(sys.modules) == state


def test_what_imports_is_left_alone_unless_forced(install):
    install(
        {
            "selective_scan_cuda.py": "",
            "causal_conv1d_cuda.py": "",
            "causal_conv1d.py": "",
            "mamba_ssm/__init__.py": "",
            "mamba_ssm/ops/__init__.py": "",
            "mamba_ssm/ops/triton/__init__.py": "",
            "mamba_ssm/ops/triton/layer_norm.py": "",
        }
    )
    real = {name: importlib.import_module(name) for name in (*NAMES, TRITON[0])}
    parent = sys.modules["mamba_ssm.ops.triton"]
    with mtrkit.as_mamba_ssm(force=True):
        assert all(sys.modules[name] is not module for name, module in real.items())
        assert importlib.import_module("mamba_ssm").Mamba is Mamba
    assert all(sys.modules[name] is module for name, module in real.items())
    with mtrkit.as_mamba_ssm() as stand_ins:
        assert set(stand_ins.reasons) == set(TRITON)
        assert importlib.import_module(TRITON[0]) is parent.layer_norm is not real[TRITON[0]]
        assert all(sys.modules[name] is real[name] for name in NAMES)
        assert importlib.import_module(TRITON[1]) is parent.layernorm
    assert sys.modules[TRITON[0]] is parent.layer_norm is real[TRITON[0]]
    assert TRITON[1] not in sys.modules and not hasattr(parent, "layernorm")


def test_a_stand_in_is_not_taken_for_the_kernels_of_mamba_ssm():
    for _ in range(2):
        with mtrkit.as_mamba_ssm():
            backend = next(status for status in mtrkit.scan_backends() if status.name == "mamba_ssm")
            assert not backend.available
            mamba_ssm._find.cache_clear()  # as if nobody had looked before
            dispatch._chosen.cache_clear()
    mamba_ssm._find.cache_clear()


def test_a_folder_of_the_name_is_no_package(install, tmp_path):
    install({"mamba_ssm/notes/__init__.py": ""})
    with mtrkit.as_mamba_ssm() as stand_ins:
        assert stand_ins.reasons["mamba_ssm"] == "it is not installed"


@pytest.mark.parametrize("imported", [False, True])
def test_the_plain_wheel_gets_the_extension_that_it_lacks(install, imported):
    """It imports without, and cannot scan then."""
    guarded = "try:\n    import selective_scan_cuda\nexcept ImportError:\n    selective_scan_cuda = None\n"
    install(
        {
            "mamba_ssm/__init__.py": "import mamba_ssm.ops.selective_scan_interface\n",
            "mamba_ssm/ops/__init__.py": "",
            "mamba_ssm/ops/selective_scan_interface.py": guarded,
        }
    )
    mamba_ssm._find.cache_clear()
    without = importlib.import_module(NAME) if imported else None
    with mtrkit.as_mamba_ssm() as stand_ins:
        assert "mamba_ssm" not in stand_ins.reasons
        assert importlib.import_module(NAME).selective_scan_cuda.fwd is MODULES["selective_scan_cuda"]["fwd"]
        assert next(status for status in mtrkit.scan_backends() if status.name == "mamba_ssm").available is False
    assert sys.modules.get(NAME) is without
    mamba_ssm._find.cache_clear()


def test_a_module_that_must_not_be_imported_stays_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "mamba_ssm", None)
    with mtrkit.as_mamba_ssm():
        assert importlib.import_module("mamba_ssm").Mamba is Mamba
    assert sys.modules["mamba_ssm"] is None
    monkeypatch.undo()
