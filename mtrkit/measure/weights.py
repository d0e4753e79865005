"""The weights of a model: what identifies them, and models that share them."""

import copy
import hashlib
from itertools import chain
from typing import TypeVar

import torch
from torch import nn

M = TypeVar("M", bound=nn.Module)


def weights_digest(model: nn.Module) -> str:
    """Sixteen hex digits that change with any name, shape, dtype or bit of the state dict."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def twin(model: M, own_buffers: bool = False) -> M:
    """A copy with the same weight tensors, not copies of them: patches apart, in memory one model.

    Args:
        model: Any.
        own_buffers: Whether buffers are copied, as a pass in training mode changes the statistics of norms.
    """
    tensors = model.parameters() if own_buffers else chain(model.parameters(), model.buffers())
    return copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})
