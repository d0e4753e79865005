"""A compiled model is one operator on a CPU, which runs the model as it is, whatever has been put on it since."""

import copy
import gc
import io
import weakref

import pytest
import torch
from torch import nn
from torch.func import functional_call

import mtrkit
from mtrkit.errors import InputError, StreamError
from mtrkit.models import MambaReg, VideoMamba, VisionMamba

pytestmark = [
    pytest.mark.skipif(not hasattr(torch.compiler, "is_exporting"), reason="this torch does not say if it exports"),
    pytest.mark.filterwarnings("ignore"),  # torch's own compilers warn about themselves
]

SIZE = {"img_size": 16, "patch_size": 4, "embed_dim": 16, "num_classes": 5}
MODELS = {
    "vim": lambda: VisionMamba(**SIZE, depth=4),
    "mambar": lambda: MambaReg(**SIZE, depth=4, num_registers=2),
    "videomamba": lambda: VideoMamba(**SIZE, depth=4, num_frames=2),
}


def make(name="vim"):
    torch.manual_seed(0)
    return MODELS[name]().eval()


def images(batch=2, name="vim"):
    frames = (2,) if name == "videomamba" else ()
    return torch.randn(batch, 3, *frames, 16, 16, generator=torch.Generator().manual_seed(1))


class Compiled:
    """A compiled model, and the operators of mtrkit in every graph that was made of it."""

    def __init__(self, model, fullgraph=True):
        torch._dynamo.reset()
        self.graphs = []
        self.run = torch.compile(model, backend=self._look, fullgraph=fullgraph)

    def __call__(self, *given):
        with torch.no_grad():
            return self.run(*given)

    def _look(self, graph, inputs):
        self.graphs.append([str(node.target) for node in graph.graph.nodes if "mtrkit" in str(node.target)])
        return graph.forward


@torch.no_grad()
def answer(model, x=None):
    return model(images() if x is None else x)


@pytest.mark.parametrize("method", [None, "mtr", "runs", "hsa"])
@pytest.mark.parametrize("name", MODELS)
def test_one_operator_with_the_bits_of_the_model(name, method):
    model, x = make(name), images(name=name)
    if method:
        mtrkit.apply_reduction(model, method, ratio=0.2)
    compiled = Compiled(model)
    assert torch.equal(compiled(x), answer(model, x))
    assert compiled.graphs == [["mtrkit.run_blocks.default"]]


def test_batches_of_any_size_take_two_graphs():
    model = mtrkit.apply_reduction(make(), "mtr", ratio=0.2)
    compiled = Compiled(model)
    for batch in (1, 2, 3, 5, 8):
        assert torch.equal(compiled(images(batch)), answer(model, images(batch)))
    assert len(compiled.graphs) <= 2


def reduce_anew(model):
    mtrkit.apply_reduction(model, "runs", ratio=0.3)


def remove(model):
    mtrkit.remove_reduction(model)


def hook(model):
    model.layers[2].mixer.conv1d.register_forward_hook(lambda *given: given[-1] * 2)


def set_forward(model):
    linear = model.layers[3].mixer.in_proj
    linear.forward = lambda x: nn.functional.linear(x, linear.weight) * 2


def replace_a_part(model):
    model.layers[1] = copy.deepcopy(model.layers[0])
    model.norm_f = nn.LayerNorm(16)


def set_data(model):
    model.layers[0].mixer.in_proj.weight.data = torch.randn(64, 16)


def set_values(model):
    with torch.no_grad():
        model.layers[0].mixer.A_log.add_(1)


def set_weight(model):
    model.layers[0].norm.weight = nn.Parameter(torch.full((16,), 3.0))


@pytest.mark.parametrize(
    "change", [reduce_anew, remove, hook, set_forward, replace_a_part, set_data, set_values, set_weight]
)
def test_what_changes_afterwards_counts(change):
    model = make()
    if change is not replace_a_part:  # which a reduced model refuses
        mtrkit.apply_reduction(model, "mtr", ratio=0.2)
    compiled = Compiled(model)
    before = compiled(images())
    change(model)
    after = compiled(images())
    assert torch.equal(after, answer(model)) and not torch.equal(after, before)


