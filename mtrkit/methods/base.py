"""What a reduction method is, and how one is registered."""

import dataclasses
import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from mtrkit.errors import OptionError
from mtrkit.ops import Append, Lengths
from mtrkit.registry import Registry
from mtrkit.schedule import Place, Placement, Widths
from mtrkit.types import BlockState, Decision

Alignment = Literal["carry", "bias", "last"]
"""The state goes on unchanged; or it decays by the Δ that a token without content would have; or by its last Δ."""


@dataclass(frozen=True)
class MethodConfig:
    """Base of every method's options: checked when written, equal by value, plain data.

    Subclasses are frozen dataclasses too. A ``Literal`` field takes only its values, an ``int``, ``float`` or
    ``bool`` one only such numbers, and within the bounds that :func:`bounded` sets.

    Attributes:
        lengths: How many positions each token lasts in later blocks, whose convolutions and scans count positions:
            ``"one"``, as the papers have it; ``"sizes"``, as many as tokens were merged into it; ``"positions"``, those
            that it is the nearest token to.
    """

    lengths: Lengths = "one"

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self))
        for field in dataclasses.fields(self):
            _check(field.name, getattr(self, field.name), hints[field.name], field.metadata)

    @property
    def reads(self) -> frozenset[str]:
        """Names of the :class:`~mtrkit.types.BlockState` signals that the method needs with these options."""
        return frozenset()

    @property
    def alignment(self) -> Alignment:
        """What the scans of later blocks do where tokens were dropped; the default is nothing."""
        return "carry"

    @property
    def place(self) -> Place:
        """Where a reducing block reduces; between attention and MLP is for blocks that have these."""
        return "after_block"

    @property
    def proportional_attention(self) -> bool:
        """Whether attention to a merged token is multiplied by its size; for blocks of attention and MLP."""
        return False

    @property
    def counts_links(self) -> bool:
        """Whether tokens leave by the strength of a link, so that a threshold may say how many."""
        return False

    @property
    def fits_chain(self) -> bool:
        """Whether the method's ``append`` serves these options, on sequences that are of one frame."""
        return False

    def flops(self, num_tokens: int, num_kept: int, widths: Widths) -> int:
        """Floating-point operations of one reduction, counted as its paper counts them; default none."""
        del num_tokens, num_kept, widths
        return 0


def bounded(default: Any, least: float, most: float = math.inf) -> Any:
    """A field of a :class:`MethodConfig` for numbers from ``least`` to ``most``."""
    return dataclasses.field(default=default, metadata={"least": least, "most": most})


def _check(name: str, value: Any, hint: Any, bounds: Mapping[str, float]) -> None:
    if get_origin(hint) is Literal and value not in get_args(hint):
        raise OptionError(f"{name}={value!r} is not an option; choose one of {list(get_args(hint))}")
    if hint is bool and type(value) is not bool:
        raise OptionError(f"{name} is a switch, True or False, not {value!r}")
    if hint in (int, float):
        allowed = (int,) if hint is int else (int, float)
        least, most = bounds.get("least", -math.inf), bounds.get("most", math.inf)
        if type(value) not in allowed or not math.isfinite(value) or not least <= value <= most:
            kind = "an integer" if hint is int else "a number"
            raise OptionError(f"{name} must be {kind} from {least:g} to {most:g}, not {value!r}")


Config = TypeVar("Config", bound=MethodConfig)
Decide = Callable[[BlockState, int, Any], Decision]


@dataclass(frozen=True)
class Method:
    """A registered method.

    Attributes:
        name: How users ask for it.
        decide: ``(state, num_kept, config) -> Decision``; sees the block that has just run, is called once
            per reducing block, and must not loop over the batch nor synchronise with the host.
        config: The dataclass of its options.
        max_share: Largest share of the tokens present that one application may remove.
        summary: The first line of its docstring.
        source: Paper.
        on_attention: Options whose default differs on models whose blocks are attention and MLP.
        layers: Where it reduces by default; ``None``: as the others do.
        append: The same decision as jobs of a chain, for options that say :attr:`MethodConfig.fits_chain`. The tensors
            that it is given have no values until the chain runs. ``None``: the method has no such form.
    """

    name: str
    decide: Decide
    config: type[MethodConfig]
    max_share: float
    summary: str
    source: str
    on_attention: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    layers: Placement | None = None
    append: Append | None = None

    def configure(self, options: dict[str, Any], attention: bool = False) -> MethodConfig:
        """Build the options, or raise :class:`OptionError` naming those that exist.

        Args:
            options: What the user gives; the rest are defaults.
            attention: Whether these are the defaults for blocks of attention and MLP.
        """
        known = [field.name for field in dataclasses.fields(self.config)]
        unknown = sorted(set(options) - set(known))
        if unknown:
            raise OptionError(
                f"method {self.name!r} has no option {', '.join(map(repr, unknown))}; it has: "
                f"{', '.join(known) or 'none'}"
            )
        return self.config(**({**self.on_attention, **options} if attention else options))


METHODS: Registry[Method] = Registry("method", plugins=True)


def register_method(
    name: str,
    *,
    config: type[MethodConfig] = MethodConfig,
    max_share: float = 0.5,
    source: str = "",
    on_attention: Mapping[str, Any] | None = None,
    layers: Placement | None = None,
    append: Append | None = None,
) -> Callable[[Decide], Decide]:
    """Decorate a function ``(state, num_kept, config) -> Decision`` to make it a method.

    Args:
        name: How users ask for it; a name that is taken raises :class:`OptionError`.
        config: Frozen dataclass of its options, a :class:`MethodConfig`.
        max_share: Largest share of the tokens present that one application may remove, in (0, 1].
        source: Paper and section.
        on_attention: Options whose default differs on models whose blocks are attention and MLP. Default: none.
        layers: Where it reduces if the user does not say. Default: :func:`mtrkit.schedule.default_layers`.
        append: See :class:`Method`; only for speed.
    """

    def register(decide: Decide) -> Decide:
        summary = (inspect.getdoc(decide) or "").split("\n")[0]
        METHODS.add(name, Method(name, decide, config, max_share, summary, source, on_attention or {}, layers, append))
        return decide

    return register
