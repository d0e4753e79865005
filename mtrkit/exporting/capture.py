"""Turn a model into one graph of standard operators, for a batch of any size."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mtrkit.errors import ExportError, InputError
from mtrkit.exporting.texts import scanned_by_mtrkit
from mtrkit.scan import use_scan_backend

_STANDARD = ("aten", "prims")  # namespaces of operators that torch has without any package


class Answers(nn.Module):
    """The model with tensors as its answer: a tensor, a tuple of them, or the logits of an output that has names."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *inputs: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Whatever tensors the model takes."""
        given = self.model(*inputs)
        found = getattr(given, "logits", given)
        if isinstance(found, Tensor):
            return found
        if isinstance(found, Sequence) and found and all(isinstance(x, Tensor) for x in found):
            return tuple(found)
        raise ExportError(
            f"{type(self.model).__name__} returns a {type(given).__name__}, and a file can return tensors, a tuple of "
            "them, or what an output calls `logits`; wrap the model in a module that returns the tensor you want"
        )


def check_model(model: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    """Raise :class:`ExportError` for a model that trains, is in half precision or not on a CPU, and for bad inputs."""
    if model.training:
        raise ExportError(f"{type(model).__name__} is in training mode; call model.eval() before mtrkit.export")
    if not inputs or not all(isinstance(x, Tensor) and x.dim() for x in inputs) or len({len(x) for x in inputs}) > 1:
        raise InputError("mtrkit.export takes a tensor, or a tuple of tensors of one batch size, as the model does")
    if not len(inputs[0]):
        raise InputError("mtrkit.export was given an empty batch; give at least one sample")
    tensors = [*model.parameters(), *model.buffers(), *inputs]
    others = {x.dtype for x in tensors if x.is_floating_point()} - {torch.float32}
    if others:
        raise ExportError(
            f"{type(model).__name__} or its input holds {', '.join(sorted(map(str, others)))}, and exported files are "
            "checked to 1e-4 in float32; call model.float() and export that"
        )
    if any(x.device.type != "cpu" for x in tensors):
        raise ExportError(f"{type(model).__name__} or its input is not on a CPU; call model.cpu() and export that")


def at_least_two(inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The inputs, twice if they are a batch of one, which a capture would take for a constant."""
    return inputs if len(inputs[0]) > 1 else tuple(torch.cat([x, x]) for x in inputs)


def capture(model: nn.Module, inputs: tuple[Tensor, ...], backend: str) -> torch.export.ExportedProgram:
    """Capture with a batch of any size.

    Args:
        model: In evaluation mode.
        inputs: What it is called with.
        backend: The form of the scan: ``"chunks"`` or ``"operator"``.

    Raises:
        ExportError: It cannot be captured.
    """
    batch = torch.export.Dim("batch", min=1, max=1 << 16)
    try:
        with torch.no_grad(), use_scan_backend(backend), scanned_by_mtrkit(model):
            return torch.export.export(
                Answers(model), at_least_two(inputs), dynamic_shapes=(tuple({0: batch} for _ in inputs),), strict=False
            )
    except ExportError:
        raise
    except Exception as error:
        raise ExportError(
            f"{type(model).__name__} cannot be captured by torch.export for batches of any size: {first_line(error)}"
        ) from error


def foreign_operators(program: torch.export.ExportedProgram) -> list[str]:
    """Operators of the program that torch alone does not have, such as those of torchvision."""
    graphs = [module.graph for module in program.graph_module.modules() if hasattr(module, "graph")]
    targets = {node.target for graph in graphs for node in graph.nodes if node.op == "call_function"}
    return sorted(
        str(target)
        for target in targets
        if isinstance(target, torch._ops.OpOverload) and target.namespace not in _STANDARD
    )


def first_line(error: Any) -> str:
    """What an error says, as part of a sentence."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else 'no reason given'}"
