"""Files for ONNX runtimes."""

import importlib.util
import logging
import warnings
from collections.abc import Iterator
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
    from mtrkit.exporting.onnx_recurrence import recurrence

    table = {torch.ops.mtrkit.recurrence.default: recurrence}
    try:
        with _quietly():
            found = torch.onnx.export(
                program, dynamo=True, opset_version=opset, custom_translation_table=table, verbose=False
            )
    except Exception as error:
        raise ExportError(f"the program cannot be written in ONNX opset {opset}: {first_line(error)}") from error
    assert found is not None
    model = found.model
    for number, value in enumerate(model.graph.inputs):
        value.name = "input" if len(model.graph.inputs) == 1 else f"input_{number}"
    for number, value in enumerate(model.graph.outputs):
        value.name = "logits" if len(model.graph.outputs) == 1 else f"output_{number}"
    model.metadata_props.update(metadata)
    found.save(str(path), external_data=False)


def run(path: Path, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """What onnxruntime finds for the file."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    given = {value.name: x.numpy() for value, x in zip(session.get_inputs(), inputs, strict=True)}
    return tuple(torch.from_numpy(x) for x in session.run(None, given))


@contextmanager
def _quietly() -> Iterator[None]:
    """Without the exporter's remarks on its own workings."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
