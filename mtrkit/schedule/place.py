"""Which blocks reduce. Layers are counted from 1, as in the papers: "after block 5, 10, 15"."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

from mtrkit.errors import OptionError

Place = Literal["after_block", "before_mlp"]
"""Where a reducing block reduces: behind all of it, or between its attention and its MLP."""


@runtime_checkable
class Placement(Protocol):
    """A rule that names the reducing blocks of a model of any depth."""

    def layers(self, depth: int) -> tuple[int, ...]:
        """The blocks, counted from 1, after which tokens are reduced."""
        ...


@dataclass(frozen=True)
class EveryNth:
    """Reduce after every n-th block, as R-MeeTo does (arXiv:2412.12496).

    Args:
        n: Distance between two reducing blocks, at least 1.
        start: First reducing block. Default: ``n``. With 24 blocks ``EveryNth(2)`` is R-MeeTo's even set
            2, 4, …, 22 and ``EveryNth(2, start=1)`` its odd set 1, 3, …, 23.

    Raises:
        OptionError: ``n`` or ``start`` is not an integer of at least 1.
    """

    n: int
    start: int | None = None

    def __post_init__(self) -> None:
        for name, value in (("n", self.n), ("start", self.n if self.start is None else self.start)):
            if type(value) is not int or value < 1:
                raise OptionError(f"EveryNth.{name} must be an integer of at least 1, not {value!r}")

    def layers(self, depth: int) -> tuple[int, ...]:
        """The blocks start, start + n, … that have another block behind them."""
        return tuple(range(self.n if self.start is None else self.start, depth, self.n))


@dataclass(frozen=True)
class FromTheFirst:
    """Reduce after the first block and at equal distances from there, a quarter of the depth apart: 1, 7, 13 of 24.

    Args:
        count: How many blocks reduce, at least 1.

    Raises:
        OptionError: ``count`` is not an integer of at least 1.
    """

    count: int = 3

    def __post_init__(self) -> None:
        if type(self.count) is not int or self.count < 1:
            raise OptionError(f"FromTheFirst.count must be an integer of at least 1, not {self.count!r}")

    def layers(self, depth: int) -> tuple[int, ...]:
        """Those that have another block behind them."""
        step = max(1, depth // 4)
        return tuple(layer for layer in range(1, 1 + self.count * step, step) if layer < depth)


def default_layers(depth: int) -> tuple[int, ...]:
    """Three reductions in the first two thirds of the model: after blocks 5, 10, 15 of 24.

    MTR (arXiv:2507.14042) does not say where it reduces; this is the set of HSA (arXiv:2409.18962), and
    the one that MTR's figures agree with.
    """
    step = max(1, (5 * depth + 12) // 24)  # rounded to the nearest, a half up
    return tuple(layer for layer in (step, 2 * step, 3 * step) if layer < depth)


def resolve_layers(layers: Sequence[int] | Placement | None, depth: int, last: int | None = None) -> tuple[int, ...]:
    """Turn what a user gives into the reducing blocks of a model of ``depth`` blocks, in rising order.

    Args:
        layers: Block numbers counted from 1, in any order, a :class:`Placement`, or ``None`` for
            :func:`default_layers`.
        depth: Number of blocks.
        last: Last block that may reduce. Default: depth − 1, as a reduction after the last block saves nothing.

    Raises:
        OptionError: A number is not an integer, appears twice, or is outside 1 … ``last``.
    """
    last = depth - 1 if last is None else last
    if layers is None:
        return default_layers(depth)
    given = layers.layers(depth) if isinstance(layers, Placement) else _as_tuple(layers)
    wrong = [layer for layer in given if type(layer) is not int or not 1 <= layer <= last]
    if wrong:
        saves = ", and after the last one nothing is saved" if last < depth else ""
        raise OptionError(
            f"layers={given!r} names {wrong!r}, but the reducing blocks of a model with {depth} blocks are "
            f"integers from 1 to {last}: counted from 1{saves}"
        )
    if len(set(given)) < len(given):
        raise OptionError(f"layers={given!r} names a block twice; one block reduces once")
    return tuple(sorted(given))


def _as_tuple(layers: object) -> tuple[int, ...]:
    if isinstance(layers, str) or not isinstance(layers, Sequence):
        raise OptionError(
            f"layers must be a sequence of block numbers or a placement such as EveryNth(2), not {layers!r}"
        )
    return tuple(layers)
