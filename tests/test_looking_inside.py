"""Intermediates of a reduced model, back on the grid, by what hooks and the trace have seen."""

import pytest
import torch

import mtrkit
from mtrkit.errors import InputError, UnsupportedModelError
from tests.helpers.families import FAMILIES
from tests.standins.language import VOCABULARY, hf_mamba

IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(6))


def seen(model, module, images=IMAGES):
    """What a hook of a module sees in a traced pass, and the trace."""
    found = []
    hook = module.register_forward_hook(lambda module, given, output: found.append(output))
    with torch.no_grad(), mtrkit.trace_reduction(model) as trace:
        model(images)
    hook.remove()
    return found[0], trace


def test_every_patch_has_the_numbers_of_its_token():
    model = mtrkit.apply_reduction(FAMILIES["vim"](), "rmeeto", ratio=0.4)
    output, trace = seen(model, model.layers[-1].mixer)
    grid = mtrkit.full_grid(output, trace)
    assert grid.shape == (2, 32, 8, 8) and output.shape[1] < 65
    assert torch.equal(mtrkit.full_grid(output[..., 0], trace), grid[:, 0])
    sequence, slot = trace.sequence(output), trace.slot
    for sample in range(2):
        for position in range(65):
            assert torch.equal(sequence[sample, position], output[sample, slot[sample, position]])
    assert torch.equal(grid.flatten(2).transpose(1, 2), torch.cat([sequence[:, :32], sequence[:, 33:]], dim=1))


def test_dropped_patches_are_filled():
    model = mtrkit.apply_reduction(FAMILIES["vim"](), "hsa", ratio=0.4)
    output, trace = seen(model, model.layers[-1].mixer)
    gone = torch.cat([trace.slot[:, :32], trace.slot[:, 33:]], dim=1).view(2, 8, 8) < 0
    assert gone.any() and torch.equal(mtrkit.full_grid(output, trace, fill=-7.0)[:, 0] == -7, gone)


@pytest.mark.parametrize("family", ["vim", "vim_mambar", "hustvl_vim", "mambar", "timm_vit"])
@pytest.mark.parametrize("method", ["tome", "random"])
def test_what_the_hook_of_a_block_sees(family, method):
    """Behind the last block but one it is, on the full sequence, what that block hands to the dense last block."""
    model = FAMILIES[family]()
    blocks = model.blocks if family == "timm_vit" else model.layers
    mtrkit.apply_reduction(model, method, ratio=0.3, layers=[2, 4])
    output, trace = seen(model, blocks[4])
    sequence = trace.sequence(output)
    assert sequence.shape == (2, trace.slot.shape[1], 32) and mtrkit.full_grid(output, trace).shape == (2, 32, 8, 8)
    last = output[0] + output[1].residual if type(output) is tuple else output.residual
    assert last.shape[1] < sequence.shape[1]
    kept = trace.slot >= 0
    assert torch.allclose(sequence[kept], trace.sequence(last)[kept], atol=1e-5)
    dropped = sequence[~kept]
    assert (method == "random") == bool(len(dropped)) and bool((dropped != 0).all())


def test_the_pass_that_runs_is_the_one_that_is_meant():
    """A hook inside of a pass sees the reductions so far, and those of the pass before do not count."""
    model, grids = mtrkit.apply_reduction(FAMILIES["vim"](), "tome", ratio=0.3, layers=[2, 4]), []
    with torch.no_grad(), mtrkit.trace_reduction(model) as trace:
        for block in model.layers:
            block.mixer.register_forward_hook(lambda m, given, output: grids.append(mtrkit.full_grid(output, trace)))
        model(IMAGES)
        model(IMAGES.flip(0))
    assert len(grids) == 12 and len(trace.stages) == 4 and len(trace.latest) == 2
    assert all(torch.allclose(a, b.flip(0), atol=1e-5) for a, b in zip(grids[:6], grids[6:], strict=True))


def test_a_dense_pass_is_on_the_grid_as_it_is():
    model = mtrkit.apply_reduction(FAMILIES["vim"](), ratio=0.3)
    with mtrkit.reduction_disabled(model):
        output, trace = seen(model, model.layers[-1].mixer)
    assert torch.equal(trace.sequence(output), output)
    assert torch.equal(mtrkit.full_grid(output, trace)[:, :, 0, 0], output[:, 0])


def test_gradients_flow_back():
    model = mtrkit.apply_reduction(FAMILIES["vim"](), "tome", ratio=0.4)
    output, trace = seen(model, model.layers[-1].mixer)
    tokens = output.clone().requires_grad_()
    mtrkit.full_grid(tokens, trace).sum().backward()
    counts = (trace.slot[..., None] == torch.arange(tokens.shape[1])).sum(dim=1)
    counts[torch.arange(2), trace.slot[:, 32]] -= 1  # the class token is not on the grid
    assert torch.equal(tokens.grad[..., 0], counts.to(tokens.dtype))


def test_another_size_of_input():
    model = mtrkit.VisionMamba(img_size=32, patch_size=4, embed_dim=32, depth=6, num_classes=10).eval()
    model.set_input_size((32, 48))
    mtrkit.apply_reduction(model, ratio=0.3, input_size=(3, 32, 48))
    output, trace = seen(model, model.layers[-1].mixer, torch.randn(1, 3, 32, 48))
    assert mtrkit.full_grid(output, trace).shape == (1, 32, 8, 12)


def test_what_cannot_be_is_refused():
    model = mtrkit.apply_reduction(FAMILIES["vim"](), ratio=0.3)
    output, trace = seen(model, model.layers[-1].mixer)
    with pytest.raises(InputError, match="64 tokens were given, but the traced pass had 65, "):
        mtrkit.full_grid(torch.zeros(2, 64, 32), trace)
    with pytest.raises(InputError, match="3 samples were given"):
        mtrkit.full_grid(torch.zeros(3, output.shape[1], 32), trace)
    text = mtrkit.apply_reduction(hf_mamba(), ratio=0.3)
    output, trace = seen(text, text.backbone.layers[-1].mixer, torch.randint(VOCABULARY, (1, 40)))
    with pytest.raises(UnsupportedModelError, match=r"trace\.sequence"):
        mtrkit.full_grid(output, trace)
