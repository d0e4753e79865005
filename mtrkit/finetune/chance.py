"""Random states that depend on given numbers alone."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def seeded(*numbers: int) -> Iterator[None]:
    """All random states from these numbers alone inside, that of a GPU in use too, and as they were afterwards."""
    generators = [torch.random.default_generator]
    if torch.cuda.is_initialized():
        generators.append(torch.cuda.default_generators[torch.cuda.current_device()])
    state = random.getstate(), np.random.get_state(), [generator.get_state() for generator in generators]
    words = np.random.SeedSequence([number % 2**64 for number in numbers]).generate_state(3)
    random.seed(int(words[0]))
    np.random.seed(int(words[1]))
    for generator in generators:
        generator.manual_seed(int(words[2]))
    try:
        yield
    finally:
        random.setstate(state[0])
        np.random.set_state(state[1])
        for generator, before in zip(generators, state[2], strict=True):
            generator.set_state(before)
