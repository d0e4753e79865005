"""What calibrating a model found: where it reduces and how much, and a correction of its final features."""

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mtrkit.adapters import Adapter
from mtrkit.errors import CheckpointError, OptionError
from mtrkit.types import Correction

_KEY = "mtrkit_calibration"  # of the entry in the file's metadata


@dataclass(frozen=True, eq=False)
class Calibration:
    """A reduction that was fitted to one model; :func:`mtrkit.calibrate` makes it, ``apply_reduction`` takes it.

    Attributes:
        adapter: Name of the adapter that fits the model.
        method: Name of the method.
        options: All its options, defaults included.
        input_size: (C, H, W), (C, T, H, W) or (L,) that it was made for.
        ratio: Share of the FLOPs asked for.
        num_tokens: Tokens that enter the first block, special ones included.
        tokens: Tokens left after each block.
        divergence: Mean Kullback–Leibler divergence from the dense answers, in nats, on samples that nothing was fitted
            to: with the method's ``"default"`` placement, ``"placed"`` as here, and ``"corrected"``.
        num_samples: Samples that it was made from.
        fingerprint: (depth, 2) float32, see :func:`fingerprint`.
        correction: Of the final features; ``None`` if it did not help.
    """

    adapter: str
    method: str
    options: dict[str, Any]
    input_size: tuple[int, ...]
    ratio: float
    num_tokens: int
    tokens: tuple[int, ...]
    divergence: dict[str, float]
    num_samples: int
    fingerprint: Tensor = field(repr=False)
    correction: Correction | None = field(default=None, repr=False)

    @property
    def layers(self) -> tuple[int, ...]:
        """Blocks after which tokens are reduced, counted from 1."""
        steps = enumerate(pairwise([self.num_tokens, *self.tokens]), start=1)
        return tuple(layer for layer, (before, after) in steps if after < before)

    @property
    def digest(self) -> str:
        """Sixteen hex digits that change with anything in it."""
        digest = hashlib.sha256(json.dumps(self._data(), sort_keys=True).encode())
        for name, part in sorted(self._tensors().items()):
            digest.update(name.encode() + part.numpy().tobytes())
        return digest.hexdigest()[:16]

    def check(self, model: nn.Module, adapter: Adapter) -> None:
        """Raise :class:`OptionError` unless it was made for this model, in whatever dtype its weights are now."""
        blocks = adapter.blocks(model)
        found = f"{len(blocks)} blocks of {adapter.name!r}"
        if (adapter.name, len(blocks)) != (self.adapter, len(self.tokens)):
            reason = f"a model of {len(self.tokens)} blocks of {self.adapter!r}, and this one has {found}"
        elif not torch.allclose(fingerprint(blocks), self.fingerprint, rtol=0.02, atol=1e-3):
            reason = "other weights than this model has"
        else:
            return
        raise OptionError(f"the calibration was made for {reason}; call mtrkit.calibrate on this model")

    def save(self, path: str | Path) -> None:
        """Write it to a ``.safetensors`` file of some kB."""
        from safetensors.torch import save_file

        save_file(self._tensors(), path, {_KEY: json.dumps(self._data())})

    def _tensors(self) -> dict[str, Tensor]:
        correction = {} if self.correction is None else self.correction._asdict()
        return {name: part.cpu().contiguous() for name, part in {"fingerprint": self.fingerprint, **correction}.items()}

    def _data(self) -> dict[str, Any]:
        """All that is not a tensor."""
        names = [entry.name for entry in dataclasses.fields(self) if entry.name not in ("fingerprint", "correction")]
        return {name: getattr(self, name) for name in names}

    @classmethod
    def load(cls, path: str | Path) -> "Calibration":
        """Read what :meth:`save` wrote.

        Raises:
            CheckpointError: The file holds something else.
            OSError: It cannot be read.
        """
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, "pt") as file:
                data = json.loads((file.metadata() or {})[_KEY])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            data |= {name: tuple(data[name]) for name in ("input_size", "tokens")}
            fingerprint = tensors.pop("fingerprint")
            return cls(**data, fingerprint=fingerprint, correction=Correction(**tensors) if tensors else None)
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"{path} is not a calibration that this version of mtrkit reads ({error}); make one by mtrkit.calibrate"
            ) from error

    def __str__(self) -> str:
        places = ", ".join(f"{layer}: {self.tokens[layer - 1]}" for layer in self.layers)
        steps = " → ".join(f"{value:.4f} {name}" for name, value in self.divergence.items())
        rank = "no correction" if self.correction is None else f"correction of rank {self.correction.up.shape[0]}"
        return (
            f"{self.method} at ratio {self.ratio:g}, from {self.num_samples} samples\n"
            f"tokens: {self.num_tokens}, then after block {places}; {rank}\n"
            f"divergence from the dense answers: {steps}"
        )


def fingerprint(blocks: Sequence[nn.Module]) -> Tensor:
    """(depth, 2) float32: mean and standard deviation of the vectors among each block's parameters.

    Adapters and quantisation change matrices, and other dtypes round: none of them moves these by much, other weights
    do.
    """
    rows = []
    for block in blocks:
        vectors = [parameter.detach().float().flatten() for parameter in block.parameters() if parameter.dim() == 1]
        every = torch.cat(vectors).cpu() if vectors else torch.zeros(1)
        rows.append(torch.stack([every.mean(), every.std(correction=0)]))
    return torch.stack(rows)
