"""Matching, numbering and merging by Triton's kernels: the same as by torch's operators."""

import pytest
import torch

from mtrkit.ops import match_nearest, match_neighbors, merge_sizes, merge_tokens, pair_similarity, take, token_map
from mtrkit.scan import use_scan_backend


def case(batch, length, sources, targets, width, device):
    """Tokens, and positions of sources and of other tokens as targets, in sequence order."""
    order = torch.stack([torch.randperm(length) for _ in range(batch)]).to(device)
    src, dst = order[:, :sources], order[:, sources : sources + targets].sort(dim=1).values
    return torch.randn(batch, length, width, device=device), src, dst


def by_torch(call, *arguments, **options):
    """The same by plain operators."""
    with use_scan_backend("reference"):
        return call(*arguments, **options)


@pytest.mark.parametrize("sizes", [(2, 20, 7, 9, 12), (1, 130, 40, 70, 33), (1, 3, 1, 1, 1)], ids=str)
def test_nearest(by_triton, launches, sizes):
    metric, src, dst = case(*sizes, by_triton)
    assert torch.equal(match_nearest(metric, src, dst), by_torch(match_nearest, metric, src, dst))
    assert launches == ["nearest"]


def test_ties_go_to_the_first(by_triton):
    metric, src, dst = case(2, 90, 10, 80, 24, by_triton)
    metric = take(metric[:, :3], torch.arange(90, device=by_triton).expand(2, 90) % 3)  # thirty of each
    expected = by_torch(match_nearest, metric, src, dst)
    assert torch.equal(match_nearest(metric, src, dst), expected)
    first = [[next(d for d in dst[b].tolist() if d % 3 == s % 3) for s in src[b].tolist()] for b in range(2)]
    assert expected.tolist() == first


def test_zeros_and_what_is_no_number(by_triton):
    metric, src, dst = case(2, 20, 7, 9, 12, by_triton)
    metric[0, int(src[0, 2])] = 0.0
    metric[1, int(dst[1, 4])] = float("nan")
    expected = by_torch(match_nearest, metric, src, dst)
    assert torch.equal(match_nearest(metric, src, dst), expected)
    assert (expected[1] == dst[1, 0]).all()


def test_cosines(by_triton, launches):
    metric, a, b = case(2, 40, 20, 20, 300, by_triton)
    metric[:, 0] = 0.0
    found = pair_similarity(metric, a, b)
    torch.testing.assert_close(found, by_torch(pair_similarity, metric, a, b), rtol=1e-6, atol=1e-6)
    assert torch.equal(found, pair_similarity(metric, b, a))
    again = torch.cat([a[:, 5:6], a], dim=1), torch.cat([b[:, 5:6], b], dim=1)
    assert torch.equal(pair_similarity(metric, *again)[:, 1:], found)
    assert launches == ["cosines"] * 3


def test_neighbours(by_triton):
    metric, sequence = torch.randn(2, 21, 8, device=by_triton), torch.arange(21, device=by_triton).expand(2, 21)
    blocked = torch.rand(2, 20, device=by_triton) < 0.2
    found, strength = match_neighbors(metric, sequence, blocked)
    expected, wanted = by_torch(match_neighbors, metric, sequence, blocked)
    assert torch.equal(found, expected)
    torch.testing.assert_close(strength, wanted)


MAPS = {"some": (7, 3, 2), "long": (70, 30, 35), "alone": (5, 5, 0), "dropped": (40, 7, 3)}


def make_map(name, device, ordered=True):
    length, kept, merged = MAPS[name]
    order = torch.stack([torch.randperm(length) for _ in range(2)]).to(device)
    keep, merge = order[:, :kept], order[:, kept : kept + merged]
    target = keep.gather(1, torch.randint(0, (kept + 1) // 2, (2, merged), device=device))  # several meet
    return token_map(length, keep, merge, target, ordered=ordered), (length, keep, merge, target)


@pytest.mark.parametrize("name", MAPS)
@pytest.mark.parametrize("ordered", [True, False])
def test_numbering(by_triton, launches, name, ordered):
    found, arguments = make_map(name, by_triton, ordered)
    assert launches == ["number"]
    expected = by_torch(token_map, *arguments, ordered=ordered)
    for field in ("slot", "kept", "merged"):
        assert torch.equal(getattr(found, field), getattr(expected, field))


@pytest.mark.parametrize("name", MAPS)
@pytest.mark.parametrize("weighted", [False, True])
@torch.inference_mode()
def test_merging(by_triton, launches, name, weighted):
    chosen, _ = make_map(name, by_triton)
    tokens = torch.randn(2, chosen.num_tokens, 5, device=by_triton)
    size = torch.rand(2, chosen.num_tokens, 1, device=by_triton) + 0.1
    chosen = chosen.weighted(size) if weighted else chosen
    launches.clear()
    torch.testing.assert_close(merge_tokens(tokens, chosen), by_torch(merge_tokens, tokens, chosen))
    torch.testing.assert_close(merge_sizes(size, chosen), by_torch(merge_sizes, size, chosen))
    assert launches == ["merge"] * (2 if chosen.merged.shape[1] else 0)


@torch.inference_mode()
def test_a_token_alone_keeps_every_bit(by_triton):
    chosen, (_, keep, _, target) = make_map("long", by_triton)
    tokens = torch.randn(2, 70, 5, device=by_triton)
    tokens[:, :, 0] = -0.0
    merged = merge_tokens(tokens, chosen.weighted(torch.rand(2, 70, 1, device=by_triton) + 0.1))
    for sample in range(2):
        for token in set(keep[sample].tolist()) - set(target[sample].tolist()):
            row = merged[sample, chosen.slot[sample, token]]
            assert torch.equal(row, tokens[sample, token]) and torch.signbit(row[0])


@torch.inference_mode()
def test_half_precision_is_added_up_in_float32(by_triton):
    chosen, _ = make_map("long", by_triton)
    tokens = torch.randn(2, 70, 5, device=by_triton)
    exact = by_torch(merge_tokens, tokens.bfloat16().float(), chosen)
    torch.testing.assert_close(merge_tokens(tokens.bfloat16(), chosen), exact.bfloat16())


def test_positions_outside_of_the_sequence_are_not_followed(by_triton):
    from mtrkit.triton import tokens

    metric, src, dst = case(2, 20, 7, 9, 12, by_triton)
    assert (tokens.nearest(metric, src + 100, dst) == -1).all()
    assert tokens.cosines(metric, src, dst[:, :7] - 50).isnan().all()
    slot, sequence = tokens.number(20, dst + 100, src, dst[:, :7], True)
    assert (slot == -1).all() and (sequence == -1).all()
