"""Files for ONNX runtimes."""

import importlib.util
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from mtrkit.errors import ExportError
from mtrkit.exporting.capture import first_line

OPSET = 18  # the lowest that has all that the models need, so that old runtimes read the file too


def check_installed() -> None:
    """Raise :class:`ExportError` if a package is missing."""
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None]
    if missing:
        raise ExportError(f'ONNX files need {", ".join(missing)}; run: pip install "mtrkit[export]"')


def write(program: torch.export.ExportedProgram, path: Path, opset: int, metadata: dict[str, str]) -> None:
    """Translate a captured program, in which the recurrence is one operator, and save it."""
    try:
        with _quietly():
            from mtrkit.exporting.onnx_operators import translations

            found = torch.onnx.export(
                program, dynamo=True, opset_version=opset, custom_translation_table=translations(), verbose=False
            )
    except Exception as error:
        reason = first_line(_innermost(error))
        raise ExportError(f"the program cannot be written in ONNX opset {opset}: {reason}") from error
    assert found is not None
    model = found.model
    for number, value in enumerate(model.graph.inputs):
        value.name = "input" if len(model.graph.inputs) == 1 else f"input_{number}"
    for number, value in enumerate(model.graph.outputs):
        value.name = "logits" if len(model.graph.outputs) == 1 else f"output_{number}"
    model.metadata_props.update(metadata)
    found.save(str(path), external_data=False)


def load(path: Path) -> Callable[..., tuple[Tensor, ...]]:
    """The file in onnxruntime."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def run(*inputs: Tensor) -> tuple[Tensor, ...]:
        given = {value.name: x.numpy() for value, x in zip(session.get_inputs(), inputs, strict=True)}
        return tuple(torch.from_numpy(x) for x in session.run(None, given))

    return run


def _innermost(error: BaseException) -> BaseException:
    """The error that the others were raised from."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


@contextmanager
def _quietly() -> Iterator[None]:
    """Without the exporter's remarks on its own workings."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
