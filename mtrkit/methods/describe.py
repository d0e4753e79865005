"""What the options of a method are, read from its config: names, defaults, allowed values, and what they mean."""

import dataclasses
import inspect
import math
import re
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin, get_type_hints

from mtrkit.methods.base import Method

_ENTRY = re.compile(r"    (\w+): (.+)")
_ROLE = re.compile(r":\w+:`~?(?:[\w.]*\.)?(\w+)`")


@dataclass(frozen=True)
class Option:
    """One option of a method.

    Attributes:
        name: As ``apply_reduction`` takes it.
        default: Its value if it is not given.
        default_on_attention: The same on models whose blocks are attention and MLP.
        values: What it may be, in words.
        meaning: What it does, from the docstring of the config.
    """

    name: str
    default: Any
    default_on_attention: Any
    values: str
    meaning: str


def describe_options(method: Method) -> list[Option]:
    """Every option of a method, in the order of its config.

    >>> from mtrkit.methods import METHODS
    >>> [option.name for option in describe_options(METHODS.get("evit"))]
    ['lengths', 'indicator', 'metric', 'fuse', 'order']
    """
    hints, config = get_type_hints(method.config), method.config()
    found = []
    for field in dataclasses.fields(method.config):
        default = getattr(config, field.name)
        found.append(
            Option(
                name=field.name,
                default=default,
                default_on_attention=method.on_attention.get(field.name, default),
                values=_values(hints[field.name], field.metadata),
                meaning=_meaning(method.config, field.name),
            )
        )
    return found


def _values(hint: Any, bounds: Any) -> str:
    if get_origin(hint) is Literal:
        return ", ".join(map(str, get_args(hint)))
    if hint is bool:
        return "True, False"
    if hint not in (int, float):
        return str(hint)
    least, most = bounds.get("least", -math.inf), bounds.get("most", math.inf)
    kind = "whole number" if hint is int else "number"
    return f"{kind}{_bound(' from ', least)}{_bound(' to ', most)}"


def _bound(word: str, value: float) -> str:
    return f"{word}{value:.10g}" if math.isfinite(value) else ""


def _meaning(config: type, name: str) -> str:
    """The first docstring along the bases that says it; one that only refers to a base is passed over."""
    for cls in config.__mro__:
        text = _entries(cls).get(name, "")
        if text and not text.startswith("See :"):
            return _ROLE.sub(r"\1", text).replace("``", "")
    return ""


def _entries(cls: type) -> dict[str, str]:
    """Name → text of the section "Attributes" of a class's own docstring."""
    _, _, section = inspect.cleandoc(vars(cls).get("__doc__") or "").partition("\nAttributes:\n")
    entries: dict[str, str] = {}
    name = ""
    for line in section.partition("\n\n")[0].splitlines():
        entry = _ENTRY.fullmatch(line)
        if entry:
            name, entries[entry[1]] = entry[1], entry[2]
        elif name:
            entries[name] += f" {line.strip()}"
    return entries
