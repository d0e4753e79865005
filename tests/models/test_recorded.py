"""In a compiled graph a stretch of blocks is one operator, which gives the bits of an uncompiled pass."""

import subprocess
import sys

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import mtrkit
from mtrkit.errors import InputError
from mtrkit.models import recorded  # noqa: F401  (it defines the operator)
from tests.models.test_stretch import CHANGES, MODELS, images, make

pytestmark = [
    pytest.mark.filterwarnings("ignore"),  # torch's own compilers warn about themselves
    pytest.mark.skipif(not hasattr(torch.compiler, "is_exporting"), reason="torch 2.6 compiles block by block"),
]
STRETCH = torch.ops.mtrkit.stretch.default
CHAINED = ["mtr", "runs", "neighbor", "rmeeto", "tome"]
OTHERS = [name for name in MODELS if name != "vim"]


@pytest.fixture(autouse=True)
def fresh():
    torch._dynamo.reset()


def prepared(name="vim", method=None, depth=3, layers=(1, 2), **options):
    """Few blocks: more would only be traced again."""
    model = make(name)
    model.layers = model.layers[:depth]
    return model if method is None else mtrkit.apply_reduction(model, method, layers=layers, r=9, **options)


class Look:
    """A backend of torch.compile that notes the operators of each graph and runs them as they are."""

    def __init__(self):
        self.graphs = []

    def __call__(self, graph, _):
        names = [str(node.target) for node in graph.graph.nodes if "mtrkit" in str(node.target)]
        self.graphs.append([name.removeprefix("mtrkit.").removesuffix(".default") for name in names])
        return graph.forward


@pytest.mark.parametrize(
    ("name", "method"), [("vim", None), *[("vim", method) for method in CHAINED], *[(name, "mtr") for name in OTHERS]]
)
@torch.inference_mode()
def test_all_blocks_are_one_operator(name, method):
    model, look = prepared(name, method), Look()
    compiled = torch.compile(model, fullgraph=True, backend=look)
    assert torch.equal(compiled(images()), model(images()))
    norm = [] if method is None else ["add_rms_norm"]  # which is known to see each token alone
    assert look.graphs and all(graph == ["stretch", *norm] for graph in look.graphs)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("method", [None, "mtr", "runs"])
@torch.inference_mode()
def test_in_16_bits_too(method, dtype):
    model, look = prepared(method=method).to(dtype), Look()
    compiled = torch.compile(model, fullgraph=True, backend=look)
    assert torch.equal(compiled(images().to(dtype)), model(images().to(dtype)))
    assert look.graphs[0].count("stretch") == 1


@pytest.mark.parametrize("method", [None, "runs"])
@torch.no_grad()
def test_inductor_gives_the_answer(method):
    model = prepared("mean", method)
    torch.testing.assert_close(torch.compile(model)(images()), model(images()))


@pytest.mark.parametrize(
    ("method", "options"), [("mtr", {"operation": "hybrid"}), ("mtr", {"metric": "y"}), ("hsa", {}), ("evit", {})]
)
@torch.inference_mode()
def test_a_reduction_that_is_no_part_of_a_chain_is_between_two(method, options):
    model, look = prepared(method=method, **options), Look()
    assert torch.equal(torch.compile(model, fullgraph=True, backend=look)(images()), model(images()))
    assert look.graphs[0].count("stretch") == 3


@pytest.mark.parametrize("place", ["layers.2", "layers.2.mixer.x_proj"])
@pytest.mark.parametrize("method", [None, "runs"])
@torch.inference_mode()
def test_a_block_with_a_hook_is_between_two(place, method):
    """A stretch also begins behind a reduction, with a stream."""
    model, look = prepared(method=method, depth=4), Look()
    compiled = torch.compile(model, backend=look)
    before = compiled(images())
    model.get_submodule(place).register_forward_hook(lambda module, given, out: None)
    torch.testing.assert_close(compiled(images()), before)
    assert torch.equal(compiled(images()), model(images())) and look.graphs[1].count("stretch") == 2


