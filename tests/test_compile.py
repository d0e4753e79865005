"""A patched model compiles without a graph break and exports, forward and backward."""

import copy

import pytest
import torch

import mtrkit
from mtrkit.errors import UnsupportedModelError
from mtrkit.models import VideoMamba
from tests.helpers.families import FAMILIES
from tests.standins.hustvl_vim import VisionMamba
from tests.test_matrix import IMAGES, run

pytestmark = pytest.mark.filterwarnings("ignore")  # torch's own compilers warn about themselves


@pytest.fixture(params=mtrkit.list_methods())
def model(request):
    torch._dynamo.reset()
    torch.use_deterministic_algorithms(False)
    model = FAMILIES["vim"]()
    model.layers = model.layers[:3]  # two reductions and a block behind them: more would only be traced again
    return mtrkit.apply_reduction(model, request.param, ratio=0.2, layers=[1, 2])


def test_fullgraph(model):
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    assert torch.equal(run(compiled), run(model))
    with mtrkit.reduction_disabled(model):
        assert torch.equal(run(compiled), run(model))
    assert torch.equal(run(compiled, IMAGES[:3]), run(model, IMAGES[:3]))


def test_a_compiled_model_notices_patch_and_removal():
    torch._dynamo.reset()
    model = FAMILIES["vim"]()
    compiled, dense = torch.compile(model, fullgraph=True, backend="eager"), run(model)
    assert torch.equal(run(compiled), dense)
    mtrkit.apply_reduction(compiled, ratio=0.3)
    reduced = run(compiled)
    assert torch.equal(reduced, run(model)) and not torch.equal(reduced, dense)
    mtrkit.apply_reduction(model, ratio=0.5)
    assert torch.equal(run(compiled), run(model)) and not torch.equal(run(compiled), reduced)
    mtrkit.remove_reduction(model)
    assert torch.equal(run(compiled), dense)


def test_gradients_through_the_compiled_graph(model):
    twin = copy.deepcopy(model)
    torch.compile(model, fullgraph=True, backend="aot_eager")(IMAGES).square().sum().backward()
    twin(IMAGES).square().sum().backward()
    for (name, a), b in zip(model.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-3, atol=1e-4 * float(b.grad.abs().max()), msg=name)


@torch.no_grad()
def test_export(model):
    exported = torch.export.export(model, (IMAGES,))
    torch.testing.assert_close(exported.module()(IMAGES), run(model))


@torch.no_grad()
def test_export_with_any_batch_size(model):
    sizes = ({0: torch.export.Dim("batch", min=2, max=32)},)
    exported = torch.export.export(model, (IMAGES,), dynamic_shapes=sizes)
    torch.testing.assert_close(exported.module()(IMAGES[:3]), run(model, IMAGES[:3]))


@pytest.mark.parametrize("method", [None, "mtr"])
@torch.no_grad()
def test_a_compiled_model_follows_the_scan_backend(method):
    torch._dynamo.reset()
    model, images, operators = small(), torch.randn(2, 3, 12, 12), []  # the reference scan is traced token by token
    if method:
        mtrkit.apply_reduction(model, method, layers=[1], r=2)

    def look(graph, inputs):
        operators.append({str(node.target) for node in graph.graph.nodes if "mtrkit" in str(node.target)})
        return graph.forward

    compiled = torch.compile(model, backend=look, fullgraph=True)
    compiled(images)
    with mtrkit.use_scan_backend("reference"):
        compiled(images)
    compiled(images)  # takes what was made first
    assert len(operators) == 2 and operators[0] and not operators[1]


def delete(model):
    del model.layers[1]


def swap(model):
    model.layers[0], model.layers[1] = model.layers[1], model.layers[0]


def lose(model):
    del model.layers[-1].forward


def hook(model):
    model.layers[-1].mixer.conv1d.register_forward_hook(lambda *_: None)


CHANGES = {delete: "have changed", swap: "have changed", lose: "lost its patch", hook: "`conv1d` of a Mamba"}


@pytest.mark.parametrize("change", CHANGES)
@torch.no_grad()
def test_a_compiled_model_refuses_what_it_would_refuse_uncompiled(change):
    """The checks were left out while torch compiled, and a graph that was made before the change ran on."""
    torch._dynamo.reset()
    images = torch.randn(2, 3, 12, 12)
    model = mtrkit.apply_reduction(VisionMamba(img_size=12, depth=3).eval(), "random", ratio=0.2, layers=[1])
    compiled = torch.compile(model, backend="eager")
    compiled(images)
    change(model)
    with pytest.raises(UnsupportedModelError, match=CHANGES[change]):
        compiled(images)


@pytest.mark.parametrize("strict", [False, True])
@torch.no_grad()
def test_a_changed_model_is_not_exported(strict):
    model = mtrkit.apply_reduction(FAMILIES["vim"](), "random")
    delete(model)
    with pytest.raises((UnsupportedModelError, torch._dynamo.exc.Unsupported), match="have changed since"):
        torch.export.export(model, (IMAGES,), strict=strict)


SMALL = {"img_size": 12, "patch_size": 4, "embed_dim": 16, "depth": 2, "num_classes": 5}


def small():
    return mtrkit.VisionMamba(**SMALL).eval()


@torch.no_grad()
def test_clips_compile_in_one_graph():
    """The compiler does not follow a property of a parent class."""
    torch._dynamo.reset()
    model = VideoMamba(**SMALL, num_frames=2).eval()
    clips = torch.randn(2, 3, 2, 12, 12)
    assert torch.equal(torch.compile(model, backend="eager", fullgraph=True)(clips), model(clips))


@torch.no_grad()
def test_quantised_weights_compile():
    """Their layers are called; the operator of a whole mixer does not take them."""
    quantization = pytest.importorskip("torchao.quantization")
    torch._dynamo.reset()
    model = small()
    config = quantization.Int8WeightOnlyConfig()
    quantization.quantize_(model, config, filter_fn=lambda module, name: name.endswith("in_proj"))
    images = torch.randn(2, 3, 12, 12)
    found = torch.compile(model, backend="eager", fullgraph=True)(images)
    torch.testing.assert_close(found, model(images), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("strict", [False, True])
@torch.no_grad()
def test_a_program_runs_whole_mixers(strict):
    model = small()
    program = torch.export.export(model, (torch.randn(2, 3, 12, 12),), strict=strict)
    assert str(program.graph).count("mtrkit.mixer.default") == 2


@torch.no_grad()
def test_a_compiled_function_may_switch_the_reduction_off():
    torch._dynamo.reset()
    model = mtrkit.apply_reduction(FAMILIES["vim"](), "mtr", ratio=0.3)

    @torch.compile(backend="eager", fullgraph=True)
    def dense(images):
        with mtrkit.reduction_disabled(model):
            return model(images)

    with mtrkit.reduction_disabled(model):
        wanted = model(IMAGES)
    assert torch.equal(dense(IMAGES), wanted) and not torch.equal(wanted, model(IMAGES))


def test_a_forward_derivative_inside_of_a_compiled_function():
    """It was zero: the scan's operator has no forward derivative, and a compiler loses what comes through it."""
    torch._dynamo.reset()
    model = mtrkit.VisionMamba(**SMALL | {"depth": 1}).eval()
    images, direction = torch.randn(2, 2, 3, 12, 12)
    run = lambda x, v: torch.func.jvp(model, (x,), (v,))[1]  # noqa: E731
    wanted = run(images, direction)
    assert wanted.abs().max() > 0
    torch.testing.assert_close(torch.compile(run, backend="aot_eager")(images, direction), wanted)
