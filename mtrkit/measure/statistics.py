"""How sure one can be of a share of right answers, and of the difference of two on the same images."""

from statistics import NormalDist
from typing import NamedTuple

from torch import Tensor

from mtrkit.errors import InputError


def wilson_interval(correct: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return the Wilson score interval of the share ``correct / n``.

    Unlike the textbook p ± 1.96·√(p(1 − p)/n) it stays inside [0, 1] and is right for small n and for shares
    near 0 and 1.

    Args:
        correct: Number of successes, 0 … n.
        n: Number of trials, at least 1.
        confidence: How often the interval covers the true share, in (0, 1).

    Source: Wilson 1927, "Probable inference, the law of succession, and statistical inference".

    >>> [round(end, 3) for end in wilson_interval(741, 1000)]
    [0.713, 0.767]
    """
    if n < 1 or not 0 <= correct <= n or not 0 < confidence < 1:
        raise InputError(
            f"wilson_interval({correct}, {n}, {confidence}) needs 0 <= correct <= n, n >= 1 and 0 < confidence < 1"
        )
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share, shrink = correct / n, 1 + z * z / n
    centre = (share + z * z / (2 * n)) / shrink
    half = z * ((share * (1 - share) + z * z / (4 * n)) / n) ** 0.5 / shrink
    return (centre - half if correct else 0.0), (centre + half if correct < n else 1.0)


class Difference(NamedTuple):
    """A difference of two shares of right answers on the same images, and its interval."""

    share: float  # of the first minus the second, in [−1, 1]
    low: float
    high: float

    @property
    def clear(self) -> bool:
        """Whether the interval leaves out zero."""
        return self.low > 0 or self.high < 0

    def __str__(self) -> str:
        return f"{100 * self.share:+.1f} ({100 * self.low:+.1f} to {100 * self.high:+.1f})"


def paired_difference(first: Tensor, second: Tensor, confidence: float = 0.95) -> Difference:
    """Compare two models that answered the same images.

    Only the images on which one is right and the other wrong tell them apart, so the interval is far
    narrower than those of the two accuracies.

    Args:
        first: (n,) bool, whether the first model was right.
        second: (n,) bool, the same images in the same order.
        confidence: How often the interval covers the true difference, in (0, 1).

    Source: Agresti and Min 2005, "Simple improved confidence intervals for comparing matched proportions":
    half an image is added to each of the four cells.

    >>> str(paired_difference(Tensor([1, 1, 1, 0]).bool(), Tensor([1, 0, 1, 0]).bool()))
    '+25.0 (-27.6 to +60.9)'
    """
    if first.shape != second.shape or first.dim() != 1 or not len(first):
        raise InputError(
            f"paired_difference needs two equally long lists of answers, not {tuple(first.shape)} and "
            f"{tuple(second.shape)}"
        )
    gained, lost = int((first & ~second).sum()), int((second & ~first).sum())
    n, z = len(first) + 2, NormalDist().inv_cdf((1 + confidence) / 2)
    centre = (gained - lost) / n
    half = z * (gained + lost + 1 - (gained - lost) ** 2 / n) ** 0.5 / n
    return Difference((gained - lost) / len(first), max(-1.0, centre - half), min(1.0, centre + half))
