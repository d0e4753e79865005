"""What training DyVM has found, as a file beside the model's own checkpoint, and the reduction that it makes."""

import copy
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mtrkit.adapters import Adapter, find_host
from mtrkit.errors import CheckpointError, OptionError, UnsupportedModelError
from mtrkit.methods.dyvm import DyVM
from mtrkit.patch.reduction import reductions_in

_KEY = "mtrkit_dyvm"  # of the entry in the file's metadata
_SETTINGS = ("dim", "inner", "depth", "layers", "keep", "block_target")


@dataclass(frozen=True, eq=False)
class DyVMCheckpoint:
    """A trained :class:`~mtrkit.methods.dyvm.DyVM`, and the model that it was trained for.

    Attributes:
        parts: What is trained. ``apply_reduction`` takes a copy of it.
        adapter: Name of the adapter that fitted the model.
        input_size: (C, H, W) or (C, T, H, W) that it was built for.
        special: Where the class and register tokens stand in a sequence for it.
        fingerprint: (n,) float32: the vectors among the parameters of all blocks.
    """

    parts: DyVM
    adapter: str
    input_size: tuple[int, ...]
    special: tuple[int, ...]
    fingerprint: Tensor = field(repr=False)

    @classmethod
    def of(cls, model: nn.Module, parts: DyVM) -> "DyVMCheckpoint":
        """What is saved of ``parts`` that were trained with ``model``, whose weights are remembered as they are now."""
        host, adapter = find_host(model)
        check_sizes(parts, host, adapter)
        size = adapter.input_size(host)
        special = _special(host, adapter, size)
        return cls(parts, adapter.name, size, special, _vectors(adapter.blocks(host)))

    def frozen_parts(self, host: nn.Module) -> DyVM:
        """A copy of what is trained that chooses as at inference and takes no gradients, where the host's weights are.

        It has the dtype of the model's norms.
        """
        like = next((p for p in host.parameters() if p.dim() == 1 and p.is_floating_point()), None)
        parts = copy.deepcopy(self.parts).eval().requires_grad_(False)
        return parts if like is None else parts.to(device=like.device, dtype=like.dtype)

    def check(self, host: nn.Module, adapter: Adapter) -> None:
        """Raise :class:`OptionError` unless it was trained for this model, in whatever dtype its weights are now.

        An official repository's model and mtrkit's own of the same weights are the same.
        """
        check_sizes(self.parts, host, adapter)
        blocks = adapter.blocks(host)
        try:
            special = _special(host, adapter, self.input_size)
        except Exception:  # an adapter may fail in any way for an input of another kind, such as a clip for an image
            special = None
        if special != self.special:
            reason = f"class or register tokens at {self.special} for inputs {self.input_size} ({self.adapter!r})"
        elif not _near(_vectors(blocks), self.fingerprint):
            reason = "other weights than this model has; training changes them too, so load those saved beside it"
        else:
            return
        raise OptionError(f"the dyvm checkpoint was made for a model with {reason}")

    def save(self, path: str | Path) -> None:
        """Write it to a ``.safetensors`` file."""
        from safetensors.torch import save_file

        parts = self.parts
        data = {name: getattr(parts, name) for name in (*_SETTINGS, "scan_share")}
        data |= {name: getattr(self, name) for name in ("adapter", "input_size", "special")}
        tensors = {name: value.detach().cpu().contiguous() for name, value in parts.state_dict().items()}
        save_file({**tensors, "fingerprint": self.fingerprint}, path, {_KEY: json.dumps(data)})

    @classmethod
    def load(cls, path: str | Path) -> "DyVMCheckpoint":
        """Read what :meth:`save` wrote.

        Raises:
            CheckpointError: The file holds something else, or what it holds does not fit together.
            OSError: It cannot be read.
        """
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, "pt") as file:
                data = json.loads((file.metadata() or {})[_KEY])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            mark = tensors.pop("fingerprint").flatten()
            parts = DyVM(**{name: data[name] for name in _SETTINGS})
            parts.scan_share = data["scan_share"]
            size, special = tuple(data["input_size"]), tuple(data["special"])
            found = cls(parts.eval(), data["adapter"], size, special, mark)
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"{path} is not a dyvm checkpoint that this version of mtrkit reads ({error}); save one by "
                "mtrkit.dyvm.DyVMCheckpoint, or read a published .pth by mtrkit.dyvm.load_release"
            ) from error
        load_parts(parts, tensors, path)
        return found


def load_parts(parts: DyVM, tensors: dict[str, Tensor], path: str | Path) -> None:
    """Put trained weights in place, strictly.

    Raises:
        CheckpointError: Names are missing or too many, shapes differ, or values are not finite.
    """
    spoilt = [name for name, value in tensors.items() if not torch.isfinite(value).all()]
    try:
        if spoilt:
            raise CheckpointError(f"{len(spoilt)} tensors have NaN or infinite values, such as {spoilt[0]}")
        parts.load_state_dict(tensors)
    except RuntimeError as error:  # CheckpointError is one
        raise CheckpointError(f"{path} does not fit a dyvm with layers {parts.layers}: {error}") from error


def trained_parts(model: nn.Module) -> DyVM | None:
    """What chooses in a model that a trained checkpoint reduces; ``None`` in any other."""
    trained = [reduction.trained for _, reduction in reductions_in(model)]
    return trained[0] if trained and isinstance(trained[0], DyVM) else None


def check_sizes(parts: DyVM, host: nn.Module, adapter: Adapter) -> None:
    """Raise unless ``parts`` fit a model of this depth and these widths, of a family whose scans can be chosen."""
    if not adapter.gates_scans:
        raise UnsupportedModelError(
            f"method 'dyvm' needs a plain stack of two-direction Mamba blocks (Vim, VideoMamba, Mamba-Reg), which "
            f"{adapter.name!r} models are not; choose another method"
        )
    shape = adapter.shape(host, adapter.input_size(host))
    found, expected = (shape.dim, shape.widths.inner, shape.depth), (parts.dim, parts.inner, parts.depth)
    if found != expected:
        raise OptionError(
            f"the dyvm checkpoint was made for D, E and depth {expected}, and {type(host).__name__} has {found}; give "
            "the checkpoint that was trained for this model"
        )


def _vectors(blocks: Sequence[nn.Module]) -> Tensor:
    """(n,) float32 on the CPU: what adapters and quantisation leave alone, and training does not."""
    # By name, as two classes of the same weights may hold them in another order.
    named = [sorted(block.named_parameters(), key=lambda entry: entry[0]) for block in blocks]
    found = [vector.detach().float().cpu() for block in named for _, vector in block if vector.dim() == 1]
    return torch.cat(found) if found else torch.zeros(0)


def _near(found: Tensor, expected: Tensor) -> bool:
    """Whether they are the same up to the rounding of bfloat16, 0.2 % at most; the weights before training are not."""
    if found.shape != expected.shape:
        return False
    return bool((found - expected).norm() <= 0.003 * expected.norm())


def _special(host: nn.Module, adapter: Adapter, size: tuple[int, ...]) -> tuple[int, ...]:
    shape: Any = adapter.shape(host, size)
    return tuple(adapter.special_at(host)(shape.tokens))
