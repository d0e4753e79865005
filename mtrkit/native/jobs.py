"""How tensors are handed to the compiled library: the structs of jobs.h field by field, and what may go into them.

C reads memory by address, so every tensor passes one of the functions below on its way. They settle what can be
settled (another dtype, strides, a lazy negation) and refuse the rest.
"""

import struct
from collections.abc import Collection, Iterable, Mapping, Sequence

import torch
from torch import Tensor

from mtrkit.errors import InputError

SCAN_SIZES = ("batch", "channels", "length", "states", "groups", "softplus", "reverse", "rank", "add", "sum_steps")
SCAN_VIEWS = ("u", "delta", "z", "y", "dy", "du", "ddelta", "dz", "step", "ungated")
SCAN_ROWS = ("B", "C", "dt")
SCAN_PLACES = ("dt_weight", "A", "D", "bias", "last", "dlast", "checkpoints", "sums", "dBC", "lengths", "left_out")

HEADER = struct.Struct("2q")
SCAN = struct.Struct(f"{len(SCAN_SIZES)}q{4 * len(SCAN_VIEWS)}q{4 * len(SCAN_ROWS)}q{len(SCAN_PLACES)}q")
CONV = struct.Struct("6q16q4q")
PROJECT = struct.Struct("6q16q4q2q4q4q")  # a convolution's, then the product's
PACK = struct.Struct("5qd2q")
NORM = struct.Struct("3qd5q")
MIXER = struct.Struct("12qd11q14q2q")  # of mixer.h
MATCH = struct.Struct("10q")
COSINES = struct.Struct("9q")
SLOTS = struct.Struct("11q")
MERGE = struct.Struct("10q")
SPLIT = struct.Struct("11q")
BY_TURNS = struct.Struct("7q")
NEIGHBORS = struct.Struct("12q")
LINKS = struct.Struct("8q")
FOLLOW = struct.Struct("7q")
ROUND = struct.Struct("3q")
ADD = struct.Struct("4q")
NARROW = struct.Struct("3q")
SUM = struct.Struct("3qd2q")
SOFTPLUS = struct.Struct("3q8qq")

# In the order in which mtr_layout of native.c gives the sizes of its structs.
LAYOUT = (
    *(HEADER, SCAN, CONV, SUM, SOFTPLUS, PROJECT, PACK, NORM, MATCH, COSINES, SLOTS, MERGE, SPLIT),
    *(BY_TURNS, NEIGHBORS, LINKS, FOLLOW, ROUND, ADD, NARROW, MIXER),
)

NO_VIEW = (0, 0, 0, 0)
_PLAIN = {Tensor, torch.nn.Parameter}
_TAKES_NOTHING_OVER = Tensor.__torch_dispatch__


def has_memory(x: Tensor) -> bool:
    """Whether the elements of ``x`` lie where its address and strides say.

    Subclasses that take operators over (quantised weights, DTensor, fake tensors) may hold nothing there, and a
    negated or conjugated view holds other numbers than it shows.
    """
    plain = type(x).__torch_dispatch__ is _TAKES_NOTHING_OVER and x.layout is torch.strided
    return plain and not x.is_neg() and not x.is_conj()


def as_float(x: Tensor) -> Tensor:
    """In float32 on the CPU, whatever its strides; what has no memory of its own there is refused."""
    if not x.is_floating_point():
        raise InputError(f"a tensor has dtype {x.dtype}; give real floating-point numbers")
    if not x.is_cpu:
        raise InputError(f"a tensor is on {x.device} and others are on the CPU; move them to one device")
    if not has_memory(x):
        x = x.resolve_neg().resolve_conj()
        if not has_memory(x):
            raise InputError(
                f"a tensor is a {type(x).__name__}, which does not hold plain numbers; give a torch.Tensor, or choose "
                'the backend "reference", which calls no compiled code'
            )
    return x if x.dtype is torch.float32 else x.float()


def dense(x: Tensor) -> Tensor:
    """:func:`as_float`, and contiguous."""
    x = as_float(x)
    return x if x.is_contiguous() else x.contiguous()


def dense_half(x: Tensor) -> Tensor | None:
    """A contiguous bfloat16 tensor as it is; ``None`` for any other, which :func:`dense` takes."""
    plain = x.dtype is torch.bfloat16 and x.is_cpu and x.is_contiguous() and has_memory(x)
    return x if plain else None


def positions(x: Tensor) -> Tensor:
    """Contiguous int64 on the CPU; the compiled library takes them for what they should be."""
    if x.dtype is not torch.int64 or not x.is_cpu or not has_memory(x):
        raise InputError(
            f"positions are a {type(x).__name__} of {x.dtype} on {x.device}; give a torch.Tensor of int64 on the CPU, "
            "where the tokens are"
        )
    return x.contiguous()


def view_of(x: Tensor | None) -> tuple[int, int, int, int]:
    """Address and strides of a (B, E, L) tensor."""
    if x is None:
        return NO_VIEW
    batch, channel, time = x.stride()
    return (address(x), batch, channel, time)


def rows_of(x: Tensor | None) -> tuple[int, int, int, int]:
    """Address and strides of a (B, G, N, L) tensor whose third dimension has stride 1."""
    if x is None:
        return NO_VIEW
    batch, group, _, time = x.stride()
    return (address(x), batch, group, time)


def dense_places(tensors: Iterable[Tensor | None], as_they_are: Collection[int] = ()) -> tuple[list[int], list[Tensor]]:
    """Addresses of :func:`dense` tensors, and those that had to be made so: to be held until the job has run.

    The same checks, in an order in which plain weights pass them fast: a mixer asks this of twenty tensors. Those whose
    ids are in ``as_they_are`` have another dtype, which the job knows.
    """
    places, made = [], []
    for x in tensors:
        if x is None:
            places.append(0)
            continue
        plain = x.dtype is torch.float32 and type(x) in _PLAIN and x.is_cpu and x.layout is torch.strided
        if not (plain and x.is_contiguous() and not x.is_neg()):
            x = x if id(x) in as_they_are else dense(x)
            made.append(x)
        places.append(x.data_ptr() or address(x))
    return places, made


def address(x: Tensor | None) -> int:
    """Where a tensor lies; 0 without one."""
    if x is None:
        return 0
    found = x.data_ptr()
    if not found and x.numel():
        raise InputError(
            "a tensor's memory was freed, as FSDP does with weights between passes; call the wrapped module, not its "
            "inside"
        )
    return found


def pack_scan(
    sizes: Mapping[str, int],
    views: Mapping[str, Tensor | None],
    rows: Mapping[str, Tensor | None],
    places: Mapping[str, Tensor | None],
) -> bytes:
    """A scan's job from its fields by name; those that are not named are 0 or absent."""
    return SCAN.pack(
        *(sizes.get(name, 0) for name in SCAN_SIZES),
        *_flat([view_of(views.get(name)) for name in SCAN_VIEWS]),
        *_flat([rows_of(rows.get(name)) for name in SCAN_ROWS]),
        *(address(places.get(name)) for name in SCAN_PLACES),
    )


def _flat(parts: Sequence[tuple[int, ...]]) -> list[int]:
    return [number for part in parts for number in part]