def test_a_reduction_is_not_compiled_again():
    model = make()
    compiled = Compiled(model)
    for ratio in (0.0, 0.1, 0.2):
        mtrkit.apply_reduction(model, "mtr", ratio=ratio)
        assert torch.equal(compiled(images()), answer(model))
    assert len(compiled.graphs) == 1


def test_weights_that_only_the_compiler_knows():
    model, other = make(), make()
    set_values(other)
    wanted, values = answer(other), dict(other.named_parameters())
    compiled = Compiled(lambda values, x: functional_call(model, values, (x,)))
    assert torch.equal(compiled(values, images()), wanted)
    assert compiled.graphs == [["mtrkit.run_blocks.default"]] and not torch.equal(answer(model), wanted)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_weights_that_change_inside_of_the_graph(backend):
    model = make()

    @torch.no_grad()
    def change_and_run(x):
        model.layers[1].mixer.in_proj.weight.mul_(2)
        return model(x)

    torch._dynamo.reset()
    found = torch.compile(change_and_run, backend=backend, fullgraph=True)(images())
    assert torch.equal(found, answer(model))


def saved(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("make_copy", [copy.deepcopy, saved])
def test_a_copy_runs_its_own_blocks(make_copy):
    model = make()
    twin = make_copy(model)
    set_values(twin)
    compiled, compiled_twin = Compiled(model), Compiled(twin)
    assert torch.equal(compiled(images()), answer(model)) and torch.equal(compiled_twin(images()), answer(twin))
    assert not torch.equal(answer(model), answer(twin))


def test_one_graph_for_models_of_a_kind():
    first, second = make(), make()
    set_values(second)
    compiled = Compiled(lambda model, x: model(x))
    assert torch.equal(compiled(first, images()), answer(first))
    assert torch.equal(compiled(second, images()), answer(second))
    assert len(compiled.graphs) == 1


def test_nothing_holds_a_model():
    model = make()
    Compiled(model)(images())
    gone = weakref.ref(model)
    del model
    torch._dynamo.reset()
    gc.collect()
    assert gone() is None


def test_a_model_that_is_gone_is_named():
    with pytest.raises(InputError, match="is not in this process"):
        torch.ops.mtrkit.run_blocks(torch.zeros(1, 3, 16), torch.tensor(1), [])


def test_errors_come_out_as_they_are():
    model = mtrkit.apply_reduction(make(), "mtr", ratio=0.2)
    compiled = Compiled(model)
    compiled(images())
    model.layers[0].register_forward_hook(lambda module, given, found: (found[0], found[1].residual))
    with pytest.raises(StreamError, match="has handed on a ReducedStream"):
        compiled(images())


def test_without_blocks():
    model = make()
    model.layers, model.norm_f = model.layers[:0], nn.Identity()
    model.forward_head = lambda tokens: tokens
    model.run_blocks = lambda tokens: tokens
    x = images()
    found = Compiled(model.forward_features)(x)
    assert torch.equal(found, model._embed(x).detach())


@pytest.mark.parametrize("strict", [False, True])
@torch.no_grad()
def test_a_file_does_not_hold_it(strict):
    program = torch.export.export(make(), (images(),), strict=strict)
    assert "run_blocks" not in str(program.graph)


@pytest.mark.parametrize("name", ["gradients", "autocast", "reference", "subclass"])
def test_what_it_is_not_for(name):
    model = make()
    compiled = Compiled(model)
    if name == "gradients":
        compiled.run(images()).sum().backward()
        assert model.layers[0].mixer.in_proj.weight.grad.abs().sum() > 0
    elif name == "autocast":
        with torch.autocast("cpu", torch.bfloat16):
            compiled(images())
    elif name == "reference":
        with mtrkit.use_scan_backend("reference"):
            assert torch.equal(compiled(images()), answer(model))
    else:
        quantization = pytest.importorskip("torchao.quantization")
        config = quantization.Int8WeightOnlyConfig()
        quantization.quantize_(model, config, filter_fn=lambda module, name: name.endswith("in_proj"))
        torch.testing.assert_close(compiled(images()), answer(model))
    assert compiled.graphs and not any("mtrkit.run_blocks.default" in graph for graph in compiled.graphs)
