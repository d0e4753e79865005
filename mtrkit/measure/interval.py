"""How sure one can be of a share that was counted on n samples."""

from statistics import NormalDist

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
