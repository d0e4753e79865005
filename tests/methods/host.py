"""A stand-in for a model: blocks in which tokens see those before them, and the signals that methods read."""

import numpy as np
import torch

from mtrkit.methods import METHODS
from mtrkit.ops import open_stream, reduce_stream
from mtrkit.types import BlockState, ReducedStream, Signals
from tests.methods.plain import Image

WIDTH, INNER, STATE = 6, 12, 4
SIGNALS = {"delta": INNER, "B": STATE, "C": STATE, "y": INNER}


class Host:
    """Random weights; every block is the same function of the tokens and of their order."""

    def __init__(self, seed):
        rng = torch.Generator().manual_seed(seed)

        def weights(*shape):
            return torch.randn(*shape, generator=rng, dtype=torch.float64)

        self.mix = weights(WIDTH, WIDTH)
        self.read = {name: weights(WIDTH, width) for name, width in SIGNALS.items()}

    def block(self, hidden, residual):
        """(B, L, D) twice, and the signals: each token meets the mean of all before it."""
        residual = residual + hidden
        count = torch.arange(1, hidden.shape[1] + 1, dtype=torch.float64)[:, None]
        hidden = torch.tanh((residual + residual.cumsum(1) / count) @ self.mix)
        signals = {name: hidden @ weight for name, weight in self.read.items()}
        return hidden, residual, signals | {"delta": signals["delta"].exp()}


def tokens(batch, length, seed):
    """(B, L, D) random tokens."""
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(batch, length, WIDTH, generator=rng, dtype=torch.float64)


def columns(slot, classes):
    """(B, S) where the class tokens are now."""
    return slot[:, list(classes)]


def decide(name, hidden, residual, stream, classes, signals, num_kept, /, **options):
    """Ask a registered method."""
    method = METHODS.get(name)
    fields = {"delta": "delta", "B": "ssm_B", "C": "ssm_C", "y": "y"}
    seen = {fields[key]: value for key, value in signals.items()}
    state = BlockState(hidden, residual, stream.size, columns(stream.slot, classes), Signals(**seen))
    return method.decide(state, num_kept, method.configure(options))


def run(name, start, classes, counts, seed=0, /, **options):
    """mtrkit's method behind every block of the host; returns hidden states, stream and decisions."""
    host = Host(seed)
    hidden, stream = start, open_stream(torch.zeros_like(start))
    decisions = []
    for count in counts:
        hidden, residual, signals = host.block(hidden, stream.residual)
        stream = stream._replace(residual=residual)
        kept = hidden.shape[1] - count
        decisions.append(decide(name, hidden, residual, stream, classes, signals, kept, **options))
        hidden, stream = reduce_stream(hidden, stream, decisions[-1].token_map, decisions[-1].hidden_map)
    return hidden, stream, decisions


def run_plainly(reduce, start, classes, counts, seed=0, /, **options):
    """The plain loop behind every block of the host, for one image (L, D)."""
    host, length = Host(seed), len(start)
    hidden, residual = start[None], torch.zeros_like(start)[None]
    image = Image(None, None, [1] * length, list(classes), [[i] for i in range(length)], {})
    for count in counts:
        hidden, residual, signals = host.block(hidden, residual)
        image.hidden, image.residual = hidden[0].numpy(), residual[0].numpy()
        image.signals = {name: value[0].numpy() for name, value in signals.items()}
        image = reduce(image, count, **options)
        hidden, residual = (torch.from_numpy(np.stack(rows))[None] for rows in (image.hidden, image.residual))
    return image


def slots(image, length):
    """Where each original position is now, −1 if nowhere."""
    found = [-1] * length
    for slot, origin in enumerate(image.origin):
        for position in origin:
            found[position] = slot
    return found


def assert_same(name, reduce, *, batch=3, length=25, classes=(12,), counts=(5, 4, 3), seed=0, **options):
    """mtrkit on a batch and the loop on each of its images: equal indices, values to 1e-6."""
    start = tokens(batch, length, seed)
    hidden, stream, _ = run(name, start, classes, counts, seed, **options)
    assert isinstance(stream, ReducedStream)
    for i in range(batch):
        image = run_plainly(reduce, start[i], classes, counts, seed, **options)
        assert stream.slot[i].tolist() == slots(image, length)
        assert stream.slot[i, list(classes)].tolist() == image.classes
        assert stream.size[i, :, 0].tolist() == image.size
        np.testing.assert_allclose(hidden[i].numpy(), image.hidden, rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(stream.residual[i].numpy(), image.residual, rtol=1e-6, atol=1e-6)
