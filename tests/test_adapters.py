"""Of all adapters: sizes whatever stands on the layers, which one is the nearest, and a family added from outside."""

from functools import partial

import pytest
import torch
from torch import nn

import mtrkit
from mtrkit.adapters import ADAPTERS, find_adapter, find_host
from mtrkit.adapters.official import OfficialMamba
from mtrkit.adapters.stack import STACK, last
from tests.helpers.families import FAMILIES
from tests.standins import hustvl_vim
from tests.standins.hustvl_vim import VisionMamba
from tests.standins.language import hf_mamba, mamba_lm
from tests.standins.mamba_vision import MambaVision
from tests.test_matrix import IMAGES, fingerprint, run

MODELS = {name: FAMILIES[name] for name in ("vim", "vim_mambar", "hustvl_vim", "videomamba", "mambar_neck", "timm_vit")}
MODELS |= {"hf_mamba": hf_mamba, "mamba_lm": mamba_lm, "mamba_vision": lambda: MambaVision().eval()}
PROJECTIONS = ["in_proj", "x_proj", "dt_proj", "out_proj", "head", "neck", "proj", "qkv", "fc1", "fc2", "lm_head"]


def dynamic_int8(model):
    return torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)


def torchao_int8(model):
    quantization = pytest.importorskip("torchao.quantization")
    quantization.quantize_(model, quantization.Int8WeightOnlyConfig())
    return model


def lora(model):
    peft = pytest.importorskip("peft")
    leaves = {name.rpartition(".")[2] for name, layer in model.named_modules() if not isinstance(layer, nn.Identity)}
    config = peft.LoraConfig(target_modules=sorted(leaves & {*PROJECTIONS, "conv1d"}), rank_pattern={"conv1d": 64}, r=4)
    if hasattr(model, "config"):  # a model of transformers, for which peft refuses these two
        config.target_modules = config.target_modules - {"out_proj", "conv1d"}
    return peft.get_peft_model(model, config)


def checkpointed(model):
    """Every linear layer and convolution inside of torch's wrapper."""
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

    for module in list(model.modules()):
        for name, layer in module.named_children():
            if isinstance(layer, nn.Linear | nn.Conv1d | nn.Conv2d):
                setattr(module, name, checkpoint_wrapper(layer))
    return model


@pytest.mark.filterwarnings("ignore")  # of the packages
@pytest.mark.parametrize("put", [dynamic_int8, torchao_int8, lora, checkpointed], ids=lambda put: put.__name__)
@pytest.mark.parametrize("family", MODELS)
def test_flops_do_not_depend_on_what_is_on_the_layers(family, put):
    pytest.importorskip("timm") if family.startswith("timm") else None
    plain, model = MODELS[family](), put(MODELS[family]())
    host, adapter = find_host(model)
    size = adapter.input_size(host)
    assert adapter.name == find_host(plain)[1].name and size == adapter.input_size(find_host(plain)[0])
    for directions in ("one", "all"):
        wanted = mtrkit.count_flops(plain, size, directions=directions)
        assert mtrkit.count_flops(model, size, directions=directions) == wanted


@pytest.mark.filterwarnings("ignore")  # of peft
@pytest.mark.parametrize("family", ["vim", "hustvl_vim"])
def test_peft_around_whole_mixers_is_named_with_the_way_out(family):
    peft = pytest.importorskip("peft", minversion="0.17")
    config = peft.LoraConfig(target_modules=[], target_parameters=["mixer.A_log"], r=2)
    model = peft.get_peft_model(MODELS[family](), config)
    with pytest.raises(
        mtrkit.UnsupportedModelError, match=r"mixer` of a PeftModel is a ParamWrapper.*merge_and_unload"
    ):
        mtrkit.apply_reduction(model)
    assert mtrkit.apply_reduction(model.merge_and_unload())(IMAGES).isfinite().all()


def test_a_layer_that_says_no_size_is_named():
    model = FAMILIES["hustvl_vim"]()
    model.layers[0].mixer.in_proj = nn.Sequential(model.layers[0].mixer.in_proj)
    with pytest.raises(mtrkit.UnsupportedModelError, match="a Sequential stands where a layer says its `in_features`"):
        mtrkit.count_flops(model)


