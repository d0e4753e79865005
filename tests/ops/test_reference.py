"""The tensor operators do to every sample what the loops in ``tests/ops/plain.py`` do to one."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from mtrkit.ops import (
    channel_score,
    class_score,
    exact_slots,
    hold_special,
    match_nearest,
    match_neighbors,
    merge_sizes,
    merge_tokens,
    middle_slots,
    move_special,
    noise,
    pair_similarity,
    rank_tokens,
    scaled_slots,
    shuffled,
    split_by_rank,
    standardize,
    strongest_links,
    successive_weights,
    take,
    token_map,
    unmerge_tokens,
    without,
)
from tests.ops import plain
from tests.ops.reductions import cases, maps

settings.register_profile("ops", deadline=None, max_examples=60)
settings.load_profile("ops")


def rows(values):
    return torch.tensor(values, dtype=torch.float64)


def of_sample(token_map, i):
    """Sample ``i`` of a batched map in the form the loops take."""
    parts = (token_map.slot, token_map.kept, token_map.merged)
    return plain.Map(*(part[i].tolist() for part in parts))


@pytest.mark.parametrize("reduction", ["mean", "clipped", "l1", "norm"])
@given(case=cases())
def test_channel_score(case, reduction):
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        assert channel_score(case.tokens.to(dtype), reduction).dtype == torch.float32
    scores = channel_score(case.tokens, reduction)
    assert scores.dtype == torch.float64
    for score, tokens in zip(scores, case.tokens, strict=True):
        assert_close(score, rows(plain.channel_score(tokens.tolist(), reduction)), rtol=1e-12, atol=1e-12)


@given(case=cases())
def test_class_score(case):
    scores = class_score(case.tokens, case.special)
    for score, tokens, special in zip(scores, case.tokens, case.special, strict=True):
        expected = plain.class_score(tokens.tolist(), special.tolist())
        assert_close(score, rows(expected), rtol=1e-12, atol=1e-12)


odd_values = st.sampled_from([float("nan"), float("inf"), float("-inf"), 0.0, -0.0, 1.0, 2.0, 3e38])


@given(case=cases(), data=st.data())
def test_split_by_rank(case, data):
    """With many equal, infinite and undefined scores among them."""
    batch, length, _ = case.tokens.shape
    lists = data.draw(st.lists(st.lists(odd_values, min_size=length, max_size=length), min_size=batch, max_size=batch))
    score = torch.tensor(lists, dtype=torch.float64)
    split = split_by_rank(score, case.special, case.top, case.bottom)
    for i in range(batch):
        expected = plain.split_by_rank(score[i].tolist(), case.special[i].tolist(), case.top, case.bottom)
        assert tuple(sorted(group[i].tolist()) for group in split) == expected
        assert split.dst[i].tolist() == expected[1], "targets stand in sequence order"
        assert split.src[i].tolist() == expected[2], "sources stand in sequence order"


@given(case=cases())
def test_ranks_and_what_is_without(case):
    score = case.tokens.mean(dim=2)
    ranked = rank_tokens(score, case.special)
    left = without(torch.arange(score.shape[1]).flip(0).expand_as(score), case.special)
    for i, special in enumerate(case.special.tolist()):
        assert ranked[i].tolist() == plain.rank_tokens(score[i].tolist(), special)
        assert left[i].tolist() == plain.without(range(score.shape[1])[::-1], special)


@given(case=cases())
def test_standardize(case):
    score = case.tokens[..., 0]
    for i, row in enumerate(standardize(score)):
        assert_close(row, rows(plain.standardize(score[i].tolist())), rtol=1e-5, atol=1e-9)


similarities = pytest.mark.parametrize("similarity", ["cosine", "l1", "l2"])


def telling(metric):
    """A second column, so that no two tokens point the same way, as all do in one dimension."""
    number = torch.arange(metric.shape[1], dtype=metric.dtype).expand(metric.shape[:2])
    return torch.cat([metric, number.sin()[..., None]], dim=2)


@similarities
@given(case=cases(), kth=st.integers(1, 9))
def test_match_nearest(case, similarity, kth):
    metric = telling(case.tokens)
    split = split_by_rank(channel_score(case.tokens), case.special, case.top, case.bottom)
    target = match_nearest(metric, split.src, split.dst, similarity, kth)
    alike = pair_similarity(metric, split.src, target, similarity)
    for i, tokens in enumerate(metric.tolist()):
        src, dst = split.src[i].tolist(), split.dst[i].tolist()
        expected = plain.match_nearest(tokens, src, dst, similarity, kth)
        assert target[i].tolist() == expected
        assert_close(alike[i], rows(plain.pair_similarity(tokens, src, expected, similarity)), rtol=1e-5, atol=1e-9)


@similarities
@given(case=cases(), data=st.data())
def test_match_neighbors(case, similarity, data):
    metric, sequence = telling(case.tokens), rank_tokens(case.tokens.mean(dim=2), case.special)
    if sequence.shape[1] < 2:
        return
    count = len(sequence) * (sequence.shape[1] - 1)
    flags = data.draw(st.lists(st.booleans(), min_size=count, max_size=count))
    blocked = torch.tensor(flags).view(len(sequence), -1)
    target, alike = match_neighbors(metric, sequence, blocked, similarity)
    for i, tokens in enumerate(metric.tolist()):
        expected = plain.match_neighbors(tokens, sequence[i].tolist(), blocked[i].tolist(), similarity)
        assert target[i].tolist() == expected[0]
        assert_close(alike[i], rows(expected[1]).clamp(min=torch.finfo(torch.float64).min), rtol=1e-5, atol=1e-9)


@given(case=cases(), r=st.integers(0, 9))
def test_strongest_links(case, r):
    strength = (case.tokens[..., 0] * 2).round()  # with ties
    src = torch.arange(strength.shape[1]).expand_as(strength)
    r = min(r, strength.shape[1])
    links = strongest_links(src, src.flip(1), strength, r)
    for i in range(len(strength)):
        expected = plain.strongest_links(src[i].tolist(), src[i].flip(0).tolist(), strength[i].tolist(), r)
        assert tuple(part[i].tolist() for part in links) == expected


@given(count=st.integers(1, 99), seed=st.integers(0, 2**32 - 1), use=st.integers(0, 9))
def test_noise(count, seed, use):
    assert noise(count, seed, use).tolist() == plain.noise(count, seed, use)


@given(case=cases(), share=st.floats(0, 1), seed=st.integers(0, 99))
def test_shuffled(case, share, seed):
    length = case.tokens.shape[1]
    order = shuffled(torch.arange(length).expand(case.tokens.shape[:2]), case.special, share, seed)
    for i, special in enumerate(case.special.tolist()):
        assert order[i].tolist() == plain.shuffled(length, special, share, seed)


@given(case=cases(), scale=st.fractions(0, 1, max_denominator=2000))
def test_special_tokens_are_put_elsewhere(case, scale):
    sequence = without(case.tokens.mean(dim=2).argsort(dim=1), case.special[:, :0])
    num_kept, special = sequence.shape[1], case.special
    exact = exact_slots(sequence, special)
    middle = middle_slots(special, num_kept)
    scaled = scaled_slots(special, scale.numerator, scale.denominator, num_kept)
    for slots in (middle, scaled):
        moved = move_special(sequence, special, slots)
        for i, tokens in enumerate(sequence.tolist()):
            chosen = special[i].tolist(), slots[i].tolist()
            assert moved[i].tolist() == plain.move_special(tokens, *chosen)
            assert moved[i].gather(0, slots[i]).tolist() == special[i].tolist()
    held = hold_special(torch.stack([row[:0] for row in sequence]), special, scaled.argsort(dim=1))
    for i, tokens in enumerate(sequence.tolist()):
        chosen = special[i].tolist()
        assert exact[i].tolist() == plain.exact_slots(tokens, chosen)
        assert middle[i].tolist() == plain.middle_slots(chosen, num_kept)
        assert scaled[i].tolist() == plain.scaled_slots(chosen, scale.numerator, scale.denominator, num_kept)
        assert held[i].tolist() == plain.hold_special([], chosen, range(len(chosen)))


@given(data=st.data(), length=st.integers(1, 20), batch=st.integers(1, 3), ordered=st.booleans())
def test_token_map(data, length, batch, ordered):
    built = data.draw(maps(length, batch, ordered=ordered))
    for i in range(batch):
        slot, kept, merged = of_sample(built, i)
        target = [kept[slot[token]] for token in merged]
        shuffled = data.draw(st.permutations(kept)) if ordered else kept
        assert plain.token_map(length, shuffled, merged, target, ordered=ordered) == (slot, kept, merged)


@given(case=cases(), data=st.data(), weighted=st.booleans())
def test_merge_tokens_and_sizes(case, data, weighted):
    batch, length, _ = case.tokens.shape
    to = data.draw(maps(length, batch))
    weight = torch.rand(batch, length, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 0.1
    merged = merge_tokens(case.tokens, to.weighted(weight if weighted else None))
    sizes = merge_sizes(weight, to)
    for i, tokens in enumerate(case.tokens.tolist()):
        share = weight[i, :, 0].tolist()
        expected = plain.merge_tokens(tokens, of_sample(to, i), share if weighted else None)
        assert_close(merged[i], rows(expected), rtol=1e-5, atol=1e-9)
        assert_close(sizes[i, :, 0], rows(plain.merge_sizes(share, of_sample(to, i))), rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("combine", ["mean", "max", "min"])
@given(case=cases(), data=st.data())
def test_merge_tokens_otherwise(case, data, combine):
    to = data.draw(maps(case.tokens.shape[1], len(case.tokens))).combining(combine)
    for merged, tokens, i in zip(merge_tokens(case.tokens, to), case.tokens.tolist(), range(9), strict=False):
        expected = plain.merge_tokens(tokens, of_sample(to, i), combine=combine)
        assert_close(merged, rows(expected), rtol=1e-5, atol=1e-9)


@given(case=cases(), data=st.data())
def test_successive_weights(case, data):
    to = data.draw(maps(case.tokens.shape[1], len(case.tokens)))
    merged = merge_tokens(case.tokens, to.weighted(successive_weights(to)))
    for i, tokens in enumerate(case.tokens.tolist()):
        expected = plain.merge_successively(tokens, of_sample(to, i))
        assert_close(merged[i], rows(expected), rtol=1e-5, atol=1e-9)


@given(case=cases(), data=st.data(), remembered=st.booleans())
def test_unmerge_tokens(case, data, remembered):
    batch, length, _ = case.tokens.shape
    to = data.draw(maps(length, batch))
    before = case.tokens if remembered else None
    back = unmerge_tokens(-case.tokens[:, : to.num_kept], to, before)
    for i in range(batch):
        now = (-case.tokens[i, : to.num_kept]).tolist()
        expected = plain.unmerge_tokens(now, of_sample(to, i), case.tokens[i].tolist() if remembered else None)
        assert torch.equal(back[i], rows(expected))


@given(case=cases())
def test_take(case):
    picked = take(case.tokens, case.special)
    for rows_of, index, tokens in zip(picked, case.special, case.tokens, strict=True):
        assert rows_of.tolist() == [tokens.tolist()[j] for j in index]


def test_a_map_without_merging_drops_all_that_is_not_kept():
    dropping = token_map(4, torch.tensor([[3, 1]]))
    assert of_sample(dropping, 0) == plain.token_map(4, [1, 3]) == ([-1, 0, -1, 1], [1, 3], [])


def test_shares_by_size_are_as_fine_as_float64_tokens():
    tokens = torch.tensor([[[1.0], [2.0], [4.0]]], dtype=torch.float64)
    size = torch.tensor([[[1.0], [2.0], [4.0]]])  # float32, as a stream has it
    to = token_map(3, torch.tensor([[2]]), torch.tensor([[0, 1]]), torch.tensor([[2, 2]])).weighted(size)
    assert_close(merge_tokens(tokens, to), torch.tensor([[[3.0]]], dtype=torch.float64), rtol=1e-15, atol=0)
