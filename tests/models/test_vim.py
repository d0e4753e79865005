"""The model computes what the paper defines, on the official weights' names and shapes."""

import copy
import io
import pickle

import pytest
import torch
import torch.nn.functional as F

import mtrkit
from mtrkit.models import VisionMamba, create_model
from mtrkit.models.layers import DropPath, PatchEmbed, RMSNorm
from mtrkit.models.videomamba import ClipEmbed
from tests.models.plain_vim import plain_vim
from tests.models.shared import IMAGES, real_images, tiny

PARAMETERS = {
    "vim_nano_patch4_stride2_32": 676_522,
    "vim_micro_patch4_32": 985_546,
    "vim_micro_patch4_stride2_32": 1_001_002,
    "vim_tiny_patch16_224": 7_148_008,
    "vim_tiny_patch16_stride8_224": 7_250_344,
    "vim_small_patch16_224": 25_796_584,
    "vim_small_patch16_stride8_224": 26_001_256,
    "vim_base_patch16_224": 97_598_440,
}


def official_shapes(dim, depth, places, patch=16, classes=1000):
    """Names and shapes of the official state dicts, N = 16 and K = 4."""
    inner, rank = 2 * dim, -(-dim // 16)
    shapes = {
        "patch_embed.proj.weight": (dim, 3, patch, patch),
        "patch_embed.proj.bias": (dim,),
        "cls_token": (1, 1, dim),
        "pos_embed": (1, places, dim),
        "norm_f.weight": (dim,),
        "head.weight": (classes, dim),
        "head.bias": (classes,),
    }
    for i in range(depth):
        shapes[f"layers.{i}.norm.weight"] = (dim,)
        shapes[f"layers.{i}.mixer.in_proj.weight"] = (2 * inner, dim)
        shapes[f"layers.{i}.mixer.out_proj.weight"] = (dim, inner)
        for b in ("", "_b"):
            shapes[f"layers.{i}.mixer.A{b}_log"] = (inner, 16)
            shapes[f"layers.{i}.mixer.D{b}"] = (inner,)
            shapes[f"layers.{i}.mixer.conv1d{b}.weight"] = (inner, 1, 4)
            shapes[f"layers.{i}.mixer.conv1d{b}.bias"] = (inner,)
            shapes[f"layers.{i}.mixer.x_proj{b}.weight"] = (rank + 32, inner)
            shapes[f"layers.{i}.mixer.dt_proj{b}.weight"] = (inner, rank)
            shapes[f"layers.{i}.mixer.dt_proj{b}.bias"] = (inner,)
    return shapes


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_are_the_official_ones(name):
    with torch.device("meta"):
        model = create_model(name)
    shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    dim, depth, places = model.embed_dim, len(model.layers), model.pos_embed.shape[1]
    patch, classes = model.patch_embed.patch_size[0], model.num_classes
    assert shapes == official_shapes(dim, depth, places, patch, classes)
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[name]
    assert dict(model.named_parameters()).keys() == shapes.keys()


def test_every_model_with_a_class_token_in_the_middle_is_covered_above():
    others = ["vim_micro_patch4_stride2_avgpool_32"]
    assert set(mtrkit.list_models("vim_*")) == {*PARAMETERS, *others}
    assert len(mtrkit.list_models("vim_tiny*")) == 2


@torch.no_grad()
def test_pretrained_model_agrees_with_the_plain_loop_on_real_images():
    model = create_model("vim_micro_patch4_32", "pretrained")
    images, labels = real_images(step=25)
    logits, wanted = model(images), plain_vim(model.state_dict(), images, patch=4)
    assert (logits - wanted).abs().max() < 1e-4
    assert torch.equal(logits.argmax(1), wanted.argmax(1))
    assert (logits.argmax(1) == labels).float().mean() > 0.5


@pytest.mark.parametrize(
    "options", [{"img_size": 20}, {"stride": 3}, {"img_size": (16, 24)}, {"patch_size": 16}], ids=str
)
@torch.no_grad()
def test_other_grids_agree_with_the_plain_loop(options):
    model = tiny(**options)
    images = torch.randn(2, 3, *model.patch_embed.img_size)
    patch, stride = model.patch_embed.patch_size[0], model.patch_embed.stride[0]
    wanted = plain_vim(model.state_dict(), images, patch, stride)
    assert (model(images) - wanted).abs().max() < 1e-4 * wanted.abs().max().clamp(min=1)


@pytest.mark.parametrize(
    ("size", "stride", "index"),
    [(224, 16, 98), (224, 8, 364), (384, 16, 288), (448, 16, 392), (512, 16, 512), (208, 16, 84), (16, 16, 0)],
)
def test_class_index(size, stride, index):
    with torch.device("meta"):
        model = VisionMamba(size, 16, stride, depth=1)
    assert model.class_index == index


@torch.no_grad()
def test_class_token_and_position_row_stand_in_the_middle():
    model = tiny(img_size=12)  # nine patches: the middle is not symmetric
    model.pos_embed.zero_()
    model.cls_token.fill_(7)
    model.patch_embed.proj.weight.zero_()
    tokens = model._embed(torch.zeros(1, 3, 12, 12))
    assert [i for i in range(10) if (tokens[0, i] == 7).all()] == [4] == [model.class_index]


@torch.no_grad()
def test_pooling_and_class_token_choices():
    front = tiny(class_token="front")
    tokens = front.forward_features(IMAGES)
    assert torch.equal(front.forward_head(tokens, pre_logits=True), tokens[:, 0])
    middle = tiny(global_pool="avg")
    tokens = middle.forward_features(IMAGES)
    patches = torch.cat([tokens[:, :8], tokens[:, 9:]], dim=1)
    assert torch.equal(middle.forward_head(tokens, pre_logits=True), patches.mean(1))
    none = tiny(class_token="none", global_pool="avg")
    assert "cls_token" not in none.state_dict() and none.class_index is None
    tokens = none.forward_features(IMAGES)
    assert tokens.shape == (3, 16, 32)
    assert torch.equal(none(IMAGES), none.head(tokens.mean(1)))
    every = tiny(global_pool="", num_classes=0)
    assert every(IMAGES).shape == (3, 17, 32)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"class_token": "end"}, "'middle', 'front', 'none'"),
        ({"global_pool": "mean"}, "'token', 'avg', ''"),
        ({"class_token": "none", "global_pool": "token"}, "needs a class token"),
        ({"img_size": 3}, "smaller than one patch"),
        ({"drop_path_rate": 1.0}, r"\[0, 1\)"),
    ],
)
def test_bad_options_are_refused(options, says):
    with pytest.raises(mtrkit.OptionError, match=says):
        tiny(**options)


