"""What must never reach the compiled library: it reads memory by address, and believes what it is told."""

import pytest
import torch
from torch import nn
from torch.testing._internal.two_tensor import TwoTensor

import mtrkit
from mtrkit.errors import InputError
from mtrkit.native import jobs, mixer, scan, tokens
from mtrkit.native.library import library
from mtrkit.scan import mixer_parts
from mtrkit.types import Scan
from tests.helpers.families import FAMILIES
from tests.scan.inputs import make_inputs

pytestmark = pytest.mark.skipif(bool(library().missing), reason="needs the compiled library")


def freed():
    """A tensor whose memory is gone, as FSDP leaves weights between passes."""
    x = torch.randn(4, 3)
    x.untyped_storage().resize_(0)
    return x


def fake():
    with torch._subclasses.FakeTensorMode():
        return torch.randn(4, 3)


BAD = {
    "a subclass without numbers": lambda: TwoTensor(torch.randn(4, 3), torch.randn(4, 3)),
    "a fake tensor": fake,
    "another device": lambda: torch.randn(4, 3, device="meta"),
    "sparse": lambda: torch.randn(4, 3).to_sparse(),
}


@pytest.mark.parametrize("name", BAD)
def test_is_refused(name):
    with pytest.raises(InputError):
        jobs.dense(BAD[name]())


def test_memory_that_was_freed_is_refused():
    with pytest.raises(InputError, match="memory was freed"):
        jobs.address(freed())


def test_lazy_views_are_settled():
    z = torch.randn(4, 3, dtype=torch.complex64)
    negated = z.conj().imag
    assert negated.is_neg() and not jobs.has_memory(negated)
    assert torch.equal(jobs.dense(negated), -z.imag) and not jobs.dense(negated).is_neg()


def test_a_subclass_that_is_plain_memory_passes():
    class Named(torch.Tensor):
        """Only a name."""

    x = torch.randn(4, 3).as_subclass(Named)
    assert jobs.has_memory(x) and jobs.dense(x).data_ptr() == x.data_ptr()


@pytest.mark.parametrize("name", ["delta", "A", "B", "C", "D", "z", "bias"])
def test_sizes_of_a_scan(name):
    u, delta, A, B, C, D, z, bias = make_inputs(2, 24, 19, 4)
    whole = Scan(u, delta, A, B[:, None], C[:, None], D, z, bias)
    short = getattr(whole, name)[..., :-1]
    with pytest.raises(InputError, match=f"^{'[AB]' if name == 'A' else name} has shape"):
        scan.scan_forward(whole._replace(**{name: short}), False)
    with pytest.raises(InputError):
        torch.ops.mtrkit.selective_scan(*whole._replace(**{name: short}), False)


def test_sizes_of_a_backward_pass():
    u, delta, A, B, C, D, z, bias = make_inputs(2, 24, 19, 4)
    whole = Scan(u, delta, A, B[:, None], C[:, None], D, z, bias)
    y, last, kept = scan.scan_forward(whole, True)
    for bad in ((y[..., :-1], last, kept), (y, last[..., :-1], kept), (y, last, kept[..., :-1])):
        with pytest.raises(InputError, match="has shape"):
            scan.scan_backward(bad[0], bad[1], whole, bad[2])
    with pytest.raises(InputError, match="5 groups"):
        scan.scan_forward(whole._replace(B=torch.randn(2, 5, 4, 19), C=torch.randn(2, 5, 4, 19)), False)


def test_sizes_of_a_convolution_and_a_softplus():
    x, weight, bias = torch.randn(2, 24, 9), torch.randn(24, 4), torch.randn(24)
    for bad in ((x, weight[:-1], bias), (x, weight, bias[:-1])):
        with pytest.raises(InputError, match="has shape"):
            scan.conv_forward(*bad, True, False)
        with pytest.raises(InputError, match="has shape"):
            scan.conv_backward(x, *bad, True, False)
    with pytest.raises(InputError, match="grad_y has shape"):
        scan.conv_backward(x[..., :-1], x, weight, bias, True, False)
    with pytest.raises(InputError, match="bias has shape"):
        scan.softplus_forward(x, bias[:-1])


def test_positions_of_a_match():
    metric, src, dst = torch.randn(2, 9, 5), torch.tensor([[0, 2], [1, 3]]), torch.tensor([[4, 6], [5, 7]])
    for bad in ((src + 9, dst), (src, dst + 9), (src - 1, dst), (src, dst - 6)):
        with pytest.raises(InputError, match="outside of 0 … 8"):
            tokens.nearest(metric, *bad)
    for bad in ((src[:1], dst), (src, dst[:, :0]), (src[0], dst)):
        with pytest.raises(InputError, match="expected"):
            tokens.nearest(metric, *bad)
    with pytest.raises(InputError, match="positions are"):
        tokens.nearest(metric, src.int(), dst)


def test_positions_of_pairs():
    metric, a, b = torch.randn(2, 9, 5), torch.tensor([[0, 2], [1, 3]]), torch.tensor([[4, 6], [5, 7]])
    for bad in ((a + 9, b), (a, b + 9), (a - 1, b)):
        with pytest.raises(InputError, match="outside of 0 … 8"):
            tokens.cosines(metric, *bad)
    for bad in ((a[:1], b), (a, b[:, :1]), (a[0], b[0])):
        with pytest.raises(InputError, match="expected"):
            tokens.cosines(metric, *bad)
    with pytest.raises(InputError, match="positions are"):
        tokens.cosines(metric, a.int(), b)


def test_sizes_of_a_mixer():
    parts = mixer_parts(FAMILIES["vim"]().layers[0].mixer)
    for bad in (torch.randn(5, 32), torch.randn(2, 5, 31)):
        with pytest.raises(InputError):
            mixer.mix(bad, parts)
    with pytest.raises(InputError, match="3 directions"):
        mixer.mix(
            torch.randn(2, 5, 32),
            parts._replace(directions=parts.directions * 2)._replace(
                directions=(*parts.directions, parts.directions[0])
            ),
        )


@torch.no_grad()
def test_weights_of_a_subclass_never_reach_it():
    """F1: address 0 was read, and the process ended."""
    model, images = FAMILIES["vim"](), torch.randn(2, 3, 32, 32)
    dense = model(images)
    layer = model.layers[0].mixer.in_proj
    layer.weight = nn.Parameter(TwoTensor(layer.weight.data, layer.weight.data.clone()))
    found = model(images)
    torch.testing.assert_close(getattr(found, "a", found), dense, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_decay_rates_that_no_layer_holds_are_refused_by_name():
    model = FAMILIES["vim"]()
    mixer_ = model.layers[2].mixer
    mixer_.A_log = nn.Parameter(TwoTensor(mixer_.A_log.data, mixer_.A_log.data.clone()))
    with pytest.raises(mtrkit.InputError, match="A_log is a TwoTensor"):
        model(torch.randn(2, 3, 32, 32))
