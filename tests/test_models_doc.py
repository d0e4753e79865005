"""The shares of FLOPs in docs/models.md are what the formulas give, and the page decides on every family."""

import math
import re

import pytest
import torch

import mtrkit
from mtrkit.adapters import UNSUPPORTED
from tests.helpers.running import ROOT
from tests.standins.mamba_vision import MambaVision

PAGE = ROOT / "docs" / "models.md"
pytestmark = pytest.mark.skipif(not PAGE.exists(), reason="the page lies in the repository only")
MAMBA_VISION = {"T": (80, 32, (1, 3, 8, 4)), "S": (96, 64, (3, 3, 7, 5)), "B": (128, 64, (3, 3, 10, 5))}


def scan(dim, inner, state, directions=1, skip_and_gate=2):
    """Δ, B and C of each direction, and the scans: per token."""
    rank = math.ceil(dim / 16)
    return directions * inner * (2 * rank + 2 * state + 9 * state + skip_and_gate)


def vmamba(dim, state, ratio, mlp, gate):
    """Share of a block that its scans have."""
    inner = ratio * dim
    rest = dim * inner * (3 if gate else 2) + 9 * inner + 2 * mlp * dim * dim
    scans = scan(dim, inner, state, directions=4)
    return scans / (scans + rest)


def plain_mamba(dim, state=16):
    """The same of PlainMamba, with one Δ, B and C for all directions."""
    inner, rank = 2 * dim, math.ceil(dim / 16)
    scans = inner * (2 * rank + 2 * state) + 4 * inner * (9 * state + 2)
    return scans / (scans + 3 * dim * inner + 49 * inner)


def mamba_vision(dim, in_dim, depths, state=8):
    """Shares of MambaVision at 224: (all mixers, Mamba mixers, blocks of the third stage), of all FLOPs."""
    total = 112**2 * 27 * in_dim + 56**2 * 9 * in_dim * dim + 8 * dim * 1000
    mixers, mamba, blocks = 0, 0, []
    for stage, depth in enumerate(depths):
        width, side = dim * 2**stage, 56 // 2**stage
        length = side * side
        total += 9 * 2 * width * width * (side // 2) ** 2 if stage < 3 else 0
        if stage < 2:
            total += depth * 2 * 9 * width * width * length
            continue
        half = width // 2
        with_scan = (depth + 1) // 2 * length * (2 * width * width + 6 * half + scan(width, half, state, 1, 1))
        attention = depth // 2 * length * (4 * width * width + 2 * length * width)
        blocks.append(with_scan + attention + depth * length * 8 * width * width)
        mixers, mamba, total = mixers + with_scan + attention, mamba + with_scan, total + blocks[-1]
    return mixers / total, mamba / total, blocks[0] / total


def reachable(dim, in_dim, depths):
    """The largest ratio that the adapter can give a MambaVision of these sizes, from the error that names it."""
    with torch.device("meta"):
        model = MambaVision(dim, in_dim, depths, window_size=(8, 8, 14, 7), num_classes=1000)
    with pytest.raises(mtrkit.ScheduleError) as caught:
        mtrkit.apply_reduction(model, "tome", 0.5, input_size=(3, 224, 224))
    return float(re.search(r"up to (0\.\d+)", str(caught.value))[1])


def percent(share):
    return f"{100 * share:.0f}"


def row(*shares):
    """The end of a table's row."""
    return "".join(f" | {percent(share)} %" for share in shares)


def span(shares):
    return f"{percent(min(shares))} to {percent(max(shares))} %"


def test_numbers():
    page = PAGE.read_text()
    mixers, mamba, stage = zip(*(mamba_vision(*sizes) for sizes in MAMBA_VISION.values()), strict=True)
    assert f"all mixers of stages three and four{row(*mixers)}" in page
    assert f"Mamba mixers{row(*mamba)}" in page
    assert f"matching for free{row(*(share / 2 for share in mixers))}" in page
    assert f"MLPs included{row(*stage)}" in page
    assert f"matching paid){row(*(reachable(*sizes) for sizes in MAMBA_VISION.values()))}" in page
    widths = [96 * 2**i for i in range(4)]
    kinds = ({"state": 1, "ratio": 1}, {"state": 1, "ratio": 2}, {"state": 16, "ratio": 2})
    spans = [
        span([vmamba(d, **kind, mlp=0 if i == 2 else 4, gate=i == 2) for d in widths]) for i, kind in enumerate(kinds)
    ]
    assert f"| scans | {' | '.join(spans)} |" in page
    shares = [percent(plain_mamba(dim)) for dim in (192, 384, 448)]
    assert "{}, {} and {} %".format(*shares) in page


def test_every_family_is_decided():
    page = PAGE.read_text()
    names = [*mtrkit.list_adapters(), *(family.name for family in UNSUPPORTED)]
    assert not [name for name in names if f"`{name}`" not in page]
