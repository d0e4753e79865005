"""Numbering and merging in the compiled library: the same as in torch, and no memory read that is not there."""

import pytest
import torch

from mtrkit.errors import InputError
from mtrkit.native import tokens as native
from mtrkit.ops import merge_sizes, merge_tokens, take, token_map
from mtrkit.scan.fastpath import native_is_fastest

pytestmark = pytest.mark.skipif(not native_is_fastest(), reason="needs the compiled library")

KEPT = torch.tensor([[4, 0, 2], [5, 1, 3]])
MERGED, TARGET = torch.tensor([[3, 1], [2, 4]]), torch.tensor([[4, 4], [5, 1]])


def in_torch(call, *arguments, **options):
    """The same call with derivatives in reach, which the compiled library does not give."""
    with torch.enable_grad(), pytest.MonkeyPatch.context() as patch:
        patch.setattr("mtrkit.ops.reorder.numbering_kernels", lambda *positions: "")
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
        native.merge(torch.randn(1, 3, 4), torch.tensor([[0, 3, 1]]), 3)
    for wrong in (TARGET.int(), TARGET.to("meta")):
        with pytest.raises(InputError, match="positions are"):
            token_map(7, KEPT, MERGED, wrong)
    with pytest.raises(InputError, match="must be equal"):
        token_map(7, KEPT, MERGED, TARGET[:, :1])
    with pytest.raises(InputError, match="do not fit tokens"):
        merge_tokens(torch.randn(2, 5, 4), token_map(7, KEPT, MERGED, TARGET))
