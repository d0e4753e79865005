"""The one verb: capture, write, run what was written, and compare."""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

import mtrkit
from mtrkit.errors import ExportError, OptionError
from mtrkit.exporting import onnx_file, programs
from mtrkit.exporting.capture import Answers, at_least_two, capture, check_model
from mtrkit.patch import reductions_in

Format = Literal["onnx", "pt2", "aotinductor"]
TOLERANCE = 1e-4
_SUFFIXES: dict[str, Format] = {".onnx": "onnx", ".pt2": "pt2"}
_SCANS = {"onnx": "operator", "pt2": "chunks", "aotinductor": "chunks"}


class Exported(NamedTuple):
    """What :func:`export` wrote.

    Attributes:
        path: The file.
        format: ``"onnx"``, ``"pt2"`` or ``"aotinductor"``.
        error: Greatest absolute difference from the model's own output, found by running the file.
        metadata: What the file says of itself.
    """

    path: Path
    format: Format
    error: float
    metadata: dict[str, str]


def export(
    model: nn.Module,
    path: str | os.PathLike[str],
    input: Tensor | tuple[Tensor, ...],
    *,
    format: Format | None = None,
    opset: int = onnx_file.OPSET,
) -> Exported:
    """Write a model, dense or reduced, as a file that runs without mtrkit, with batches of any size.

    The file is run once and compared with the model before it takes its place, so a file that exists is right for
    ``input``. Image sizes and token counts are fixed: those of ``input``.

    Args:
        model: In evaluation mode, in float32, on a CPU. It stays as it is.
        path: Where to write; ``.onnx`` or ``.pt2`` says what, if ``format`` does not.
        input: What the model is called with: (B, C, H, W) images, (B, C, T, H, W) clips, (B, L) token numbers, or a
            tuple of tensors. Their values are used for the comparison.
        format: ``"onnx"``; ``"pt2"``, a program of :func:`torch.export.save` without custom operators;
            ``"aotinductor"``, compiled for this kind of machine, for :func:`torch._inductor.aoti_load_package`, a
            ``.pt2`` file too.
        opset: Version of the ONNX operator set, at least 18.

    Returns:
        What was written, and how far it is from the model.

    Raises:
        ExportError: The model cannot be exported, or what was written differs from it by more than 1e-4 (of the
            greatest output, if that is above 1); no file is left then.
        OptionError: The format or the opset is not one of those above.
    """
    path = Path(path)
    kind = _format_of(path, format)
    if opset < onnx_file.OPSET:
        raise OptionError(f"opset={opset} lacks operators that the models need; give {onnx_file.OPSET} or more")
    if not path.absolute().parent.is_dir():
        raise OptionError(f"{path}: the folder does not exist; make it first")
    inputs = (input,) if isinstance(input, Tensor) else tuple(input)
    check_model(model, inputs)
    if kind == "onnx":
        onnx_file.check_installed()
    program = capture(model, inputs, _SCANS[kind])
    metadata = _describe(model, inputs) | ({"opset": str(opset)} if kind == "onnx" else {})
    place = Path(os.path.realpath(path))  # a symbolic link stays one
    with tempfile.TemporaryDirectory(dir=place.parent, prefix=".mtrkit-") as folder:
        draft = Path(folder) / path.name
        if kind == "onnx":
            onnx_file.write(program, draft, opset, metadata)
        else:
            (programs.write if kind == "pt2" else programs.compile_ahead)(program, draft, metadata)
        error = _compare(model, inputs, draft, kind)
        draft.replace(place)
    return Exported(path, kind, error, metadata)


def _format_of(path: Path, format: str | None) -> Format:
    """What to write, from its name and the file's."""
    found = _SUFFIXES.get(path.suffix) if format is None else format
    if found not in _SCANS:
        raise OptionError(
            f"{path.name!r} with format={format!r} does not say what to write; give a name that ends in .onnx or .pt2, "
            'or format="onnx", "pt2" or "aotinductor"'
        )
    wanted = ".onnx" if found == "onnx" else ".pt2"
    if path.suffix != wanted:
        raise OptionError(f"a file of format {found!r} ends in {wanted}, not as {path.name!r} does; name it so")
    return found  # type: ignore[return-value]


def _describe(model: nn.Module, inputs: tuple[Tensor, ...]) -> dict[str, str]:
    """What the file says of itself."""
    active = any(reduction.active for _, reduction in reductions_in(model))
    info = mtrkit.reduction_info(model) if active else None
    size = "x".join(map(str, inputs[0].shape[1:]))
    found = {"mtrkit": mtrkit.__version__, "torch": str(torch.__version__), "model": type(model).__name__}
    found |= {"input_size": size, "method": "none" if info is None else info.method}
    if info is not None:
        options = ", ".join(f"{name}={value!r}" for name, value in info.options.items())
        asked = {} if info.ratio is None else {"ratio": str(info.ratio)}
        found |= {"options": options, **asked, "ratio_reached": f"{info.ratio_reached:.6f}"}
        found["tokens"] = " ".join(map(str, info.tokens))
    return found


_LOAD: dict[str, Callable[[Path], Callable[..., object]]] = {
    "onnx": onnx_file.load,
    "pt2": programs.load,
    "aotinductor": programs.load_compiled,
}


def _compare(model: nn.Module, inputs: tuple[Tensor, ...], path: Path, kind: str) -> float:
    """Run the file with one sample and with several; how far it is from the model at most."""
    worst, written = 0.0, _LOAD[kind](path)
    several = at_least_two(inputs)
    for given in (tuple(x[:1] for x in several), several):
        with torch.no_grad():
            answers, wanted = (programs.as_tuple(run(*given)) for run in (written, Answers(model)))
        for number, (found, right) in enumerate(zip(answers, wanted, strict=True)):
            error = float((found - right).abs().max()) if found.shape == right.shape else float("inf")
            if not error <= TOLERANCE * max(1.0, float(right.abs().max())):
                raise ExportError(
                    f"output {number} of the exported {kind} file is {error:.2g} from the model's for a batch of "
                    f"{len(given[0])}, more than {TOLERANCE:g}; if the model is reduced, two tokens may be alike to "
                    "the last bits for this input: give real images, not constant ones"
                )
            worst = max(worst, error)
    return worst