@pytest.mark.parametrize("shape", [(2, 3, 16, 20), (2, 1, 16, 16), (3, 16, 16)])
def test_other_images_are_refused_with_advice(shape):
    with pytest.raises(mtrkit.InputError, match=r"expected \(B, 3, 16, 16\).*set_input_size"):
        tiny()(torch.zeros(shape))


def test_initial_values():
    mixer = tiny(depth=2).layers[1].mixer
    for dt_proj in (mixer.dt_proj, mixer.dt_proj_b):
        dt = F.softplus(dt_proj.bias)
        assert dt.min() > 0.999e-3 and dt.max() < 0.1001 and dt.std() > 0.01
        assert dt_proj.weight.abs().max() <= mixer.dt_rank**-0.5
    for A_log in (mixer.A_log, mixer.A_b_log):
        assert torch.allclose(A_log.exp(), torch.arange(1.0, 17).expand(64, 16))
    assert (mixer.D == 1).all() and (mixer.D_b == 1).all()
    assert mixer.out_proj.weight.abs().max() <= 64**-0.5 / 2**0.5 + 1e-6


def test_drop_path_rates_are_laid_out_like_the_official_ones():
    model = VisionMamba(img_size=16, patch_size=4, embed_dim=16, depth=5, drop_path_rate=0.4)
    assert [block.drop_path.rate for block in model.layers] == pytest.approx([0, 0, 0.1, 0.2, 0.3])
    assert model.drop_path.rate == 0.4


def test_drop_path():
    x = torch.ones(4000, 2, 3)
    layer = DropPath(0.25)
    out = layer(x)
    assert out.unique().tolist() == pytest.approx([0, 1 / 0.75])
    assert (out == out[:, :1, :1]).all()
    assert abs(out.mean().item() - 1) < 0.05
    assert layer.eval()(x) is x


def test_rms_norm_keeps_the_dtype_of_the_stream():
    norm = RMSNorm(8).half()
    x = torch.randn(2, 5, 8)
    assert norm(x).dtype == torch.float32
    assert torch.allclose(norm(x), x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt())


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.1), (torch.float16, 0.01), (torch.float64, 1e-5)])
@torch.no_grad()
def test_other_precisions(dtype, tolerance):
    model = tiny()
    wanted = model(IMAGES)
    out = model.to(dtype)(IMAGES.to(dtype))
    assert out.dtype == dtype
    mixed, residual = model.layers[0](torch.randn(1, 7, 32, dtype=dtype))
    assert mixed.dtype == dtype and residual.dtype == torch.promote_types(dtype, torch.float32)
    assert (out.double() - wanted).abs().max() < tolerance * wanted.abs().max()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_keeps_the_residual_in_float32(dtype):
    model, seen = tiny(), []
    wanted = model(IMAGES)
    model.layers[2].register_forward_hook(lambda module, args, output: seen.append((args, output)))
    with torch.autocast("cpu", dtype):
        out = model(IMAGES)
    (hidden, residual), (mixed, total) = seen[0]
    assert hidden.dtype == mixed.dtype == out.dtype == dtype
    assert residual.dtype == total.dtype == torch.float32
    assert (out - wanted).abs().max() < 0.1 * wanted.abs().max()


