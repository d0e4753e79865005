"""What a release promises: a library for old systems, names that pip takes, a build without a compiler, one version."""

import importlib
import importlib.metadata
import re
from pathlib import Path

import pytest
import yaml
from packaging.tags import mac_platforms

import mtrkit
from mtrkit.native import library
from tests.helpers.running import ROOT

GLIBC = (2, 17)  # manylinux2014


@pytest.fixture
def build(monkeypatch):
    """The build hook."""
    pytest.importorskip("hatchling")
    monkeypatch.syspath_prepend(ROOT)
    return importlib.import_module("hatch_build")


def test_the_library_loads_on_systems_with_an_old_glibc():
    file = Path(library.__file__).with_name("_native.so")
    if not file.exists():
        pytest.skip("no library for Linux was built here")
    needed = re.findall(rb"\0GLIBC_(\d+)\.(\d+)", file.read_bytes())
    assert needed and max((int(major), int(minor)) for major, minor in needed) <= GLIBC


@pytest.mark.parametrize(
    ("system", "machine", "tag"),
    [
        ("linux-x86_64", "x86_64", "linux_x86_64"),
        ("linux-aarch64", "aarch64", "linux_aarch64"),
        ("win-amd64", "AMD64", "win_amd64"),
        ("macosx-10.13-universal2", "x86_64", "macosx_10_13_x86_64"),
        ("macosx-10.13-universal2", "arm64", "macosx_11_0_arm64"),
        ("macosx-14.0-arm64", "arm64", "macosx_14_0_arm64"),
    ],
)
def test_wheels_are_named_as_pip_expects(build, monkeypatch, system, machine, tag):
    monkeypatch.setattr(build.sysconfig, "get_platform", lambda: system)
    monkeypatch.setattr(build.platform, "machine", lambda: machine)
    assert build.platform_tag() == tag
    if system.startswith("mac"):
        assert tag in mac_platforms((15, 0), machine)


def test_without_a_compiler_one_is_fetched(build, monkeypatch):
    hook = object.__new__(build.NativeBuildHook)
    monkeypatch.setattr(build.NativeBuildHook, "target_name", "wheel")
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(build.shutil, "which", lambda name: None)
    assert [need.partition(";")[0] for need in hook.dependencies()] == ["ziglang"]
    monkeypatch.setattr(build.shutil, "which", lambda name: f"/bin/{name}")
    assert hook.dependencies() == []
    monkeypatch.setattr(build.sys, "platform", "win32")  # where what gcc makes cannot be trusted with vectors
    assert [need.partition(";")[0] for need in hook.dependencies()] == ["ziglang"]


def test_the_version_stands_in_one_place():
    project, citation = ((ROOT / name).read_text(encoding="utf-8") for name in ("pyproject.toml", "CITATION.cff"))
    assert 'dynamic = ["version"]' in project and not re.search(r'^version = "', project, re.M)
    assert "version" not in yaml.safe_load(citation)
    assert importlib.metadata.version("mtrkit") == mtrkit.__version__


def test_every_wheel_is_tried():
    file = ROOT / ".github" / "workflows" / "wheels.yml"
    if not file.exists():
        pytest.skip("it lies in the repository only")
    jobs = yaml.safe_load(file.read_text(encoding="utf-8"))["jobs"]
    built = jobs["wheel"]["strategy"]["matrix"]["os"]
    assert {name.partition("-")[0] for name in built} == {"ubuntu", "macos", "windows"} and "ubuntu-24.04-arm" in built
    assert jobs["try-wheel"]["strategy"]["matrix"]["os"] == built
