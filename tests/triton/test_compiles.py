"""Every kernel passes Triton's compiler for GPUs of several kinds, without one: the interpreter checks no types."""

import importlib.util

import pytest
import torch

from mtrkit.native.tokens import Merge
from mtrkit.triton import availability
from mtrkit.types import Scan
from tests.scan.inputs import make_inputs
from tests.scan.test_fused import cast, make_weights

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed"),
    pytest.mark.skipif(availability.interpreted(), reason="the interpreter compiles nothing"),
]

TARGETS = {"sm_80": ("cuda", 80, 32), "sm_90": ("cuda", 90, 32), "gfx942": ("hip", "gfx942", 64)}
TYPES = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.int64: "*i64"}


def type_of(parameter, value):
    """What Triton makes of an argument: what is one, or is not there, is constant."""
    if value is None or (type(value) is int and value == 1 and not parameter.do_not_specialize):
        return "constexpr"
    if isinstance(value, torch.Tensor):
        return TYPES[value.dtype]
    return "fp32" if isinstance(value, float) else "i32"


@pytest.fixture(params=TARGETS)
def compiled(request, monkeypatch):
    """Names of the kernels that were compiled for a target where they would have been launched."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from mtrkit.triton import conv, mixer, norm, scan, tokens

    found = []

    def compile_one(kernel, programs, first, arguments, warps, **constants):
        given = dict(zip(kernel.arg_names, arguments, strict=False))
        types = {p.name: type_of(p, given[p.name]) for p in kernel.params if p.name in given}
        constants |= {name: given[name] for name, kind in types.items() if kind == "constexpr"}
        source = ASTSource(kernel, types | dict.fromkeys(constants, "constexpr"), constants)
        assert programs > 0 and set(kernel.arg_names) == given.keys() | constants.keys()
        triton.compile(source, target=GPUTarget(*TARGETS[request.param]), options={"num_warps": warps})
        found.append(kernel.__name__)

    for module in (conv, mixer, norm, scan, tokens):
        monkeypatch.setattr(module, "launch", compile_one)
        monkeypatch.setattr(module, "check_kind", lambda x: None)
    return found


def meta(x):
    return x if x is None else x.to("meta")


def test_scan_and_convolution(compiled):
    from mtrkit.triton import conv, scan

    u, delta, A, B, C, D, z, bias = map(meta, make_inputs(2, 40, 19, 16))
    lengths = torch.ones(2, 19, dtype=torch.int64, device="meta")
    arguments = Scan(*(x.bfloat16() for x in (u, delta)), A, B[:, None], C[:, None], D, z, bias, True)
    y, last, checkpoints = scan.scan_forward(arguments, True, lengths)
    scan.scan_backward(y, last, arguments, checkpoints, lengths)
    scan.scan_forward(Scan(u, delta, A, B[:, None], C[:, None]), False)
    weight = torch.randn(40, 4, device="meta")
    conv.conv_backward(u, u, weight, D, True, False, lengths)
    conv.conv_backward(u, u, weight, None, True, False)
    names = ["scan_forward", "scan_backward", "scan_forward", "conv_backward", "conv_backward"]
    assert compiled == names


@pytest.mark.parametrize("lasting", [False, True])
@torch.no_grad()
def test_mixers(compiled, lasting):
    from mtrkit.triton import mixer

    weights = cast(make_weights(), torch.float16 if lasting else torch.bfloat16)
    ways = tuple(type(way)(*map(meta, way)) for way in weights.directions)
    weights = weights._replace(in_proj=meta(weights.in_proj), out_proj=meta(weights.out_proj), directions=ways)
    hidden = torch.randn(2, 9, 24, device="meta", dtype=weights.in_proj.dtype)
    lengths = torch.ones(2, 9, dtype=torch.int64, device="meta") if lasting else None
    mixer.mix(hidden, weights, ("delta", "delta_mean", "y") if lasting else (), lengths)
    mixer.softplus_forward(hidden, None)
    assert set(compiled) == {"conv_forward", "scan_forward", "gate", "delta_softplus"} | (
        {"sum_deltas"} if lasting else set()
    )


def test_norm_and_tokens(compiled):
    from mtrkit.triton import norm, tokens

    x, positions = torch.randn(2, 9, 24, device="meta"), torch.ones(2, 4, dtype=torch.int64, device="meta")
    slot = torch.ones(2, 9, dtype=torch.int64, device="meta")
    norm.add_rms_norm(x.bfloat16(), x, x[0, 0], 1e-5)
    tokens.nearest(x, positions, positions)
    tokens.cosines(x, positions, positions)
    tokens.number(9, positions, positions, positions, True)
    tokens.merge([Merge(x.half(), x[..., :1]), Merge(x)], slot, 5)
    assert compiled == ["add_rms_norm", "nearest", "cosines", "number", "merge", "merge"]
