"""What holds for every reduction, whatever the features are."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from mtrkit.ops import (
    match_nearest,
    merge_sizes,
    merge_tokens,
    noise,
    open_stream,
    pair_similarity,
    permutation,
    reduce_stream,
    restore_stream,
    shuffled,
    split_by_rank,
    stream_tokens,
    take,
    token_map,
    unmerge_tokens,
)
from mtrkit.types import TokenMap
from tests.ops.reductions import cases, decide, make_case, maps

settings.register_profile("ops", deadline=None, max_examples=60)
settings.load_profile("ops")

lengths, batches = st.integers(1, 20), st.integers(1, 3)


def random_sizes(batch, length):
    return torch.randint(1, 9, (batch, length, 1), generator=torch.Generator().manual_seed(length)).double()


@given(case=cases(), data=st.data())
def test_mass_is_kept(case, data):
    """Σ size · token stays, and so does Σ size, when means are weighted by size."""
    batch, length, _ = case.tokens.shape
    size = random_sizes(batch, length)
    to = data.draw(maps(length, batch, drops=False)).weighted(size)
    merged, sizes = merge_tokens(case.tokens, to), merge_sizes(size, to)
    assert_close((merged * sizes).sum(1), (case.tokens * size).sum(1))
    assert torch.equal(sizes.sum(1), size.sum(1))


@given(case=cases())
def test_survivors_stay_in_sequence_and_every_slot_is_filled(case):
    to = decide(*case)
    assert to.num_kept == case.tokens.shape[1] - case.bottom
    assert (to.kept.diff(dim=1) > 0).all()
    slots = torch.arange(to.num_kept).expand_as(to.kept)
    assert torch.equal(to.slot.gather(1, to.kept), slots)
    assert ((to.slot >= 0) & (to.slot < to.num_kept)).all()


@given(case=cases(least_special=1))
def test_protected_tokens_neither_leave_nor_receive(case):
    to = decide(*case)
    assert not case.protected.gather(1, to.merged).any()
    own = to.slot.gather(1, case.special)
    assert torch.equal(to.kept.gather(1, own), case.special)
    others = to.slot.gather(1, to.merged)
    assert not (own[:, :, None] == others[:, None, :]).any()
    merged = merge_tokens(case.tokens, to)
    for i in range(len(own)):
        assert torch.equal(merged[i, own[i]], case.tokens[i, case.special[i]])


@given(case=cases(), data=st.data())
def test_maps_compose(case, data):
    """Two size-weighted merges are the merge by the composed map; so are slots and sizes."""
    batch, length, _ = case.tokens.shape
    size = random_sizes(batch, length)
    first = data.draw(maps(length, batch)).weighted(size)
    second = data.draw(maps(first.num_kept, batch)).weighted(merge_sizes(size, first))
    both = first.then(second).weighted(size)
    step_by_step = merge_tokens(merge_tokens(case.tokens, first), second)
    assert_close(merge_tokens(case.tokens, both), step_by_step)
    assert torch.equal(merge_sizes(size, both), merge_sizes(second.weight, second))
    assert torch.equal(both.slot, second.follow(first.slot))


@given(case=cases(), data=st.data(), weighted=st.booleans())
def test_a_token_that_receives_nothing_is_copied_bit_for_bit(case, data, weighted):
    batch, length, _ = case.tokens.shape
    tokens = case.tokens.float()
    to = data.draw(maps(length, batch)).weighted(random_sizes(batch, length) if weighted else None)
    merged = merge_tokens(tokens, to)
    for i in range(batch):
        received = set(to.slot[i, to.merged[i]].tolist())
        for slot, token in enumerate(to.kept[i].tolist()):
            assert slot in received or torch.equal(merged[i, slot], tokens[i, token])


@given(case=cases())
def test_the_identity_changes_no_bit(case):
    to = TokenMap.identity(*case.tokens.shape[:2])
    assert torch.equal(merge_tokens(case.tokens, to), case.tokens)
    assert torch.equal(unmerge_tokens(case.tokens, to), case.tokens)
    assert not to.drops


@given(case=cases(), data=st.data())
def test_unmerging_then_merging_changes_nothing(case, data):
    """And unmerging what was merged twice over is unmerging it by the composed map."""
    batch, length, _ = case.tokens.shape
    to = data.draw(maps(length, batch))
    short = case.tokens[:, : to.num_kept]
    assert_close(merge_tokens(unmerge_tokens(short, to), to), short)
    after = data.draw(maps(to.num_kept, batch, drops=False))
    shorter = short[:, : after.num_kept]
    at_once = unmerge_tokens(shorter, to.then(after), case.tokens)
    assert torch.equal(unmerge_tokens(unmerge_tokens(shorter, after), to, case.tokens), at_once)


@given(case=cases(least_batch=2), poison=st.sampled_from([float("nan"), float("inf"), -float("inf"), 1e30, 0.0]))
def test_a_sample_knows_nothing_of_the_others(case, poison):
    """Bit for bit, even if another one is full of what is not a number."""
    tokens = case.tokens.float()
    others = tokens.clone()
    others[1:] = poison
    clean, beside = decide(tokens, *case[1:]), decide(others, *case[1:])
    assert torch.equal(clean.slot[0], beside.slot[0])
    assert torch.equal(merge_tokens(tokens, clean)[0], merge_tokens(others, beside)[0])


@given(case=cases(least_batch=2))
def test_a_batch_is_its_samples_one_by_one(case):
    together = decide(*case)
    for i in range(len(case.tokens)):
        alone = decide(case.tokens[i : i + 1], case.special[i : i + 1], *case[2:])
        assert torch.equal(alone.slot[0], together.slot[i])
        merged = merge_tokens(case.tokens[i : i + 1], alone)[0]
        assert_close(merged, merge_tokens(case.tokens, together)[i])


@given(case=cases(), poison=st.sampled_from([float("nan"), float("inf"), -float("inf")]), data=st.data())
def test_what_is_not_a_number_still_gives_a_map(case, poison, data):
    batch, length, _ = case.tokens.shape
    tokens = case.tokens.clone()
    tokens[0, data.draw(st.integers(0, length - 1))] = poison
    to = decide(tokens, *case[1:])
    assert to.slot.min() >= 0
    assert to.slot.max() < to.num_kept
    assert merge_tokens(tokens, to).shape == (batch, to.num_kept, tokens.shape[2])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("similarity", ["cosine", "l1", "l2"])
@pytest.mark.parametrize(("batch", "length", "width"), [(2, 6, 3), (1, 50, 16), (1, 50, 192), (2, 197, 192)])
def test_among_equal_targets_the_first_is_chosen(batch, length, width, similarity, dtype):
    """Every third target is the same token, as on a plain background, and all sources are nearest to it."""
    r = max(1, length // 5)
    tokens = torch.randn(batch, length, width, generator=torch.Generator().manual_seed(width))
    tokens[:, r : length - r : 3] = tokens[:, length - r - 1 : length - r]
    tokens[:, length - r :] = tokens[:, r : r + 1]
    src, dst = (
        torch.arange(length - r, length).expand(batch, -1),
        torch.arange(r, length - r).expand(batch, -1),
    )
    assert (match_nearest(tokens.to(dtype), src, dst, similarity) == r).all()


def nearest_exactly(tokens, src, dst):
    """Positions of the targets at the least distance, from differences in float64."""
    between = take(tokens.double(), src)[:, :, None] - take(tokens.double(), dst)[:, None]
    return dst.gather(1, between.square().sum(-1).argmin(dim=2))


@pytest.mark.parametrize("offset", [0, 100, 1000])
def test_l2_does_not_see_what_all_tokens_share(offset):
    tokens = torch.randn(4, 60, 32) + offset
    src, dst = torch.arange(0, 60, 2).expand(4, -1), torch.arange(1, 60, 2).expand(4, -1)
    found = match_nearest(tokens, src, dst, "l2")
    assert torch.equal(found, nearest_exactly(tokens, src, dst))
    assert torch.equal(found, match_nearest(tokens.double(), src, dst, "l2"))
    assert torch.equal(found[1:2], match_nearest(tokens[1:2], src[1:2], dst[1:2], "l2"))


def test_a_far_target_makes_no_ties_among_the_others():
    tokens = torch.randn(4, 60, 32)
    tokens[:, 59, 0] = 1000
    src, dst = torch.arange(0, 60, 2).expand(4, -1), torch.arange(1, 60, 2).expand(4, -1)
    assert torch.equal(match_nearest(tokens, src, dst, "l2"), nearest_exactly(tokens, src, dst))


@pytest.mark.parametrize("similarity", ["cosine", "l1", "l2"])
@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_what_is_not_a_number_stays_in_its_source_and_its_sample(similarity, poison):
    tokens = torch.randn(3, 60, 32)
    src, dst = torch.arange(0, 60, 2).expand(3, -1), torch.arange(1, 60, 2).expand(3, -1)
    clean = match_nearest(tokens, src, dst, similarity)
    tokens[0, 6], tokens[1, 7] = poison, poison
    found = match_nearest(tokens, src, dst, similarity)
    assert torch.equal(found[2], clean[2])
    assert torch.equal(torch.cat([found[0, :3], found[0, 4:]]), torch.cat([clean[0, :3], clean[0, 4:]]))


def test_among_equal_scores_the_last_leave():
    split = split_by_rank(torch.ones(2, 9), torch.tensor([[0], [4]]), 3, 3)
    assert split.src.tolist() == [[6, 7, 8], [6, 7, 8]]
    assert split.dst.tolist() == [[4, 5], [3, 5]]


@pytest.mark.parametrize("similarity", ["cosine", "l1", "l2"])
def test_an_empty_batch_and_an_empty_reduction_pass_through(similarity):
    tokens, special, *_ = make_case(2, 9, 1, 4, 0, 0, seed=0)
    to = decide(tokens[:0], special[:0], 3, 3, similarity)
    assert merge_tokens(tokens[:0], to).shape == (0, 6, 4)
    assert unmerge_tokens(tokens[:0, :6], to).shape == (0, 9, 4)
    nothing = decide(tokens, special, 0, 0, similarity)
    assert torch.equal(merge_tokens(tokens, nothing), tokens)


@given(case=cases(), data=st.data())
def test_a_stream_follows_tokens_through_several_reductions(case, data):
    """Each place gets back what stands where its token went; a dropped one what it last had."""
    batch, length, _ = case.tokens.shape
    hidden, stream = case.tokens, open_stream(2 * case.tokens)
    expected = torch.arange(length).expand(batch, length)
    for _ in range(data.draw(st.integers(0, 3))):
        to = data.draw(maps(hidden.shape[1], batch, drops=False))
        hidden, stream = reduce_stream(hidden, stream, to)
        expected = to.follow(expected)
    assert torch.equal(stream.slot, expected)
    assert stream.size.sum() == batch * length
    for reduced, restored in zip((hidden, stream.residual), restore_stream(hidden, stream), strict=True):
        assert torch.equal(restored, unmerge_tokens(reduced, TokenMap(stream.slot, expected, expected)))
    assert_close(stream_tokens(hidden, stream), 3 * restore_stream(hidden, stream)[0])


def test_a_stream_gives_a_dropped_token_its_last_features():
    tokens = make_case(1, 3, 0, 2, 0, 0, seed=1).tokens
    dropping = TokenMap(torch.tensor([[0, -1, 1]]), torch.tensor([[0, 2]]), torch.empty(1, 0, dtype=torch.int64))
    hidden, stream = reduce_stream(tokens, open_stream(tokens), dropping)
    restored, residual = restore_stream(hidden + 1, stream)
    assert torch.equal(restored[:, [0, 2]], tokens[:, [0, 2]] + 1)
    assert torch.equal(restored[:, 1], tokens[:, 1])
    assert torch.equal(residual, tokens)


def test_two_maps_may_merge_other_tokens_onto_the_same_kept_ones():
    tokens = make_case(1, 4, 0, 2, 0, 0, seed=2).tokens
    kept, src, target = torch.tensor([[0, 2]]), torch.tensor([[1, 3]]), torch.tensor([[0, 2]])
    merging, halfway = token_map(4, kept, src, target), token_map(4, kept, src[:, :1], target[:, :1])
    hidden, stream = reduce_stream(tokens, open_stream(tokens), merging, halfway)
    assert_close(stream.residual, torch.stack([tokens[:, :2].mean(1), tokens[:, 2:].mean(1)], dim=1))
    assert_close(hidden, torch.stack([tokens[:, :2].mean(1), tokens[:, 2]], dim=1))
    assert stream.size.flatten().tolist() == [2, 2]
    restored, residual = restore_stream(hidden, stream)
    assert torch.equal(restored, hidden[:, [0, 0, 1, 1]])
    assert torch.equal(residual, stream.residual[:, [0, 0, 1, 1]])


@given(case=cases(least_batch=2), similarity=st.sampled_from(["cosine", "l1", "l2"]))
def test_equal_pairs_are_equally_similar_wherever_they_stand(case, similarity):
    length = case.tokens.shape[1]
    tokens = torch.cat([case.tokens, case.tokens.roll(1, 0)], dim=1).float()
    first, second = torch.arange(length).expand(len(tokens), -1), torch.arange(length).flip(0).expand(len(tokens), -1)
    here = pair_similarity(tokens, first, second, similarity)
    there = pair_similarity(tokens, first + length, second + length, similarity)
    assert torch.equal(here, there.roll(-1, 0))


@given(count=st.integers(1, 200), seed=st.integers(0, 2**32 - 1), use=st.integers(0, 5))
def test_noise_is_the_same_every_time_and_has_no_ties(count, seed, use):
    drawn = noise(count, seed, use)
    assert torch.equal(drawn, noise(count, seed, use))
    assert drawn.unique().numel() == count and drawn.min() >= 0 and drawn.max() < 2**32
    assert torch.equal(permutation(count, seed, use).sort().values, torch.arange(count))


def test_noise_is_fair():
    """Every place is drawn about equally often over seeds, uses and counts, and neighbours go their own way."""
    for draws in (
        torch.stack([permutation(60, seed) for seed in range(4000)]),
        torch.stack([permutation(60, 7, use) for use in range(4000)]),
        torch.stack([noise(60 + more, 7)[:60].argsort() for more in range(4000)]),
    ):
        chosen = torch.zeros(len(draws), 60).scatter(1, draws[:, :20], 1.0)
        assert ((chosen.mean(0) - chosen.mean()).abs() < 5 / len(draws) ** 0.5).all()
        correlation = torch.corrcoef(chosen.T).fill_diagonal_(0).abs().max()
        assert correlation < 0.05 + 5 / len(draws) ** 0.5


@given(case=cases(), share=st.floats(0, 1), seed=st.integers(0, 99))
def test_shuffling_moves_only_the_share_and_no_special_token(case, share, seed):
    every = torch.arange(case.tokens.shape[1]).expand(case.tokens.shape[:2])
    order = shuffled(every, case.special, share, seed)
    assert torch.equal(order.sort(dim=1).values, every)
    assert torch.equal(order.gather(1, case.special), case.special)
    free = case.tokens.shape[1] - case.special.shape[1]
    assert ((order != every).sum(dim=1) <= int(share * free)).all()
