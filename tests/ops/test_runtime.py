"""Gradients, half precision, compilers, and no wait for the device."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.testing import assert_close

from mtrkit.ops import merge_sizes, merge_tokens, open_stream, reduce_stream, restore_stream, unmerge_tokens
from tests.ops.reductions import decide, make_case

CASE = make_case(batch=2, length=11, special=1, width=4, top=3, bottom=4, seed=0)


def pipeline(tokens, special, top, bottom, similarity="cosine"):
    """A block's worth of work: decide, reduce the stream, restore it."""
    to = decide(tokens, special, top, bottom, similarity)
    stream = open_stream(tokens)
    to = to.weighted(stream.size)
    hidden, stream = reduce_stream(tokens, stream, to)
    return hidden, *restore_stream(hidden, stream)


@pytest.mark.parametrize("weighted", [False, True])
def test_gradients_of_merging_and_back(weighted):
    tokens = CASE.tokens.clone().requires_grad_()
    size = torch.arange(1, 12, dtype=torch.float64).repeat(2, 1)[..., None].requires_grad_()
    to = decide(*CASE)

    def back_and_forth(tokens, size):
        weighing = to.weighted(size if weighted else None)
        short = merge_tokens(tokens, weighing)
        return short, unmerge_tokens(short, weighing), merge_sizes(size, weighing)

    assert torch.autograd.gradcheck(back_and_forth, (tokens, size))


def test_every_token_gets_a_gradient():
    tokens = CASE.tokens.clone().requires_grad_()
    merge_tokens(tokens, decide(*CASE)).square().sum().backward()
    assert (tokens.grad.abs().sum(dim=2) > 0).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_decides_as_float32_does_and_stays_half(dtype):
    tokens = CASE.tokens.to(dtype)
    to = decide(tokens, *CASE[1:])
    assert torch.equal(to.slot, decide(tokens.float(), *CASE[1:]).slot)
    merged = merge_tokens(tokens, to)
    assert merged.dtype == dtype
    assert_close(merged.float(), merge_tokens(tokens.float(), to), rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("similarity", ["cosine", "l1", "l2"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_decides_as_float32_does(dtype, similarity):
    """Tokens so much alike that a product in half precision takes them for equal."""
    case = make_case(batch=2, length=60, special=1, width=16, top=10, bottom=20, seed=0)
    tokens = 1 + 0.1 * case.tokens.float()
    wanted = decide(tokens, *case[1:], similarity).slot
    with torch.autocast("cpu", dtype):
        assert torch.equal(decide(tokens, *case[1:], similarity).slot, wanted)


@pytest.mark.parametrize("similarity", ["cosine", "l1", "l2"])
def test_the_whole_way_compiles_into_one_graph(similarity):
    compiled = torch.compile(pipeline, fullgraph=True, backend="aot_eager")
    for mine, expected in zip(compiled(*CASE, similarity), pipeline(*CASE, similarity), strict=True):
        assert_close(mine, expected)


@pytest.mark.parametrize("similarity", ["cosine", "l1", "l2"])
def test_shapes_need_no_values(similarity):
    """Fake tensors have none: whatever waited for the device, or looped over results, would raise here."""
    with FakeTensorMode() as mode:
        hidden, restored, residual = pipeline(mode.from_tensor(CASE.tokens), mode.from_tensor(CASE.special), 3, 4)
    assert hidden.shape == (2, 7, 4)
    assert restored.shape == residual.shape == (2, 11, 4)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("similarity", ["cosine", "l1", "l2"])
def test_a_gpu_never_waits_and_decides_alike(similarity):
    tokens, special = CASE.tokens.cuda(), CASE.special.cuda()
    pipeline(tokens, special, 3, 4, similarity)
    torch.cuda.set_sync_debug_mode("error")
    try:
        results = pipeline(tokens, special, 3, 4, similarity)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for mine, expected in zip(results, pipeline(*CASE, similarity), strict=True):
        assert_close(mine.cpu(), expected)


def test_autocast_compiles_into_one_graph():
    case = make_case(batch=2, length=11, special=1, width=4, top=3, bottom=4, seed=0)
    tokens, rest = case.tokens.float(), case[1:]
    compiled = torch.compile(pipeline, fullgraph=True, backend="aot_eager")
    with torch.autocast("cpu", torch.bfloat16):
        for mine, expected in zip(compiled(tokens, *rest), pipeline(tokens, *rest), strict=True):
            assert_close(mine, expected)
