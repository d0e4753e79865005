"""What lies between the steps of a mixer: memory that is kept, and samples that are taken a few at a time."""

import threading

import pytest
import torch

from mtrkit.native import library
from mtrkit.native import mixer as native
from mtrkit.native import workspace as kept
from tests.scan.test_fused import cast, make_weights

pytestmark = pytest.mark.skipif(bool(library.library().missing), reason="no compiled library")


def test_samples_at_once_change_no_bit(monkeypatch):
    torch.manual_seed(0)
    hidden, weights = torch.randn(5, 37, 24), cast(make_weights(), torch.float32)
    lengths = torch.randint(1, 4, (5, 37))
    reads = ("delta", "delta_mean", "y", "ssm_B", "ssm_C")
    found = []
    for chunk in (1, 2, 5):
        native._layout.cache_clear()
        monkeypatch.setattr(native, "_samples_at_once", lambda *_, chunk=chunk: chunk)
        found.append([*native.mix(hidden, weights, reads), *native.mix(hidden, weights, lengths=lengths)])
    native._layout.cache_clear()
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


def test_a_large_batch_is_taken_a_few_samples_at_a_time():
    few = native._samples_at_once(threads=2, batch=512, sample=197 * 4 * 384, inner=384)
    assert 1 <= few < 16
    assert native._samples_at_once(threads=64, batch=512, sample=1 << 30, inner=16) >= 64  # work for every thread
    assert native._samples_at_once(threads=2, batch=3, sample=1, inner=16) == 3


def test_memory_is_kept_per_thread_up_to_a_size(monkeypatch):
    monkeypatch.setattr(kept, "_thread", kept._Thread())
    first, (a, b) = kept.workspace([3, 40])
    assert b - a == 64 and first.numel() == 64  # parts begin on cache lines
    assert kept.workspace([5])[0] is first
    others = []
    thread = threading.Thread(target=lambda: others.append(kept.workspace([5])[0]))
    thread.start(), thread.join()
    assert others[0] is not first
    monkeypatch.setattr(kept, "_KEPT", 4 * 100)
    large, _ = kept.workspace([101])
    assert kept.workspace([101])[0] is not large
