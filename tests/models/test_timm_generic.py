"""What timm's generic tests ask of every model, asked of ours; what they cannot have is listed with its reason.

The checks are those of ``tests/test_models.py`` of timm 1.0.31, in our words, on every family. Large models
are built with three narrow blocks, as the checks are about the form.
"""

import math

import pytest
import timm
import torch
from timm.layers import get_channel_dim, get_spatial_dim

import mtrkit
from mtrkit.models.releases import BUNDLED
from tests.helpers.running import ROOT

SMALL = {"depth": 3, "embed_dim": 32}
MODELS = {
    "vim_tiny_patch16_224": SMALL,
    "vim_small_patch16_stride8_224": SMALL,
    "vim_micro_patch4_stride2_avgpool_32": {},
    "videomamba_tiny_patch16_224": SMALL,
    "videomamba_tiny_patch16_224_f8": SMALL,
    "mambar_small_patch16_224": SMALL,
}
CREATE = {"timm": timm.create_model, "mtrkit": mtrkit.create_model}
pytestmark = [pytest.mark.parametrize("name", MODELS), pytest.mark.parametrize("create", CREATE.values(), ids=CREATE)]


def built(create, name, **options):
    return create(name, **(MODELS[name] | options)).eval()


def image(name, model, batch=1):
    """An input of the size that the model's cfg says; it is fixed."""
    assert model.default_cfg["fixed_input_size"] and model.default_cfg == model.pretrained_cfg
    return torch.randn(batch, *model.default_cfg["input_size"])


def test_forward_and_checkpointing(create, name):
    model = built(create, name)
    outputs = model(x := image(name, model))
    assert outputs.shape[0] == 1 and not outputs.isnan().any()
    model.set_grad_checkpointing()
    torch.testing.assert_close(model(x), outputs, rtol=1e-4, atol=1e-5)


def test_backward_reaches_every_parameter(create, name):
    model = built(create, name, num_classes=42).train()
    outputs = model(image(name, model, batch=2))
    outputs.mean().backward()
    assert outputs.shape[-1] == 42 and not outputs.isnan().any()
    assert [key for key, value in model.named_parameters() if value.grad is None] == []


@torch.no_grad()
def test_cfg_and_head(create, name):
    model = built(create, name)
    assert model.num_classes >= 0 and model.num_features > 0 and model.head_hidden_size > 0
    state, cfg, x = model.state_dict(), model.default_cfg, image(name, model)
    assert f"{cfg['classifier']}.weight" in state and f"{cfg['first_conv']}.weight" in state
    tokens = model.forward_features(x)
    pooled = model.forward_head(tokens, pre_logits=True)
    assert tokens.shape[-1] == model.num_features and pooled.shape[1] == model.head_hidden_size
    model.reset_classifier(0)
    assert model.num_classes == 0 and model(x).shape == pooled.shape
    headless = built(create, name, num_classes=0)
    wide = name.startswith("mambar")  # an exception, see below
    assert headless(x).shape[-1] == (headless.head_hidden_size if wide else headless.num_features)


@torch.no_grad()
def test_features_only(create, name):
    model = built(create, name, features_only=True)
    x = torch.randn(1, *model.default_cfg["input_size"])
    assert "classifier" not in model.default_cfg and "num_classes" not in model.default_cfg
    check_maps(model(x), model.feature_info, x)


@torch.no_grad()
def test_forward_intermediates(create, name):
    model = built(create, name)
    info = timm.models.FeatureInfo(model.feature_info, len(model.feature_info))
    tokens, maps = model.forward_intermediates(x := image(name, model), output_fmt="NCHW")
    check_maps(maps, info, x)
    torch.testing.assert_close(model.forward_features(x), tokens)
    model.set_grad_checkpointing()
    torch.testing.assert_close(model.forward_intermediates(x)[0], tokens, rtol=1e-4, atol=1e-5)


def check_maps(maps, info, x):
    """As many maps as are told, of the channels and at most the sizes that are told."""
    assert len(info.channels()) == len(maps) >= 3
    rows, columns = get_spatial_dim("NCHW")
    for channels, reduction, found in zip(info.channels(), info.reduction(), maps, strict=True):
        assert found.shape[0] == x.shape[0] and found.shape[get_channel_dim("NCHW")] == channels
        assert found.shape[rows] <= math.ceil(x.shape[-2] / reduction) + 1
        assert found.shape[columns] <= math.ceil(x.shape[-1] / reduction) + 1
        assert not found.isnan().any()


def test_pretrained_with_one_channel(create, name):
    if name not in BUNDLED:
        pytest.skip("its weights are on the Hub")
    given = {"pretrained": True} if create is timm.create_model else {"checkpoint": "pretrained", "new_head": True}
    for classes in (5, 0):
        model = create(name, in_chans=1, num_classes=classes, **given)
        assert model.in_chans == 1 and model.num_classes == classes
    create(name, features_only=True, **given)


@pytest.mark.parametrize("train", [False, True])
def test_symbolic_tracing_by_timms_tools(create, name, train):
    extraction = pytest.importorskip("torchvision.models.feature_extraction")
    how = {
        "leaf_modules": timm.models.get_notrace_modules(),
        "autowrap_functions": timm.models.get_notrace_functions(),
        "param_shapes_constant": True,
    }
    model = built(create, name, num_classes=42)
    nodes = [names[-1:] for names in extraction.get_graph_node_names(model, tracer_kwargs=how)]
    traced = extraction.create_feature_extractor(
        model, train_return_nodes=nodes[0], eval_return_nodes=nodes[1], tracer_kwargs=how
    )
    (outputs,) = traced.train(train)(x := image(name, model)).values()
    assert torch.equal(outputs, model.train(train)(x)) and outputs.shape == (1, 42)
    outputs.mean().backward()
    assert [key for key, value in traced.named_parameters() if value.grad is None] == []


# Each exception is one: the test fails if a model could have what it is excused from.

EXCEPTIONS = {  # timm's test: our reason
    "test_model_inference": "compares with outputs that are stored on the Hub",
    "test_model_default_cfgs": "is for networks whose forward_features is a map; ours gives tokens, as timm's ViTs do",
    "test_model_default_cfgs_non_std": "passes, but that Mamba-Reg without a head gives its registers side by side",
    "test_model_load_pretrained": "passes for the bundled weights; the others are on the Hub",
    "test_model_features_pretrained": "passes for the bundled weights; the others are on the Hub",
    "test_model_forward_torchscript": "the scan is a custom operator in several kernels, and torch.jit is deprecated",
    "test_model_forward_fx_torchscript": "as test_model_forward_torchscript",
    "test_model_forward_torchscript_with_features_fx": "as test_model_forward_torchscript",
}


def test_exceptions_are_needed(create, name):
    model = built(create, name)
    assert "pool_size" not in model.default_cfg or model.default_cfg["pool_size"] is None
    assert model.forward_features(image(name, model)).dim() == 3
    assert (model.num_features == model.head_hidden_size) != name.startswith("mambar")
    with pytest.raises(mtrkit.InputError, match="torch.export"):  # without timm's list of parts to trace around
        torch.fx.symbolic_trace(model)


def test_exceptions_are_documented(create, name):
    page = ROOT / "docs" / "timm.md"
    if not page.exists():
        pytest.skip("the page lies in the repository only")
    assert [test for test, reason in EXCEPTIONS.items() if f"| `{test}` | {reason} |" not in page.read_text()] == []
