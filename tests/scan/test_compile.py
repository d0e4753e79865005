"""The operators as torch sees them: schema, shape rules, compile and export, forward and backward."""

import pytest
import torch

from mtrkit.scan import causal_conv1d
from tests.helpers.tolerances import SCAN_GRADIENTS, rms_error
from tests.scan.inputs import cast, leaves, make_inputs, scan


@pytest.mark.parametrize(
    ("path", "dtype"),
    [  # torch operations in float32 differ in the last bits between memory orders: more than opcheck allows
        ("best", torch.float32),
        ("best", torch.bfloat16),
        ("torch", torch.bfloat16),
        ("torch", torch.float64),
    ],
    indirect=["path"],
    ids=str,
)
@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.filterwarnings("ignore")  # opcheck reads .grad of what it has copied
def test_operators_keep_their_promises(path, dtype, channels_last):
    inputs = cast(make_inputs(2, 24, 19, 4, groups=2, channels_last=channels_last), dtype)
    for save in (True, False):
        torch.library.opcheck(torch.ops.mtrkit.selective_scan.default, (*leaves(inputs), True, True, save))
    bare = (*leaves(inputs)[:5], None, None, None, False, False, True)
    torch.library.opcheck(torch.ops.mtrkit.selective_scan.default, bare)
    weight, bias = (inputs.A.detach().clone().requires_grad_(), inputs.D.detach().clone().requires_grad_())
    u = inputs.u.detach().requires_grad_()
    torch.library.opcheck(torch.ops.mtrkit.causal_conv1d.default, (u, weight, bias, True, False))
    torch.library.opcheck(torch.ops.mtrkit.causal_conv1d.default, (u, weight, None, False, True))


class Layer(torch.nn.Module):
    """Convolution and scan, the tensors given from outside."""

    def forward(self, weight, u, *rest):
        y, last = scan(causal_conv1d(u, weight, reverse=True), *rest, True, True)
        return y * 2, last


@pytest.mark.filterwarnings("ignore")  # torch's compiler has its own
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiles_to_one_graph(backend):
    inputs = (torch.randn(24, 4, requires_grad=True), *leaves(make_inputs(2, 24, 19, 4)))
    layer = Layer()
    compiled = torch.compile(layer, fullgraph=True, backend=backend)
    expected, found = layer(*inputs), compiled(*inputs)
    for a, b in zip(found, expected, strict=True):
        assert rms_error(a, b) == 0
        assert a.stride() == b.stride()
    grads = [torch.autograd.grad(sum((t * t).sum() for t in out), inputs) for out in (found, expected)]
    for a, b in zip(*grads, strict=True):
        assert rms_error(a, b) < SCAN_GRADIENTS[torch.float32]
    with torch.no_grad():
        assert torch.equal(compiled(*inputs)[0], expected[0])


@pytest.mark.filterwarnings("ignore")
def test_exports_with_a_free_batch_size():
    inputs = (torch.randn(24, 4), *make_inputs(2, 24, 19, 4))
    batch = torch.export.Dim("batch", min=2, max=64)
    per_sample = {0, 1, 3, 4, 6}
    free = [None] + [{0: batch} if i in per_sample else None for i in range(8)]
    with torch.no_grad():
        program = torch.export.export(
            Layer(), inputs, dynamic_shapes={"weight": None, "u": free[1], "rest": tuple(free[2:])}
        )
    calls = [str(node.target) for node in program.graph.nodes]
    assert calls.count("mtrkit.selective_scan.default") == 1
    other = (inputs[0], *make_inputs(5, 24, 19, 4))
    assert torch.equal(program.module()(*other)[0], Layer()(*other)[0])
