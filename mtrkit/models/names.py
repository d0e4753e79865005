"""Find a model's parameters among the names of a checkpoint, whatever wrappers they went through."""

import re
from collections import Counter
from collections.abc import Iterable
from typing import Literal, TypeVar

from mtrkit.errors import CheckpointError

T = TypeVar("T")
Ema = bool | Literal["auto"]

_INSIDE = re.compile(r"(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")  # wrappers of torch
_AROUND = re.compile(r"(?:module\.)+")  # of DataParallel and DistributedDataParallel: around the whole model alone
_AVERAGED = re.compile(r"(?:^|[._])(?:ema|teacher)[._]")


def says_averaged(name: str) -> bool:
    """Whether something in a name or prefix says that the weights are averaged over the training."""
    return _AVERAGED.search(name) is not None


def unwrap(state: dict[str, T]) -> tuple[dict[str, T], str]:
    """Take off what torch's own wrappers put before or into names; return that too, ``""`` if there was nothing."""
    taken = sorted({found for name in state for found in _INSIDE.findall(name)})
    names = {name: _INSIDE.sub("", name) for name in state}
    around = {match[0] if (match := _AROUND.match(name)) else "" for name in names.values()}
    if len(around) == 1 and (prefix := around.pop()):
        names = {name: short.removeprefix(prefix) for name, short in names.items()}
        taken = [prefix, *taken]
    if len(set(names.values())) < len(names):  # two would become one: they are not what they seem
        return state, ""
    return {names[name]: value for name, value in state.items()}, " and ".join(map(repr, taken))


def find_names(state: dict[str, T], expected: Iterable[str], ema: Ema = "auto") -> tuple[dict[str, T], str]:
    """Take the part of a checkpoint that has a model's names behind one prefix.

    The prefix is the one behind which most of the names are. What stands before other names is left out, but for
    names of the model that are found a step further out (``head.weight`` beside ``backbone.layers...``).

    Args:
        state: By the file's names.
        expected: The model's names.
        ema: Whether the prefix has to say that the weights are averaged. Default: taken if there is no other.

    Returns:
        The state by the model's names, and a sentence on what was done; the same state and ``""`` without a prefix.

    Raises:
        CheckpointError: Two prefixes have equally many of the names, or none is of the wanted kind.
    """
    wanted = set(expected)
    prefix = _prefix(state, wanted, ema)
    if not prefix:
        return state, ""
    inside = {name.removeprefix(prefix): name for name in state if name.startswith(prefix)}
    for outer in _outward(prefix):
        inside |= {name: outer + name for name in wanted - inside.keys() if outer + name in state}
    others = [name.partition(".")[0] for name in state.keys() - inside.values()]
    dropped = f" and left out {len(others)} others ({', '.join(sorted(set(others)))})" if others else ""
    found = {name: state[inside[name]] for name in sorted(inside)}
    return found, f"took the prefix {prefix!r} off the names{dropped}"


def _prefix(state: Iterable[str], wanted: set[str], ema: Ema) -> str:
    """What stands before most of the wanted names; empty if nothing does."""
    counts = Counter(prefix for name in state for prefix in ("", *_heads(name)) if name.removeprefix(prefix) in wanted)
    if not counts:
        return ""
    most = max(counts.values())
    best = [prefix for prefix, count in counts.items() if count == most]
    asked = [prefix for prefix in best if says_averaged(prefix) == (ema is True)]
    if not asked and ema != "auto":
        kind = "averaged" if ema else "plain"
        raise CheckpointError(f"the names are there behind {' and '.join(map(repr, best))}, not as {kind} weights")
    asked = asked or best
    if "" in asked:
        return ""
    if len(asked) > 1:
        raise CheckpointError(f"the names are there behind {' and '.join(map(repr, asked))}; leave one of them")
    return asked[0]


def _heads(name: str) -> Iterable[str]:
    """``"a."`` and ``"a.b."`` of ``"a.b.c"``."""
    return (name[: dot.end()] for dot in re.finditer(r"\.", name))


def _outward(prefix: str) -> Iterable[str]:
    """``"a."`` and ``""`` of ``"a.b."``."""
    parts = prefix.split(".")[:-1]
    return (".".join([*parts[:keep], ""]) if keep else "" for keep in range(len(parts) - 1, -1, -1))
