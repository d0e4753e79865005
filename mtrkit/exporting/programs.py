"""Files of torch: programs of standard operators, and programs that AOTInductor has compiled."""

import json
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from mtrkit.errors import ExportError
from mtrkit.exporting.capture import first_line, foreign_operators

_FILE = "mtrkit.json"  # inside of the archive


def write(program: torch.export.ExportedProgram, path: Path, metadata: dict[str, str]) -> None:
    """Save a captured program."""
    _check_operators(program)
    torch.export.save(program, path, extra_files={_FILE: json.dumps(metadata)})


def load(path: Path) -> Callable[..., object]:
    """The saved program."""
    return torch.export.load(path).module()


def compile_ahead(program: torch.export.ExportedProgram, path: Path, metadata: dict[str, str]) -> None:
    """Compile a captured program for this machine, and save it."""
    from torch._inductor import aoti_compile_and_package, config
    from torch._inductor.cpp_builder import get_cpp_compiler

    _check_operators(program)
    try:
        get_cpp_compiler()
    except Exception as error:
        raise ExportError("AOTInductor needs a C++ compiler, such as g++, and none was found") from error
    try:
        with torch.no_grad(), config.patch({"aot_inductor.metadata": metadata}):
            aoti_compile_and_package(program, package_path=str(path))
    except Exception as error:
        raise ExportError(f"AOTInductor cannot compile the program: {first_line(error)}") from error


def load_compiled(path: Path) -> Callable[..., object]:
    """The compiled program."""
    from torch._inductor import aoti_load_package

    loaded: Callable[..., object] = aoti_load_package(str(path))
    return loaded


def as_tuple(found: object) -> tuple[Tensor, ...]:
    """One tensor, or several."""
    return (found,) if isinstance(found, Tensor) else tuple(found)  # type: ignore[arg-type]


def _check_operators(program: torch.export.ExportedProgram) -> None:
    foreign = foreign_operators(program)
    if foreign:
        raise ExportError(
            f"the model calls {', '.join(foreign)}, which torch alone does not have, so the file would run nowhere "
            "else; leave these layers out, or write them in torch operators"
        )
