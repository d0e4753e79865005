"""How much a user asks to remove."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from mtrkit.errors import OptionError
from mtrkit.schedule import Placement


class Amount(NamedTuple):
    """How much to remove, as the user says it."""

    ratio: float | None = None
    tokens: Sequence[int] | None = None
    r: int | None = None
    threshold: float | Sequence[float] | None = None

    def check(self, layers: Sequence[int] | Placement | None) -> None:
        """Raise :class:`OptionError` if it is said twice."""
        if self.tokens is not None and (self.r is not None or layers is not None):
            raise OptionError("tokens says what every block keeps; give it without r and without layers")
        given = [name for name, value in self._asdict().items() if value is not None]
        if len(given) > 1:
            raise OptionError(f"{given[0]} and {given[1]} both say how many tokens leave; give one")

    @property
    def wanted_ratio(self) -> float | None:
        """Share of the FLOPs, 0.3 if nothing is said; ``None`` if something else is."""
        if not (self.tokens is None and self.r is None and self.threshold is None):
            return None
        return 0.3 if self.ratio is None else self.ratio

    @property
    def removes(self) -> bool:
        """Whether anything may leave."""
        return self.wanted_ratio != 0

    def thresholds(self, layers: tuple[int, ...]) -> tuple[float, ...] | None:
        """The threshold of each layer, or ``None`` if none is given; :class:`OptionError` if it does not fit these."""
        given = self.threshold
        if given is None:
            return None
        if isinstance(given, int | float) and not isinstance(given, bool):
            found = (float(given),) * len(layers)
        elif isinstance(given, str) or not isinstance(given, Sequence):
            raise OptionError(f"threshold must be a number, or a list with one for each layer, not {given!r}")
        else:
            found = tuple(map(float, given))
        if len(found) != len(layers) or any(math.isnan(value) for value in found):
            raise OptionError(f"threshold must have one number for each of the layers {list(layers)}, not {given!r}")
        return found
