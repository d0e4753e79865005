"""Matching by cosine in one operator, where a CPU's compiled library can run it."""

import torch
from torch import Tensor

from mtrkit.compiler import constant_result
from mtrkit.scan import jobs, library

_lib = torch.library.Library("mtrkit", "FRAGMENT")
_lib.define("nearest(Tensor metric, Tensor src, Tensor dst) -> Tensor")


def can_find_nearest(metric: Tensor) -> bool:
    """Whether :func:`find_nearest` takes this tensor."""
    return metric.dtype == torch.float32 and _runs_compiled(metric.device.type)


@constant_result  # compile takes the answer, not the search for the library
def _runs_compiled(device: str) -> bool:
    return device == "cpu" and not library.library().missing


def find_nearest(metric: Tensor, src: Tensor, dst: Tensor) -> Tensor:
    """Of tokens ``dst`` (B, t) the one most similar to each of ``src`` (B, s), by the cosine of ``metric`` (B, L, D).

    Of targets that are equal up to rounding the first. Returns (B, s).
    """
    return torch.ops.mtrkit.nearest.default(metric.detach(), src, dst)


def _nearest(metric: Tensor, src: Tensor, dst: Tensor) -> Tensor:
    metric, src, dst = jobs.dense(metric), src.contiguous(), dst.contiguous()
    found = torch.empty_like(src)
    places = (jobs.address(tensor) for tensor in (metric, src, dst, found))
    job = jobs.MATCH.pack(*metric.shape, src.shape[1], dst.shape[1], *places)
    library.library().run((library.MATCH, job))
    return found


_lib.impl("nearest", _nearest, "CPU")
torch.library.register_fake("mtrkit::nearest", lambda metric, src, dst: torch.empty_like(src), lib=_lib)
