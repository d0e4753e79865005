"""Every test starts from a seed, on two threads, with fresh memory full of NaN."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read when torch loads; spinning starves a shared machine

import pytest
import torch


@pytest.fixture(autouse=True)
def _repeatable():
    torch.manual_seed(0)
    torch.set_num_threads(2)
    torch.use_deterministic_algorithms(True)  # also fills torch.empty with NaN
    yield
    torch.use_deterministic_algorithms(False)