def test_gradients_reach_every_parameter_and_checkpointing_changes_none():
    model = tiny(drop_path_rate=0.0).train()
    model(IMAGES).square().sum().backward()
    wanted = {name: p.grad.clone() for name, p in model.named_parameters()}
    assert all(grad.abs().sum() > 0 for grad in wanted.values())
    model.zero_grad()
    model.set_grad_checkpointing()
    model(IMAGES).square().sum().backward()
    for name, p in model.named_parameters():
        assert torch.allclose(p.grad, wanted[name], rtol=1e-4, atol=1e-5), name


@torch.no_grad()
def test_copies_and_pickles_give_the_same_bits():
    model = tiny()
    wanted = model(IMAGES)
    assert torch.equal(copy.deepcopy(model)(IMAGES), wanted)
    assert torch.equal(pickle.loads(pickle.dumps(model))(IMAGES), wanted)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    assert torch.equal(torch.load(file, weights_only=False)(IMAGES), wanted)


@pytest.mark.filterwarnings("ignore")  # torch's own compilers warn about themselves
@torch.no_grad()
def test_compile_and_export():
    model = tiny()
    wanted = model(IMAGES)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert torch.allclose(compiled(IMAGES), wanted, atol=1e-5)
    batch = torch.export.Dim("batch", min=1, max=64)
    exported = torch.export.export(model, (IMAGES,), dynamic_shapes={"x": {0: batch}}).module()
    assert torch.allclose(exported(IMAGES), wanted, atol=1e-5)
    assert torch.allclose(exported(IMAGES[:2]), wanted[:2], atol=1e-5)


@torch.no_grad()
def test_mixer_weights_are_what_forward_uses():
    mixer = tiny().layers[0].mixer
    tokens = torch.randn(2, 7, 32)
    weights = mtrkit.scan.mixer_parts(mixer, halve=mixer.halve)
    out, signals = mtrkit.scan.mixer_forward(tokens, weights, frozenset({"delta", "y"}))
    assert torch.allclose(out, mixer(tokens), atol=1e-6)
    assert weights.halve and len(weights.directions) == 2
    assert signals.delta.shape == signals.y.shape == (2, 7, 64)


@torch.inference_mode()
def test_blocks_run_in_one_call_unless_somebody_looks_between():
    model, images, seen = tiny(), IMAGES, []
    expected, block = model(images), model.layers[1]

    def look(module, *rest):
        seen.append(type(module).__name__)

    for register, found in (
        (block.mixer.register_forward_hook, "MambaMixer"),
        (block.mixer.register_forward_pre_hook, "MambaMixer"),
        (block.norm.register_forward_hook, "RMSNorm"),
        (torch.nn.modules.module.register_module_forward_hook, "Linear"),
    ):
        handle = register(look)
        torch.testing.assert_close(model(images), expected, rtol=1e-5, atol=1e-5 if found == "Linear" else 0)
        assert found in seen
        handle.remove()
        seen.clear()
    block.norm.forward = lambda x, residual: (look(block.norm), type(block.norm).forward(block.norm, x, residual))[1]
    assert torch.equal(model(images), expected) and seen == ["RMSNorm"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["image", "clip"])
def test_patches_of_16_bits_are_the_rounded_ones_of_float32(kind, dtype):
    """On a CPU, where torch's own convolution is slow without instructions for 16 bits."""
    embed = PatchEmbed(8, 4, embed_dim=24) if kind == "image" else ClipEmbed(8, 4, embed_dim=24, num_frames=2)
    embed, x = embed.to(dtype), torch.randn(2, *embed.input_size).to(dtype)
    exact = copy.deepcopy(embed).float()(x.float())
    assert torch.equal(embed(x), exact.to(dtype))
    (gradient,) = torch.autograd.grad(embed(x).float().sum(), embed.proj.weight)
    (expected,) = torch.autograd.grad(embed.proj(x).float().sum(), embed.proj.weight)
    torch.testing.assert_close(gradient, expected, rtol=0.02, atol=0.05)
    seen = []
    embed.proj.register_forward_hook(lambda layer, given, out: seen.append(out) or 2 * out)
    assert torch.equal(embed(x), 2 * seen[0].flatten(2).transpose(1, 2))
    with pytest.raises(RuntimeError, match="type"):
        embed.float()(x)
