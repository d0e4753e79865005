"""What people put on a model, or do with one, that used to go unseen: it is right, or refused in words."""

import copy
import threading
import types
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode

import mtrkit
from mtrkit.errors import InputError, UnsupportedModelError
from mtrkit.scan.dispatch import backend_for
from tests.helpers.families import FAMILIES
from tests.standins.language import mamba_lm
from tests.test_matrix import IMAGES, fingerprint, run

CLOSE = {"rtol": 1e-4, "atol": 1e-5}


def vim():
    return FAMILIES["vim"]()


@torch.no_grad()
def reference(model):
    with mtrkit.use_scan_backend("reference"):
        return model(IMAGES)


@pytest.mark.parametrize("method", [None, "random"])
def test_second_derivatives_are_refused_and_right_by_the_reference(method):
    model, images = vim(), IMAGES.clone().requires_grad_()
    if method:
        mtrkit.apply_reduction(model, method)

    def penalty():
        (grad,) = torch.autograd.grad(model(images).square().sum(), images, create_graph=True)
        grad.square().sum().backward()

    with pytest.raises(InputError, match="has no derivative.*reference"):
        penalty()
    with mtrkit.use_scan_backend("reference"):
        penalty()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("capture", ["export", "trace"])
def test_what_was_captured_without_gradients_is_not_trained_in_silence(capture):
    model = vim()
    with torch.no_grad():
        if capture == "export":
            captured = torch.export.export(model, (IMAGES,), strict=False).module()
        else:
            captured = torch.jit.trace(model, IMAGES, check_trace=False)
    with pytest.raises(Exception, match="has no derivative"):
        captured(IMAGES).square().sum().backward()


@torch.no_grad()
def test_stochastic_depth_that_is_on_is_on():
    model = vim()
    for block in model.layers:
        block.drop_path = type(block.drop_path)(0.4).train()
    torch.manual_seed(0)
    found = model(IMAGES)
    torch.manual_seed(0)
    torch.testing.assert_close(found, reference(model), **CLOSE)
    assert not torch.allclose(found, model(IMAGES))


@pytest.mark.parametrize("change", [{"dilation": 2, "padding": 6}, {"padding_mode": "circular"}])
@torch.no_grad()
def test_a_convolution_of_another_kind_is_run_as_it_is(change):
    model, seen = vim(), []
    plain, mixer = model(IMAGES), model.layers[2].mixer
    conv = nn.Conv1d(64, 64, 4, groups=64, **{"padding": 3, **change})
    conv.load_state_dict(mixer.conv1d.state_dict())
    mixer.conv1d = conv
    found = model(IMAGES)
    conv.register_forward_hook(lambda *_: seen.append(1))
    torch.testing.assert_close(found, model(IMAGES), **CLOSE)
    assert seen and not torch.allclose(found, plain)


@torch.no_grad()
def test_what_a_hook_holds_is_not_written_to():
    model, held = mtrkit.apply_reduction(vim(), indicator="B"), []
    for block in model.layers:
        block.mixer.x_proj.register_forward_hook(lambda _, __, out: held.append((out, out.clone())))
    model(IMAGES)
    assert held and all(torch.equal(out, before) for out, before in held)


@torch.no_grad()
def test_gaps_that_do_not_arrive_are_missed():
    model = mtrkit.apply_reduction(vim(), "hsa", state="decay")
    model.layers[-1].mixer.register_forward_pre_hook(lambda _, inputs: inputs[0] * 1.0)
    with pytest.raises(UnsupportedModelError, match="holds back an argument"):
        model(IMAGES)


@pytest.mark.parametrize("dtype", [torch.int8, torch.bool, torch.complex64])
@pytest.mark.parametrize("name", ["in_proj.weight", "conv1d.weight", "A_log"])
@torch.no_grad()
def test_weights_that_are_no_real_numbers_are_refused(dtype, name):
    model = vim()
    owner = model.layers[2].mixer.get_submodule(name.rpartition(".")[0])
    weight = getattr(owner, name.rpartition(".")[2])
    setattr(owner, name.rpartition(".")[2], nn.Parameter(weight.data.to(dtype), requires_grad=False))
    with warnings.catch_warnings(), pytest.raises((InputError, RuntimeError)):
        warnings.simplefilter("ignore")
        model(IMAGES)