@pytest.mark.parametrize("change", CHANGES)
@torch.inference_mode()
def test_what_changes_after_compiling_counts(change):
    model = prepared(method="runs", depth=2, layers=[1])
    compiled = torch.compile(model, backend="eager")
    compiled(images())
    CHANGES[change](model.layers[1])
    assert torch.equal(compiled(images()), model(images()))


@pytest.mark.parametrize("part", ["x_proj", "conv1d"])
@torch.inference_mode()
def test_a_layers_own_forward_that_comes_after_compiling_counts(part):
    model = prepared()
    compiled = torch.compile(model, backend="eager")
    before, layer = compiled(images()), model.layers[2].mixer.get_submodule(part)
    forward = layer.forward
    layer.forward = lambda x: 2 * forward(x)
    after = compiled(images())
    assert torch.equal(after, model(images())) and not torch.allclose(after, before)


def test_gradients_are_taken_block_by_block():
    model, look = prepared(method="mtr"), Look()
    torch.compile(model, fullgraph=True, backend=look)(images()).sum().backward()
    assert "stretch" not in look.graphs[0] and model.layers[0].mixer.in_proj.weight.grad is not None


@torch.no_grad()
def test_exported_programs_stay_block_by_block():
    for strict in (False, True):
        program = torch.export.export(prepared(method="mtr"), (images(),), strict=strict)
        assert str(program.graph).count("mtrkit.mixer.default") == 3


def arguments(method=None, name="vim", **options):
    """Those of the operator in a pass of the model."""
    found = []

    class Catch(torch.fx.Interpreter):
        def call_function(self, target, args, kwargs):
            if target is STRETCH:
                found.append(args)
            return super().call_function(target, args, kwargs)

    compiled = torch.compile(prepared(name, method, **options), backend=lambda graph, _: Catch(graph).run)
    with torch.inference_mode():
        compiled(images())
    return found


@pytest.mark.parametrize("name", ["vim", "mean"])
@pytest.mark.parametrize(("method", "options"), [(None, {}), ("mtr", {}), ("runs", {}), ("mtr", {"metric": "y"})])
def test_is_a_well_formed_operator(name, method, options):
    """With metric="y" there are signals to return, and stretches that begin with a stream.

    Without a class token the channels of the first tokens are not next to each other.
    """
    for inputs in arguments(method, name, **options):
        with torch.inference_mode():
            inputs = torch.utils._pytree.tree_map_only(torch.Tensor, torch.clone, inputs)  # no inference tensors
        torch.library.opcheck(STRETCH, inputs, test_utils=("test_schema", "test_faketensor"))


def test_its_cost_is_that_of_its_blocks():
    for method in (None, "runs"):
        (inputs,) = arguments(method)
        with FlopCounterMode(display=False) as counter, torch.inference_mode():
            STRETCH(*inputs)
        found = counter.get_total_flops()
        with FlopCounterMode(display=False) as counter, torch.inference_mode():
            prepared(method=method)(images())
        whole = counter.get_total_flops()
        assert 0.9 * whole < found < whole  # which has patches, head and matching beside


def test_a_graph_from_elsewhere_says_what_is_missing():
    (inputs,) = arguments("runs")
    with pytest.raises(InputError, match="'runs of yore', which was not applied in this process"):
        STRETCH(*inputs[:10], "runs of yore", *inputs[11:])


def test_it_has_no_derivative():
    (inputs,) = arguments()
    weight = inputs[5][0].detach().clone().requires_grad_()
    out = STRETCH(*inputs[:5], [weight, *inputs[5][1:]], *inputs[6:])[0]
    with pytest.raises(InputError, match="mtrkit::stretch has no derivative"):
        out.sum().backward()


@torch.inference_mode()
def test_a_pickled_model_compiles_in_another_process(tmp_path):
    """What the operator knows of reductions is not in its arguments, but comes from the model that is traced."""
    model = prepared(method="runs")
    torch.save((model, images(), model(images())), tmp_path / "model.pt")
    code = f"""
import torch, mtrkit.ops.chained
model, images, expected = torch.load({str(tmp_path / "model.pt")!r}, weights_only=False)
assert mtrkit.ops.chained._KNOWN  # a graph that was compiled elsewhere may run before any pass of the model
with torch.inference_mode():
    assert torch.equal(torch.compile(model, backend="eager", fullgraph=True)(images), expected)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
