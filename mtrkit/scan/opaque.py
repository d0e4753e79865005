"""All blocks of a model as one operator for torch.compile on a CPU, inside of which they run as without a compiler.

The compiled library runs all blocks in one call, so a compiler has nothing to gain between them. And what runs is the
model as it then is: with a reduction or without, with hooks, with a ``forward`` that somebody has set.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple
from uuid import uuid4
from weakref import WeakKeyDictionary, WeakValueDictionary

import torch
from torch import Tensor, nn

from mtrkit.errors import InputError
from mtrkit.scan.fastpath import for_inference, inference_kernels, plain_tensors
from mtrkit.scan.kernels import NATIVE
from mtrkit.scan.operators import refuse_derivatives

_CAN_TELL = hasattr(torch.compiler, "is_exporting")  # from torch 2.7 on

_lib = torch.library.Library("mtrkit", "FRAGMENT")
# The tag keeps a compiler from taking two calls for one: with hooks or random numbers inside they need not be.
_lib.define(
    "run_blocks(Tensor tokens, Tensor number, Tensor[] weights) -> Tensor", tags=(torch.Tag.nondeterministic_seeded,)
)


class OpaqueBlocks(nn.Module):
    """A model whose blocks may be one operator."""

    layers: nn.ModuleList
    norm_f: nn.Module

    def __init__(self) -> None:
        super().__init__()
        self._enter()

    def __setstate__(self, state: dict[str, Any]) -> None:
        """A copy is a model of its own."""
        super().__setstate__(state)
        self._enter()

    def _enter(self) -> None:
        """Take a number that no model in any process has; in a tensor, or it would be compiled as a constant."""
        number = uuid4().int >> 66
        self._number = torch.tensor(number, device="cpu")
        _models[number] = self

    def run_blocks(self, tokens: Tensor) -> Tensor:
        """Embedded tokens (B, L, D) to normalised ones (B, L, D), through all blocks."""
        raise NotImplementedError


_models: WeakValueDictionary[int, OpaqueBlocks] = WeakValueDictionary()
_places: WeakKeyDictionary[OpaqueBlocks, "list[_Place]"] = WeakKeyDictionary()


class _Place(NamedTuple):
    """Where a module of the model holds a tensor."""

    name: str
    owner: dict[str, Tensor | None]
    key: str


def through_blocks(model: OpaqueBlocks, tokens: Tensor) -> Tensor:
    """``model.run_blocks(tokens)``: as one operator if torch.compile looks, for inference on a CPU.

    It is given the weights too: a compiler may have put other values in their place, which the model does not know of.
    """
    if torch.compiler.is_compiling() and _fits(tokens):
        weights = [x for part in (model.layers, model.norm_f) for x in (*part.parameters(), *part.buffers())]
        if plain_tensors(weights) and all(x.is_cpu for x in weights):
            found: Tensor = torch.ops.mtrkit.run_blocks.default(tokens, model._number, weights)
            return found
    return model.run_blocks(tokens)


def _fits(tokens: Tensor) -> bool:
    """Whether the operator may stand for blocks; not in a file, which has to run without mtrkit."""
    if not _CAN_TELL or torch.compiler.is_exporting():
        return False
    return for_inference(tokens) and inference_kernels(tokens) == NATIVE


def _run_blocks(tokens: Tensor, number: Tensor, weights: list[Tensor]) -> Tensor:
    model = _models.get(int(number))
    if model is None:
        raise InputError("the model that torch.compile has compiled is not in this process; compile it here")
    if _holds(model, weights):
        found = model.run_blocks(tokens)
    else:
        values = {f"model.{place.name}": x for place, x in zip(_places[model], weights, strict=True)}
        found = torch.func.functional_call(_Blocks(model), values, (tokens,))
    return found.clone() if found.data_ptr() == tokens.data_ptr() else found


class _Blocks(nn.Module):
    """The blocks of a model, as a module's ``forward``."""

    def __init__(self, model: OpaqueBlocks) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor) -> Tensor:
        """As of :meth:`OpaqueBlocks.run_blocks`."""
        return self.model.run_blocks(tokens)


def _holds(model: OpaqueBlocks, weights: list[Tensor]) -> bool:
    """Whether these are the model's own weights, in the order of :func:`through_blocks`."""
    if model in _places and _are_at(_places[model], weights):
        return True
    _places[model] = [*_find_places(model)]  # a part may be another one than before
    return _are_at(_places[model], weights)


def _are_at(places: list[_Place], weights: list[Tensor]) -> bool:
    if len(places) != len(weights):
        return False
    return all(_is_same(place.owner.get(place.key), x) for place, x in zip(places, weights, strict=True))


def _is_same(own: Tensor | None, x: Tensor) -> bool:
    if own is x:
        return True
    return own is not None and own.data_ptr() == x.data_ptr() and own.stride() == x.stride() and own.shape == x.shape


def _find_places(model: OpaqueBlocks) -> Iterator[_Place]:
    for name in ("layers", "norm_f"):
        part = model.get_submodule(name)
        for kind, tensors in (("_parameters", part.named_parameters()), ("_buffers", part.named_buffers())):
            for path, _ in tensors:
                module, _, key = path.rpartition(".")
                yield _Place(f"{name}.{path}", getattr(part.get_submodule(module), kind), key)


def _shapes(tokens: Tensor, number: Tensor, weights: list[Tensor]) -> Tensor:
    return tokens.new_empty(tokens.shape)


_lib.impl("run_blocks", _run_blocks, "CompositeExplicitAutograd")
torch.library.register_fake("mtrkit::run_blocks", _shapes, lib=_lib)
refuse_derivatives("run_blocks")