class Scaled(TorchFunctionMode):
    """Some functions give a tenth less."""

    def __init__(self, *functions):
        super().__init__()
        self.functions = functions

    def __torch_function__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        return out * 0.9 if function in self.functions else out


@pytest.mark.parametrize("functions", [(F.linear,), (F.rms_norm, torch.rms_norm)])
@pytest.mark.parametrize("method", [None, "runs"])
@torch.no_grad()
def test_function_modes_see_every_layer(method, functions):
    model = vim()
    if method:
        mtrkit.apply_reduction(model, method)
    with Scaled(*functions):
        found, wanted = model(IMAGES), reference(model)
    torch.testing.assert_close(found, wanted, **CLOSE)
    assert not torch.allclose(found, model(IMAGES), **CLOSE)


@pytest.mark.parametrize("functions", [(F.linear,), (F.rms_norm, torch.rms_norm)])
@pytest.mark.parametrize("before", [False, True])
@torch.no_grad()
def test_function_modes_see_every_layer_of_a_compiled_model(before, functions):
    torch._dynamo.reset()
    model = mtrkit.apply_reduction(vim(), "mtr")
    compiled = torch.compile(model, backend="aot_eager")  # backend="eager" runs the graph inside of the mode once more
    if before:
        compiled(IMAGES)
    with Scaled(*functions):
        torch.testing.assert_close(compiled(IMAGES), model(IMAGES), **CLOSE)
    torch.testing.assert_close(compiled(IMAGES), model(IMAGES), **CLOSE)


class LouderWeight(torch.Tensor):
    """A weight that multiplies by more than it says."""

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        out = super().__torch_function__(function, types, args, kwargs or {})
        return out * 1.5 if function is F.rms_norm else out


@torch.no_grad()
def test_norm_weights_that_compute_by_themselves_do():
    model = vim()
    plain = model(IMAGES)
    for block in model.layers:
        weight = nn.Parameter(block.norm.weight.data.as_subclass(LouderWeight), requires_grad=False)
        block.norm._parameters["weight"] = weight
    found = model(IMAGES).as_subclass(torch.Tensor)
    torch.testing.assert_close(found, reference(model).as_subclass(torch.Tensor), **CLOSE)
    assert not torch.allclose(found, plain)


@torch.no_grad()
def test_other_mixers_and_norms_in_their_places():
    model = vim()
    model.layers[2].mixer, model.layers[3].norm = nn.Identity(), nn.LayerNorm(32)
    assert model(IMAGES).isfinite().all()


class TimesTwo:
    """Stands for an adapter that is put on by replacing `forward`."""

    def __init__(self, block):
        self.inner = block.forward

    def __call__(self, x, *args, **kwargs):
        return self.inner(x, *args, **kwargs) * 2


@torch.no_grad()
def test_a_forward_of_its_own_is_not_left_out_of_blocks_that_an_adapter_runs():
    model = FAMILIES["timm_vit"]()
    for block in model.blocks:
        block.forward = TimesTwo(block)
    before = run(model)
    with pytest.raises(UnsupportedModelError, match="`forward` of its own"):
        mtrkit.apply_reduction(model, "tome")
    assert torch.equal(run(model), before)


@torch.no_grad()
def test_a_subclass_with_a_forward_of_its_own_is_not_left_out():
    model = FAMILIES["timm_vit"]()

    class Attention(type(model.blocks[0].attn)):
        def forward(self, x, *args, **kwargs):
            return super().forward(x, *args, **kwargs) * 2

    for block in model.blocks:
        block.attn.__class__ = Attention
    with pytest.raises(UnsupportedModelError, match="Attention has a `forward` of its own"):
        mtrkit.apply_reduction(model, "tome")


def louder(blocks):
    """Mixers of a subclass that gives half as much again."""

    class Louder(type(blocks[0].mixer)):
        def forward(self, *args, **kwargs):
            return super().forward(*args, **kwargs) * 1.5

    for block in blocks:
        block.mixer.__class__ = Louder


