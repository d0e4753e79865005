"""What a patch did to a model, as data."""

import dataclasses
from dataclasses import dataclass
from typing import Any

from mtrkit.schedule import Directions, FlopsReport


@dataclass(frozen=True)
class ReductionInfo:
    """What one call of ``apply_reduction`` did.

    Attributes:
        method: Name of the method.
        options: All its options, defaults included.
        adapter: Name of the adapter that fits the model.
        input_size: (C, H, W), (C, T, H, W) or (L,) that the numbers below are for.
        ratio: Share of the FLOPs asked for; ``None`` if tokens or ``r`` were given instead.
        ratio_reached: Share of the FLOPs removed, in the papers' count, reduction cost deducted.
        layers: Blocks after which tokens are reduced, counted from 1.
        num_tokens: Tokens that enter the first block, special ones included.
        tokens: Tokens left after each block.
        flops_dense: The count of the dense model.
        flops_reduced: The count of the reduced one.
        scan_backend: Selective-scan backend for the model's device, and why that one.
        corrected: Whether a calibration corrects the final features.
        scan_share: Measured share of the scans that run, in a model that chooses them per sample. ``None`` if all run,
            or if it was not measured: the FLOPs then count all.
        thresholds: Least similarity of what merges, for each of the layers; ``None`` if the plan is fixed.
        measured: Samples that the tokens and FLOPs of a reduction with thresholds are the mean of, those of
            ``input_size`` since it was applied. 0: none yet, and the numbers are the fewest tokens that may be left.
    """

    method: str
    options: dict[str, Any]
    adapter: str
    input_size: tuple[int, ...]
    ratio: float | None
    ratio_reached: float
    layers: tuple[int, ...]
    num_tokens: int
    tokens: tuple[int, ...]
    flops_dense: FlopsReport
    flops_reduced: FlopsReport
    scan_backend: str
    corrected: bool = False
    scan_share: float | None = None
    thresholds: tuple[float, ...] | None = None
    measured: int = 0

    @property
    def directions(self) -> Directions:
        """Whether one scan direction was counted, as papers do, or all that run."""
        return self.flops_dense.directions

    @property
    def promised_speedup(self) -> float:
        """How many times faster the model would be if time were FLOPs."""
        return self.flops_dense.total / self.flops_reduced.total

    def as_dict(self) -> dict[str, Any]:
        """Plain data for a results file."""
        return dataclasses.asdict(self) | {"promised_speedup": self.promised_speedup}

    def _limits(self) -> str:
        assert self.thresholds is not None
        values = ", ".join(f"{value:.4g}" for value in self.thresholds)
        counted = f"the mean of {self.measured} samples" if self.measured else "the least possible, as none has run yet"
        return f"threshold: {values}; tokens and FLOPs are {counted}"

    def __str__(self) -> str:
        asked = "" if self.ratio is None else f" of {self.ratio:.3f} asked"
        options = ", ".join(f"{name}={value!r}" for name, value in self.options.items())
        places = ", ".join(f"{layer}: {self.tokens[layer - 1]}" for layer in self.layers)
        corrected = "; the final features are corrected" if self.corrected else ""
        share = "" if self.scan_share is None else f"; {self.scan_share:.1%} of the scans run, as measured"
        limits = "" if self.thresholds is None else f"{self._limits()}\n"
        return (
            f"{self.method}({options}) on {self.adapter}, input {'×'.join(map(str, self.input_size))}\n"
            f"{limits}tokens: {self.num_tokens}, then after block {places or 'none'}\n"
            f"FLOPs: {self.flops_dense.gflops:.3f} → {self.flops_reduced.gflops:.3f} G "
            f"(ratio {self.ratio_reached:.3f}{asked}), speed-up promised ×{self.promised_speedup:.2f}\n"
            f"scan: {self.scan_backend}{corrected}{share}"
        )
