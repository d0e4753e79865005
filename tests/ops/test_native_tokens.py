"""Splitting, numbering and merging in the compiled library: as in torch, and no memory read that is not there."""

import pytest
import torch

from mtrkit.errors import InputError
from mtrkit.native import tokens as native
from mtrkit.ops import merge_sizes, merge_tokens, split_by_rank, take, token_map
from mtrkit.scan.fastpath import native_is_fastest

pytestmark = pytest.mark.skipif(not native_is_fastest(), reason="needs the compiled library")

KEPT = torch.tensor([[4, 0, 2], [5, 1, 3]])
MERGED, TARGET = torch.tensor([[3, 1], [2, 4]]), torch.tensor([[4, 4], [5, 1]])


def in_torch(call, *arguments, **options):
    """The same call with derivatives in reach, which the compiled library does not give."""
    with torch.enable_grad(), pytest.MonkeyPatch.context() as patch:
        patch.setattr("mtrkit.ops.reorder.numbering_kernels", lambda *positions: "")
        patch.setattr("mtrkit.ops.group.can_split", lambda *tensors: False)
        return call(*arguments, **options)


@pytest.fixture(params=["mean", "weighted", "dropped"])
def chosen(request):
    maps = {"mean": (7, True), "weighted": (7, True), "dropped": (9, False)}
    length, ordered = maps[request.param]
    found = token_map(length, KEPT, MERGED, TARGET, ordered=ordered)
    expected = in_torch(token_map, length, KEPT, MERGED, TARGET, ordered=ordered)
    for name in ("slot", "kept", "merged"):
        assert torch.equal(getattr(found, name), getattr(expected, name))
    return found.weighted(torch.rand(2, length, 1) + 0.1) if request.param == "weighted" else found


@pytest.mark.parametrize("width", [1, 5, 48])
def test_merges_as_torch_does(chosen, width):
    tokens, size = torch.randn(2, chosen.num_tokens, width), torch.rand(2, chosen.num_tokens, 1)
    with torch.inference_mode():
        found, sizes = merge_tokens(tokens, chosen), merge_sizes(size, chosen)
    torch.testing.assert_close(found, in_torch(merge_tokens, tokens, chosen))
    torch.testing.assert_close(sizes, in_torch(merge_sizes, size, chosen))
    alone = torch.tensor([[0], [3]])
    slots = chosen.slot.gather(1, alone)
    assert torch.equal(take(found, slots), take(tokens, alone))


@torch.inference_mode()
def test_a_token_alone_keeps_the_sign_of_its_zeros():
    found = merge_tokens(torch.full((2, 6, 3), -0.0), token_map(6, KEPT, MERGED, TARGET))
    assert torch.signbit(found).all()


@torch.inference_mode()
def test_positions_outside_of_the_sequence_are_refused():
    for kept, merged, target in (
        (KEPT + 5, MERGED, TARGET),
        (KEPT, MERGED - 4, TARGET),
        (KEPT, MERGED, TARGET + 5),
    ):
        with pytest.raises(InputError, match="outside of 0 … 6"):
            token_map(7, kept, merged, target)
    with pytest.raises(InputError, match="outside of 0 … 2"):
        native.merge([native.Merge(torch.randn(1, 3, 4))], torch.tensor([[0, 3, 1]]), 3)
    for wrong in (TARGET.int(), TARGET.to("meta")):
        with pytest.raises(InputError, match="positions are"):
            token_map(7, KEPT, MERGED, wrong)
    with pytest.raises(InputError, match="must be equal"):
        token_map(7, KEPT, MERGED, TARGET[:, :1])
    with pytest.raises(InputError, match="do not fit tokens"):
        merge_tokens(torch.randn(2, 5, 4), token_map(7, KEPT, MERGED, TARGET))


@pytest.mark.parametrize(("specials", "top", "bottom"), [(0, 0, 12), (1, 4, 3), (2, 0, 0), (3, 9, 0), (12, 0, 0)])
def test_splits_as_torch_does(specials, top, bottom):
    odd = torch.tensor([0.0, -0.0, 1.0, 1.0, torch.nan, torch.inf, -torch.inf, 3e38, -3e38, torch.nan, 1.0, -1e-40])
    score = torch.stack([odd[torch.randperm(12)] for _ in range(5)])
    special = torch.stack([torch.randperm(12)[:specials] for _ in range(5)])
    found, expected = split_by_rank(score, special, top, bottom), in_torch(split_by_rank, score, special, top, bottom)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def test_refuses_to_split_what_does_not_fit():
    score = torch.randn(2, 7)
    for special, top, bottom in ((torch.tensor([[7], [0]]), 2, 2), (torch.tensor([[0, 0], [1, 2]]), 2, 2)):
        with pytest.raises(InputError, match="outside of 0 … 6"):
            native.split(score, special, top, bottom)
    for special, top in ((torch.tensor([[0]]), 2), (torch.tensor([[0], [1]]), 5), (torch.tensor([[0], [1]]), -1)):
        with pytest.raises(InputError, match="do not fit"):
            native.split(score, special, top, 2)
