"""The closed-form correction of a reduced model's final features towards the dense ones."""

from functools import reduce

import torch
from torch import Tensor

from mtrkit.types import Correction

_FOLDS = 4
_DAMPINGS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)  # shares of the mean variance of the features
_RANK = 8  # more gains nothing on the models that were measured


class Moments:
    """Sums over pairs of reduced features x and of what they miss, e = y − x for dense features y.

    With z = (x, 1) these are G = Σ zᵀz, (D + 1, D + 1), and C = Σ zᵀe, (D + 1, D), from which follow the correction and
    its error on any samples that were summed, up to a constant.
    """

    def __init__(self, gram: Tensor, cross: Tensor) -> None:
        self.gram, self.cross = gram, cross

    @classmethod
    def of(cls, reduced: Tensor, dense: Tensor) -> "Moments":
        """Of features (…, D)."""
        x, y = (features.double().flatten(0, -2) for features in (reduced, dense))
        z = torch.cat([x, torch.ones_like(x[:, :1])], dim=1)
        return cls(z.mT @ z, z.mT @ (y - x))

    def __add__(self, other: "Moments") -> "Moments":
        return Moments(self.gram + other.gram, self.cross + other.cross)

    def __sub__(self, other: "Moments") -> "Moments":
        return Moments(self.gram - other.gram, self.cross - other.cross)

    def fit(self, damping: float) -> Correction:
        """The affine map from x to e of least squares, damped, and of that rank which predicts most of it.

        With S the covariance of x and T that of x and e it is ``W = (S + λI)⁻¹ T``. Of all maps of rank R,
        ``W V Vᵀ``, with V the leading eigenvectors of ``Wᵀ S W``, keeps most of what W predicts (reduced-rank
        regression).
        """
        count = self.gram[-1, -1]
        mean, shift = self.gram[-1, :-1] / count, self.cross[-1] / count
        covariance = self.gram[:-1, :-1] / count - torch.outer(mean, mean)
        joint = self.cross[:-1] / count - torch.outer(mean, shift)
        ridge = damping * covariance.diagonal().mean() * torch.eye(len(mean)).to(covariance)
        weight = torch.linalg.solve(covariance + ridge, joint)
        leading = torch.linalg.eigh(weight.mT @ covariance @ weight).eigenvectors[:, -_RANK:]
        down, up = weight @ leading, leading.mT
        return Correction(down, up, shift - mean @ down @ up)

    def error(self, correction: Correction) -> float:
        """Sum of squares that a correction leaves of e here, less what e had: below 0 if it helps."""
        weight = torch.cat([correction.down @ correction.up, correction.bias[None]])
        return float((weight * (self.gram @ weight - 2 * self.cross)).sum())


class Folds:
    """Moments of separate samples, so that the damping can be chosen by what is left out."""

    def __init__(self) -> None:
        self._folds: list[Moments] = []

    def add(self, reduced: Tensor, dense: Tensor) -> None:
        """Take in features (B, S, D) of more samples."""
        parts = [Moments.of(reduced[i::_FOLDS], dense[i::_FOLDS]) for i in range(_FOLDS)]
        self._folds = [old + new for old, new in zip(self._folds, parts, strict=True)] if self._folds else parts

    def fit(self) -> Correction:
        """From all samples, with the damping that leaves least on the folds that were left out; in float32."""
        every = reduce(Moments.__add__, self._folds)

        def left(damping: float) -> float:
            return sum(fold.error((every - fold).fit(damping)) for fold in self._folds)

        found = every.fit(min(_DAMPINGS, key=left))
        return Correction(*(part.float().cpu() for part in found))
