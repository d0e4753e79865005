"""Build hook: compiles mtrkit/native/native.c into the wheel, with whatever C compiler there is.

Without a compiler on PATH the one from PyPI (ziglang) is asked for, so a plain ``pip install .`` gets the
compiled scan anywhere. If compiling fails the wheel is pure Python and the scan runs as torch operations,
only slower.
"""

import os
import platform
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

SUFFIX = {"win32": ".dll", "darwin": ".dylib"}.get(sys.platform, ".so")
FOLDER = Path("mtrkit", "native")
# No -march: the library holds its variants for several instruction sets and chooses when it is loaded.
FLAGS = ["-std=c11", "-O3", "-ffp-contract=fast", "-fvisibility=hidden", "-Wno-psabi", "-shared"]
ZIG_MACHINES = "x86_64 AMD64 aarch64 arm64"  # where PyPI has wheels of the compiler for every system


class NativeBuildHook(BuildHookInterface):
    """Adds the compiled library to wheels, editable ones included."""

    PLUGIN_NAME = "custom"

    def dependencies(self) -> list[str]:
        """What the build needs beyond hatchling: the PyPI compiler where PATH has none."""
        if self.target_name != "wheel" or compiler():
            return []
        return [f'ziglang; platform_machine in "{ZIG_MACHINES}"']

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile, and mark the wheel as made for this platform; on failure leave it pure Python."""
        if self.target_name != "wheel":
            return
        library = Path(self.root) / FOLDER / f"_native{SUFFIX}"
        library.unlink(missing_ok=True)
        try:
            compile_library(library)
        except (OSError, subprocess.CalledProcessError) as error:
            details = getattr(error, "stderr", None) or error
            self.app.display_warning(f"mtrkit is built without its compiled scan, which will be slower: {details}")
            return
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{platform_tag()}"
        build_data["artifacts"].append(f"/{(FOLDER / library.name).as_posix()}")


def compile_library(library: Path, *flags: str) -> None:
    """Compile the ``native.c`` beside the library, with further flags after the usual ones.

    Raises:
        OSError: The compiler cannot be run.
        subprocess.CalledProcessError: It failed; ``stderr`` says at what.
    """
    command = compiler() or _zig()
    position, libraries = ([], []) if sys.platform == "win32" else (["-fPIC"], ["-lm"])
    source = library.with_name("native.c")
    # Into a temporary place first: a library that a running process has mapped must not be written over.
    with tempfile.TemporaryDirectory(dir=library.parent) as folder:
        fresh = Path(folder) / library.name
        arguments = [*command, *FLAGS, *position, *flags, str(source), *libraries, "-o", str(fresh)]
        subprocess.run(arguments, check=True, capture_output=True, text=True)
        os.replace(fresh, library)


def compiler() -> list[str]:
    """The C compiler named by CC, else the first one on PATH, else nothing.

    On Windows CC alone counts: MSVC has no vector types, and what gcc makes there stops at vectors on the stack, which
    it does not align.
    """
    if os.environ.get("CC"):
        return shlex.split(os.environ["CC"])
    names = () if sys.platform == "win32" else ("cc", "gcc", "clang")
    found = next((path for name in names if (path := shutil.which(name))), None)
    return [found] if found else []


def _zig() -> list[str]:
    command = [sys.executable, "-m", "ziglang", "cc"]
    machine = {"AMD64": "x86_64", "arm64": "aarch64"}.get(platform.machine(), platform.machine())
    if platform.libc_ver()[0] == "glibc":  # an old glibc, so that the library loads on older systems too
        return [*command, "-target", f"{machine}-linux-gnu.2.17"]
    return [*command, "-mcpu=baseline"]


def platform_tag() -> str:
    """The part of the wheel's name that says where it can be installed."""
    found = sysconfig.get_platform().replace("universal2", platform.machine())
    if found.startswith("macosx-10") and found.endswith("arm64"):
        found = "macosx-11.0-arm64"  # a Python for both processors names a system older than ARM, which pip refuses
    return found.replace("-", "_").replace(".", "_")
