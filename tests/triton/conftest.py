"""Where the kernels can run: on a GPU, or on a CPU in Triton's interpreter.

Triton reads the variable that turns the interpreter on when it is imported, so the tests of a normal run skip here, and
``test_in_the_interpreter.py`` runs them in a process of its own.
"""

import pytest
import torch

from mtrkit.scan import use_scan_backend
from mtrkit.triton import availability
from tests.helpers.tolerances import SCAN_GRADIENTS, SCAN_VALUES
from tests.scan.conftest import Way


@pytest.fixture(autouse=True)
def _rounding(monkeypatch):
    """The interpreter cuts float32 off to bfloat16 where a GPU rounds, which makes twice the error."""
    if availability.interpreted():
        for bounds in (SCAN_VALUES, SCAN_GRADIENTS):
            monkeypatch.setitem(bounds, torch.bfloat16, 2 * bounds[torch.bfloat16])


@pytest.fixture
def device():
    """A device whose tensors the kernels take."""
    available, reason = availability.status()
    if not available:
        pytest.skip(reason)
    return "cpu" if availability.interpreted() else "cuda"


@pytest.fixture
def way(device):
    """What the parity tests of all backends take."""
    return Way("triton", device)


@pytest.fixture
def by_triton(device):
    """Everything runs on the kernels."""
    with use_scan_backend("triton"):
        yield device


@pytest.fixture
def launches(monkeypatch):
    """Names of the kernels that are launched."""
    from mtrkit.triton import conv, mixer, norm, scan, tokens

    found = []
    for module in (conv, mixer, norm, scan, tokens):
        launch = module.launch
        monkeypatch.setattr(
            module, "launch", lambda kernel, *rest, launch=launch, **sizes: (
                found.append(kernel.__name__), launch(kernel, *rest, **sizes)
            )
        )  # fmt: skip
    return found