@pytest.mark.parametrize("build", [FAMILIES["hustvl_vim"], mamba_lm])
def test_a_subclass_of_an_official_mixer_with_a_forward_of_its_own_is_not_left_out(build):
    model = build()
    louder(getattr(model, "backbone", model).layers)
    marks = fingerprint(model)
    with pytest.raises(UnsupportedModelError, match="a Louder has a `forward` of its own"):
        mtrkit.apply_reduction(model, "mtr")
    assert fingerprint(model) == marks


@torch.no_grad()
def test_such_a_subclass_runs_its_own_forward_if_the_method_reads_no_signal():
    model, plain = FAMILIES["hustvl_vim"](), FAMILIES["hustvl_vim"]()
    plain.load_state_dict(model.state_dict())
    louder(model.layers)
    for block in plain.layers:
        block.mixer.out_proj.weight.mul_(1.5)
    found, wanted = (run(mtrkit.apply_reduction(each, "random")) for each in (model, plain))
    torch.testing.assert_close(found, wanted, **CLOSE)


@torch.no_grad()
def test_masks_for_the_blocks_are_not_left_out():
    model = mtrkit.apply_reduction(FAMILIES["timm_vit"](), "tome")
    tokens = model._pos_embed(model.patch_embed(IMAGES))
    with pytest.raises(InputError, match="was given attn_mask"):
        for block in model.blocks:
            tokens = block(tokens, attn_mask=torch.zeros(1, 1, 65, 65))


@torch.no_grad()
def test_a_lost_patch_is_noticed():
    model = mtrkit.apply_reduction(vim())
    last = model.layers[-1]
    del last.forward
    with pytest.raises(UnsupportedModelError, match="block 6 of VisionMamba has lost its patch"):
        model(IMAGES)
    last.forward = types.MethodType(type(last).forward, last)
    with pytest.raises(UnsupportedModelError, match="has lost its patch"):
        model(IMAGES)
    mtrkit.apply_reduction(model)
    model(IMAGES)


@torch.no_grad()
def test_an_earlier_patch_that_was_put_back_is_noticed():
    model = mtrkit.apply_reduction(vim())
    earlier = model.layers[-1].forward
    mtrkit.apply_reduction(model, "tome")
    model.layers[-1].forward = earlier
    with pytest.raises(UnsupportedModelError, match="has lost its patch"):
        model(IMAGES)


@torch.no_grad()
def test_contexts_of_two_threads_may_overlap():
    model = vim()
    dense = model(IMAGES)
    mtrkit.apply_reduction(model)
    reduced, entered, leave = model(IMAGES), threading.Event(), threading.Event()

    def other():
        with mtrkit.reduction_disabled(model), mtrkit.use_scan_backend("reference"):
            entered.set()
            leave.wait(10)

    thread = threading.Thread(target=other)
    with mtrkit.reduction_disabled(model), mtrkit.use_scan_backend("native"):
        thread.start()
        entered.wait(10)
    assert backend_for("cpu") == "reference"  # the other is still inside
    assert torch.allclose(model(IMAGES), dense, **CLOSE)
    leave.set()
    thread.join()
    assert backend_for("cpu") != "reference"
    assert torch.equal(model(IMAGES), reduced)


@torch.no_grad()
def test_copies_made_while_disabled_are_reduced():
    model = mtrkit.apply_reduction(vim())
    with mtrkit.reduction_disabled(model), mtrkit.trace_reduction(model) as trace:
        twin = copy.deepcopy(model)
    assert torch.equal(twin(IMAGES), model(IMAGES)) and not trace.stages


@torch.no_grad()
def test_hooks_on_layers_that_official_code_reads_are_refused_at_the_call_too():
    model = mtrkit.apply_reduction(FAMILIES["hustvl_vim"](), "random")
    model.layers[4].mixer.conv1d.register_forward_hook(lambda *_: None)
    with pytest.raises(UnsupportedModelError, match="`conv1d` of a Mamba"):
        run(model)


@torch.no_grad()
def test_a_model_that_shares_blocks_with_a_reduced_one_is_refused():
    teacher, student = mtrkit.apply_reduction(vim()), vim()
    student.layers = nn.ModuleList([teacher.layers[i] for i in (0, 1, 3, 5)])
    with pytest.raises(UnsupportedModelError, match="belongs to another model"):
        mtrkit.apply_reduction(student)
    mtrkit.remove_reduction(teacher)
    assert mtrkit.apply_reduction(student)(IMAGES).isfinite().all()
