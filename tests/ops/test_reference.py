"""The tensor operators do to every sample what the loops in ``mtrkit.ops.reference`` do to one."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from mtrkit.ops import (
    channel_score,
    class_score,
    match_nearest,
    merge_sizes,
    merge_tokens,
    reference,
    split_by_rank,
    take,
    token_map,
    unmerge_tokens,
)
from tests.ops.reductions import cases, maps

settings.register_profile("ops", deadline=None, max_examples=60)
settings.load_profile("ops")


def rows(values):
    return torch.tensor(values, dtype=torch.float64)


def of_sample(token_map, i):
    """Sample ``i`` of a batched map in the form the loops take."""
    parts = (token_map.slot, token_map.kept, token_map.merged)
    return reference.Map(*(part[i].tolist() for part in parts))


@pytest.mark.parametrize("reduction", ["mean", "clipped", "norm"])
@given(case=cases())
def test_channel_score(case, reduction):
    scores = channel_score(case.tokens, reduction)
    assert scores.dtype == torch.float32
    for score, tokens in zip(scores, case.tokens, strict=True):
        assert_close(score.double(), rows(reference.channel_score(tokens.tolist(), reduction)), rtol=1e-5, atol=1e-6)


@given(case=cases(least_special=1))
def test_class_score(case):
    scores = class_score(case.tokens, case.special)
    for score, tokens, special in zip(scores, case.tokens, case.special, strict=True):
        expected = reference.class_score(tokens.tolist(), special.tolist())
        assert_close(score.double(), rows(expected), rtol=1e-5, atol=1e-6)


odd_values = st.sampled_from([float("nan"), float("inf"), float("-inf"), 0.0, -0.0, 1.0, 2.0, 3e38])


@given(case=cases(), data=st.data())
def test_split_by_rank(case, data):
    """With many equal, infinite and undefined scores among them."""
    batch, length, _ = case.tokens.shape
    lists = data.draw(st.lists(st.lists(odd_values, min_size=length, max_size=length), min_size=batch, max_size=batch))
    score = torch.tensor(lists, dtype=torch.float64)
    split = split_by_rank(score, case.special, case.top, case.bottom)
    for i in range(batch):
        expected = reference.split_by_rank(score[i].tolist(), case.special[i].tolist(), case.top, case.bottom)
        assert tuple(sorted(group[i].tolist()) for group in split) == expected
        assert split.dst[i].tolist() == expected[1], "targets stand in sequence order"
        assert split.src[i].tolist() == expected[2], "sources stand in sequence order"


@pytest.mark.parametrize("similarity", ["cosine", "l1", "l2"])
@given(case=cases())
def test_match_nearest(case, similarity):
    split = split_by_rank(channel_score(case.tokens), case.special, case.top, case.bottom)
    match = match_nearest(case.tokens, split.src, split.dst, similarity)
    for i, metric in enumerate(case.tokens.tolist()):
        src, dst = split.src[i].tolist(), split.dst[i].tolist()
        target, value = reference.match_nearest(metric, src, dst, similarity)
        if case.tokens.shape[2] > 1 or similarity != "cosine":  # in one dimension all cosines are ±1
            assert match.target[i].tolist() == target
        assert_close(match.similarity[i], rows(value), rtol=1e-5, atol=1e-9)


@given(data=st.data(), length=st.integers(1, 20), batch=st.integers(1, 3), ordered=st.booleans())
def test_token_map(data, length, batch, ordered):
    built = data.draw(maps(length, batch, ordered=ordered))
    for i in range(batch):
        slot, kept, merged = of_sample(built, i)
        target = [kept[slot[token]] for token in merged]
        shuffled = data.draw(st.permutations(kept)) if ordered else kept
        assert reference.token_map(length, shuffled, merged, target, ordered=ordered) == (slot, kept, merged)


@given(case=cases(), data=st.data(), weighted=st.booleans())
def test_merge_tokens_and_sizes(case, data, weighted):
    batch, length, _ = case.tokens.shape
    to = data.draw(maps(length, batch))
    weight = torch.rand(batch, length, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 0.1
    merged = merge_tokens(case.tokens, to.weighted(weight if weighted else None))
    sizes = merge_sizes(weight, to)
    for i, tokens in enumerate(case.tokens.tolist()):
        share = weight[i, :, 0].tolist()
        expected = reference.merge_tokens(tokens, of_sample(to, i), share if weighted else None)
        assert_close(merged[i], rows(expected), rtol=1e-5, atol=1e-9)
        assert_close(sizes[i, :, 0], rows(reference.merge_sizes(share, of_sample(to, i))), rtol=1e-5, atol=1e-9)


@given(case=cases(), data=st.data(), remembered=st.booleans())
def test_unmerge_tokens(case, data, remembered):
    batch, length, _ = case.tokens.shape
    to = data.draw(maps(length, batch))
    before = case.tokens if remembered else None
    back = unmerge_tokens(-case.tokens[:, : to.num_kept], to, before)
    for i in range(batch):
        now = (-case.tokens[i, : to.num_kept]).tolist()
        expected = reference.unmerge_tokens(now, of_sample(to, i), case.tokens[i].tolist() if remembered else None)
        assert torch.equal(back[i], rows(expected))


@given(case=cases())
def test_take(case):
    picked = take(case.tokens, case.special)
    for rows_of, index, tokens in zip(picked, case.special, case.tokens, strict=True):
        assert rows_of.tolist() == [tokens.tolist()[j] for j in index]


def test_a_map_without_merging_drops_all_that_is_not_kept():
    dropping = token_map(4, torch.tensor([[3, 1]]))
    assert of_sample(dropping, 0) == reference.token_map(4, [1, 3]) == ([-1, 0, -1, 1], [1, 3], [])
