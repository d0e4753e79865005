"""What is measured: the dense model, and one for every reduction that was asked for."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from torch import nn

from mtrkit.api import apply_reduction, count_flops, reduction_info
from mtrkit.errors import OptionError
from mtrkit.measure.weights import twin
from mtrkit.patch import Amount, Calibration, ReductionInfo

DENSE = "dense"
_AMOUNTS = (*Amount._fields, "checkpoint")  # of what is trained, which says it itself
RANDOM = "random"  # what stands for the checkpoint of a model with random weights

Threshold = float | tuple[float, ...]  # one for all layers, or one for each


class ModelChoice(NamedTuple):
    """A model and its weights, as they were asked for."""

    name: str
    checkpoint: str

    @classmethod
    def parse(cls, text: str) -> "ModelChoice":
        """Read NAME or NAME=CHECKPOINT; the default checkpoint is ``"pretrained"``."""
        name, _, checkpoint = text.partition("=")
        return cls(name, checkpoint or "pretrained")

    @property
    def weights(self) -> str | None:
        """The checkpoint, or ``None`` for random weights."""
        return None if self.checkpoint == RANDOM else self.checkpoint


class MethodChoice(NamedTuple):
    """A method as it was asked for."""

    text: str  # as written, which is what tables show
    name: str
    options: dict[str, object]  # of the method, or ``layers`` and ``r`` of apply_reduction


@dataclass(frozen=True)
class Candidate:
    """A model to measure: the dense one (method ``"dense"``, ratio 0) or a reduced one.

    Attributes:
        method: The method as it was asked for.
        ratio: Share of the FLOPs asked for, or removed by the ``r`` tokens per layer or the threshold asked for.
        model: Shares its weights with the other candidates.
        gflops: Of one image, in the papers' count.
        promised: How many times faster it would be if time were FLOPs.
        reached: Share of the FLOPs removed.
        info: What was done; ``None`` for the dense model.
        options: Of the method, as they were given.
        r: Tokens per layer asked for, if that was.
        threshold: Least similarity asked for, if that was. What it costs depends on the data: see :meth:`measured`.
    """

    method: str
    ratio: float
    model: nn.Module = field(repr=False)
    gflops: float
    promised: float = 1.0
    reached: float = 0.0
    info: ReductionInfo | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    r: int | None = None
    threshold: Threshold | None = None

    @property
    def amount(self) -> str:
        """What was asked for, in words."""
        if self.threshold is not None:
            values = self.threshold if isinstance(self.threshold, tuple) else (self.threshold,)
            return f"threshold={','.join(f'{value:g}' for value in values)}"
        return f"{self.ratio:g}" if self.r is None else f"r={self.r}"

    def measured(self) -> "Candidate":
        """With a threshold the same with the mean of the passes that there have been, otherwise as it is."""
        info = None if self.threshold is None else reduction_info(self.model)
        return self if info is None else replace(self, info=info, ratio=info.ratio_reached, **_counts(info))

    @property
    def name(self) -> str:
        """Unique among the candidates of a command."""
        return DENSE if self.info is None else f"{self.method} {self.amount}"


def candidates(
    model: nn.Module,
    methods: Sequence[MethodChoice],
    ratios: Sequence[float],
    layers: Sequence[int] | None = None,
    options: Mapping[str, Any] | None = None,
    removals: Sequence[int] = (),
    calibrations: Sequence[Calibration] = (),
    thresholds: Sequence[Threshold] = (),
) -> list[Candidate]:
    """The dense model first, then every method at every ratio and removal above 0 and threshold, without repetitions.

    Args:
        model: The dense model.
        methods: How to reduce it.
        ratios: Shares of the FLOPs to remove.
        layers: Where, for methods that do not say. Default: that of ``apply_reduction``.
        options: Of every method, unless it has its own; not how much to remove. Default: none.
        removals: Tokens per layer to remove. Default: none.
        calibrations: Reductions that were fitted to the model, each at its own ratio. Default: none.
        thresholds: Least similarities of what merges. Default: none.
    """
    dense = Candidate(method=DENSE, ratio=0.0, model=model, gflops=count_flops(model).gflops)
    amounts: list[dict[str, Any]] = [{"ratio": ratio} for ratio in dict.fromkeys(ratios) if ratio]
    amounts += [{"r": r} for r in dict.fromkeys(removals) if r]
    amounts += [{"threshold": least} for least in dict.fromkeys(thresholds)]
    wanted = {method.text: method for method in methods}.values()
    shared = {"layers": layers} | dict(options or {})
    own = own_amount(shared)
    if own:
        raise OptionError(f"{next(iter(own))} of every method says how much to remove; give it as an amount of its own")
    each = [(method, amount) for method in wanted for amount in ([{}] if own_amount(method.options) else amounts)]
    reduced = [_reduced(model, method, shared, amount) for method, amount in each]
    named = zip(calibrations, calibrated_names(calibrations), strict=True)
    return [dense, *reduced, *(_calibrated(model, calibration, name) for calibration, name in named)]


def _reduced(model: nn.Module, method: MethodChoice, shared: Mapping[str, Any], amount: Mapping[str, Any]) -> Candidate:
    options = dict(shared) | method.options
    reduced = apply_reduction(twin(model), method.name, **(options | dict(amount)))
    info = reduction_info(reduced)
    assert info is not None
    said = own_amount(options) | dict(amount)
    ratio = said.get("ratio", info.ratio_reached)
    options = {name: value for name, value in options.items() if name != "layers"}
    return _candidate(method.text, ratio, reduced, info, options, r=said.get("r"), threshold=said.get("threshold"))


def own_amount(options: Mapping[str, Any]) -> dict[str, Any]:
    """What of a method's options says how much to remove."""
    return {name: value for name, value in options.items() if name in _AMOUNTS}


def calibrated_names(calibrations: Sequence[Calibration]) -> list[str]:
    """What tables call reductions that were fitted to the model; two of one method at one ratio by their digests."""
    alike = [(calibration.method, calibration.ratio) for calibration in calibrations]
    ends = ["" if alike.count(a) == 1 else f" ({c.digest[:6]})" for a, c in zip(alike, calibrations, strict=True)]
    return [f"{c.method}, calibrated{end}" for c, end in zip(calibrations, ends, strict=True)]


def _calibrated(model: nn.Module, calibration: Calibration, name: str) -> Candidate:
    reduced = apply_reduction(twin(model), calibration=calibration)
    info = reduction_info(reduced)
    assert info is not None
    options = {"calibration": calibration.digest}
    return _candidate(name, calibration.ratio, reduced, info, options)


def _candidate(
    method: str, ratio: float, model: nn.Module, info: ReductionInfo, options: Mapping[str, Any], **amount: Any
) -> Candidate:
    return Candidate(method=method, ratio=ratio, model=model, info=info, options=options, **_counts(info), **amount)


def _counts(info: ReductionInfo) -> dict[str, Any]:
    """What a reduction costs and saves."""
    return {
        "gflops": info.flops_reduced.gflops,
        "promised": info.promised_speedup,
        "reached": info.ratio_reached,
    }