@torch.no_grad()
def test_a_mixer_that_stands_in_two_blocks_is_as_good_as_two():
    model, twin = FAMILIES["hustvl_vim"](), FAMILIES["hustvl_vim"]()
    model.layers[4].mixer = model.layers[1].mixer
    twin.load_state_dict(model.state_dict())
    for each in (model, twin):
        mtrkit.apply_reduction(each, layers=(2, 5))
    assert torch.equal(run(model), run(twin))


def test_a_block_that_stands_in_two_places_is_refused():
    model = FAMILIES["hustvl_vim"]()
    model.layers[4] = model.layers[1]
    before = fingerprint(model)
    with pytest.raises(mtrkit.UnsupportedModelError, match="blocks 2 and 5 of VisionMamba are one module"):
        mtrkit.apply_reduction(model)
    assert fingerprint(model) == before


def without(name):
    model = VisionMamba()
    delattr(model, name)
    return model


@pytest.mark.parametrize(
    ("build", "says"),
    [
        (partial(without, "if_rope"), "the nearest is hustvl_vim: has no `if_rope`"),
        (lambda: nn.Sequential(without("norm_f")), "nearest for the VisionMamba inside is hustvl_vim: has no `norm_f`"),
        (lambda: nn.Linear(2, 2), "Linear fits no adapter: it has none of the parts"),
    ],
)
def test_the_nearest_family_and_what_it_misses_is_named_alone(build, says):
    with pytest.raises(mtrkit.UnsupportedModelError, match=says) as caught:
        mtrkit.apply_reduction(build())
    assert str(caught.value).count(": ") == 1 and "\n" not in str(caught.value)


def test_a_model_that_can_be_reduced_is_found_beside_one_that_cannot():
    both = nn.ModuleList([VisionMamba(if_rope=True), FAMILIES["vim"]()])
    assert find_host(both) == (both[1], find_adapter(both[1]))


class Tail(hustvl_vim.VisionMamba):
    """A family of the official kind: the class token behind the patches, a switch of its own in the mixers."""

    def __init__(self):
        super().__init__()
        self.tail_token = self.cls_token
        del self.cls_token, self.if_cls_token, self.if_rope
        for block in self.layers:
            block.mixer.both_ways = True

    def forward_features(self, x):
        x = self.patch_embed(x)
        x = torch.cat([x, self.tail_token.expand(x.shape[0], -1, -1)], dim=1)
        hidden_states, residual = x + self.pos_embed, None
        for layer in self.layers:
            hidden_states, residual = layer(hidden_states, residual, inference_params=None)
        return self.norm_f(residual + hidden_states)[:, -1]

    def forward(self, x):
        return self.head(self.forward_features(x))


class TailAdapter(OfficialMamba):
    name, summary = "tail", "what CONTRIBUTING.md calls a family of the official kind"
    marks = (*STACK, "tail_token")
    switch = "both_ways"

    def averages_directions(self, mixer):
        return mixer.if_divide_out

    def num_class_tokens(self, model):
        return 1

    def special_at(self, model):
        return last


@pytest.fixture
def tail():
    mtrkit.register_adapter(TailAdapter)
    yield Tail().eval()
    if TailAdapter.name in mtrkit.list_adapters():
        ADAPTERS.remove(TailAdapter.name)


def test_a_family_of_the_official_kind_is_added_through_the_public_door(tail):
    assert "tail" in mtrkit.list_adapters()
    before, dense = fingerprint(tail), run(tail)
    mtrkit.apply_reduction(tail, ratio=0.3)
    info, reduced = mtrkit.reduction_info(tail), run(tail)
    assert info.adapter == "tail" and info.num_tokens == 65 and abs(info.ratio_reached - 0.3) < 0.02
    assert reduced.shape == dense.shape and not torch.allclose(reduced, dense)
    with mtrkit.trace_reduction(tail) as trace:
        assert torch.equal(run(tail), reduced)
    assert all([64] in trace.groups(sample) for sample in range(len(IMAGES)))
    mtrkit.remove_reduction(tail)
    assert fingerprint(tail) == before and torch.equal(run(tail), dense)


def test_a_family_that_was_taken_out_again_is_unknown(tail):
    ADAPTERS.remove("tail")
    with pytest.raises(mtrkit.UnsupportedModelError, match="fits no adapter"):
        mtrkit.apply_reduction(tail)


def test_a_family_of_the_official_kind_inherits_its_refusals(tail):
    tail.layers[3].mixer.both_ways = False
    with pytest.raises(mtrkit.UnsupportedModelError, match=r"tail.*`layers.3.mixer` has both_ways=False"):
        mtrkit.apply_reduction(tail)
