"""Random states that depend on given numbers alone."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def seeded(*numbers: int) -> Iterator[None]:
    """All three random states from these numbers alone inside, and as they were afterwards."""
    state = random.getstate(), np.random.get_state(), torch.random.get_rng_state()
    words = np.random.SeedSequence([number % 2**64 for number in numbers]).generate_state(3)
    random.seed(int(words[0]))
    np.random.seed(int(words[1]))
    torch.random.default_generator.manual_seed(int(words[2]))
    try:
        yield
    finally:
        random.setstate(state[0])
        np.random.set_state(state[1])
        torch.random.set_rng_state(state[2])
