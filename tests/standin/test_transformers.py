"""The Mamba models of transformers take mamba_ssm's functions where they import; here they take ours."""

import importlib.util
import inspect
import sys

import pytest
import torch

import mtrkit
from mtrkit.standin import conv, scan

usual = pytest.importorskip("transformers.models.mamba.modeling_mamba")
IDS = torch.randint(40, (2, 9), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def over_ours():
    """Its module once more, imported over the stand-ins: it looks for mamba_ssm while it is imported."""
    spec = importlib.util.spec_from_file_location(f"{usual.__name__}_over_ours", usual.__file__)
    module = importlib.util.module_from_spec(spec)
    with mtrkit.as_mamba_ssm(), pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, spec.name, module)
        spec.loader.exec_module(module)
    taken = [
        inspect.getclosurevars(value).nonlocals.values() for value in vars(module).values() if inspect.isfunction(value)
    ]
    if not any(scan.mamba_inner_fn is value for values in taken for value in values):
        pytest.skip("this release of transformers looks for mamba_ssm elsewhere, or the real one is installed")
    assert any(conv.causal_conv1d_fn is value for values in taken for value in values)
    return module


@pytest.fixture
def models(over_ours):
    """One that runs on torch alone and one that runs on the stand-ins, with the same weights."""
    torch.manual_seed(0)
    config = usual.MambaConfig(vocab_size=40, hidden_size=32, num_hidden_layers=2, state_size=8)
    plain, ours = usual.MambaForCausalLM(config).eval(), over_ours.MambaForCausalLM(config).eval()
    ours.load_state_dict(plain.state_dict())
    return plain, ours


def test_values_and_gradients(models):
    plain, ours = models
    with torch.no_grad():
        torch.testing.assert_close(ours(IDS).logits, plain(IDS).logits, rtol=1e-4, atol=1e-5)
    for model in models:
        model.train()(IDS).logits.square().mean().backward()
    for found, wanted in zip(ours.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(found.grad, wanted.grad, rtol=1e-3, atol=1e-5 * wanted.grad.abs().max().item())


def test_generation(models):
    options = {"max_new_tokens": 8, "do_sample": False, "attention_mask": torch.ones_like(IDS)}
    plain, ours = (model.generate(IDS, **options) for model in models)
    assert torch.equal(plain, ours)
