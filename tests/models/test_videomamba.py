"""VideoMamba: sizes and FLOPs as published, official layouts load, and a clip is what its frames say."""

import pytest
import timm
import torch
from PIL import Image

import mtrkit
from mtrkit.errors import InputError, OptionError
from mtrkit.measure import preprocess_for
from mtrkit.models import VideoMamba
from tests.models.plain_vim import mixer, on_one_thread, rms_norm

CLIPS = {  # parameters and keys of the official classes, FLOPs of R-MeeTo's table
    "videomamba_tiny_patch16_224_f8": (7_033_744, 416, 11.54),
    "videomamba_small_patch16_224_f8": (25_568_656, 416, 40.43),
    "videomamba_middle_patch16_224_f8": (73_875_856, 552, 115.33),
}
IMAGES = {
    "videomamba_tiny_patch16_224": (7_148_008, 415),
    "videomamba_small_patch16_224": (25_796_584, 415),
    "videomamba_middle_patch16_224": (74_217_448, 551),
    "videomamba_base_patch16_224": (97_598_440, 415),
}


def small(**options):
    torch.manual_seed(0)
    size = {"img_size": 16, "patch_size": 4, "embed_dim": 16, "depth": 2, "num_classes": 5, "num_frames": 3}
    model = VideoMamba(**(size | options)).eval()
    torch.nn.init.normal_(model.temporal_pos_embedding)
    return model


def on_meta(name):
    with torch.device("meta"):
        return mtrkit.create_model(name)


@pytest.mark.parametrize("name", CLIPS)
def test_clip_models_are_those_published(name):
    parameters, keys, gflops = CLIPS[name]
    model = on_meta(name)
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert len(model.state_dict()) == keys
    assert model.state_dict()["temporal_pos_embedding"].shape == (1, 8, model.embed_dim)
    assert round(mtrkit.count_flops(model).gflops, 2) == gflops


@pytest.mark.parametrize(("frames", "tokens"), [(16, 3_137), (32, 6_273), (64, 12_545)])
@pytest.mark.parametrize("name", CLIPS)
def test_longer_clips_have_names_of_their_own(name, frames, tokens):
    model = on_meta(name.replace("_f8", f"_f{frames}"))
    parameters, keys, _ = CLIPS[name]
    assert sum(p.numel() for p in model.parameters()) == parameters + (frames - 8) * model.embed_dim
    assert len(model.state_dict()) == keys
    assert mtrkit.count_flops(model).tokens[0] == tokens and model.pretrained_cfg["hf_hub_filename"].count(
        f"_f{frames}_"
    )


@pytest.mark.parametrize("create", [mtrkit.create_model, timm.create_model])
def test_cfgs_of_clips_have_their_frames(create):
    name, size = "videomamba_tiny_patch16_224_f16", (3, 16, 224, 224)
    with torch.device("meta"):
        model = create(name)
        backbone = create(name, features_only=True)
    assert model.pretrained_cfg["input_size"] == model.patch_embed.input_size == size
    assert backbone.model.pretrained_cfg["input_size"] == size
    assert timm.models.get_pretrained_cfg(name).input_size == size
    config = timm.data.resolve_model_data_config(model)
    assert config["input_size"] == size and preprocess_for(model.pretrained_cfg).size == size[2:]
    assert timm.data.create_transform(**config)(Image.new("RGB", (300, 400))).shape == (3, *size[2:])


def test_timm_may_change_the_size_of_clips():
    overlay = {"input_size": (1, 4, 32, 48), "num_classes": 3}
    with torch.device("meta"):
        model = timm.create_model("videomamba_tiny_patch16_224_f8", pretrained_cfg_overlay=overlay)
        longer = timm.create_model("videomamba_tiny_patch16_224_f8", num_frames=12)
    assert model.patch_embed.input_size == model.pretrained_cfg["input_size"] == (1, 4, 32, 48)
    assert longer.patch_embed.input_size == (3, 12, 224, 224)


@pytest.mark.parametrize("name", IMAGES)
def test_image_models_are_those_published(name):
    model = on_meta(name)
    assert (sum(p.numel() for p in model.parameters()), len(model.state_dict())) == IMAGES[name]


@on_one_thread
@torch.no_grad()
def test_clips_equal_a_plain_loop():
    model, x = small(), torch.randn(2, 3, 3, 16, 16)
    weight, bias = model.patch_embed.proj.weight[:, :, 0], model.patch_embed.proj.bias
    for clip, logits in zip(x, model(x), strict=True):
        tokens = [model.cls_token[0, 0] + model.pos_embed[0, 0]]
        for frame in range(3):
            for row in range(4):
                for column in range(4):
                    patch = clip[:, frame, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4]
                    token = (weight * patch).sum((1, 2, 3)) + bias
                    token = token + model.pos_embed[0, 1 + 4 * row + column]
                    tokens.append(token + model.temporal_pos_embedding[0, frame])
        hidden, residual = torch.stack(tokens)[None], 0
        for block in model.layers:
            residual = residual + hidden
            hidden = mixer(rms_norm(residual, block.norm.weight), block.mixer.state_dict(), divisor=1)
        pooled = rms_norm((residual + hidden)[0, 0], model.norm_f.weight)
        torch.testing.assert_close(logits, model.head(pooled), rtol=1e-4, atol=1e-4)


def test_a_file_of_the_official_layout_loads(tmp_path):
    model, file = small(), tmp_path / "clip.pth"
    torch.save(model.state_dict(), file)  # the released files are bare state dicts
    other = small()
    torch.nn.init.zeros_(other.head.weight)
    mtrkit.models.load_checkpoint(other, file)
    x = torch.randn(1, 3, 3, 16, 16)
    assert torch.equal(model(x), other(x))


def test_positions_follow_frames_and_size(tmp_path):
    model, longer = small(), small(num_frames=6, img_size=32)
    longer.load_state_dict(longer.adapt_state_dict(model.state_dict()))
    assert longer.temporal_pos_embedding.shape == (1, 6, 16) and longer.pos_embed.shape == (1, 65, 16)
    torch.testing.assert_close(longer.pos_embed[:, 0], model.pos_embed[:, 0])
    torch.testing.assert_close(longer.temporal_pos_embedding.mean(1), model.temporal_pos_embedding.mean(1))
    assert longer(torch.randn(1, 3, 6, 32, 32)).shape == (1, 5)


def test_reduction_plans_for_frames():
    model = small(depth=6, num_frames=8)
    mtrkit.apply_reduction(model, ratio=0.3)
    info = mtrkit.reduction_info(model)
    assert info.input_size == (3, 8, 16, 16) and info.num_tokens == 129
    assert info.ratio_reached == pytest.approx(0.3, abs=0.02)
    _, (features,) = model.forward_intermediates(torch.randn(2, 3, 8, 16, 16), indices=1)
    assert features.shape == (2, 16, 8, 4, 4)


@pytest.mark.parametrize(("tokens_left", "r"), [(601, 88)])
def test_published_reduction_of_kinetics(tokens_left, r):
    model = on_meta("videomamba_tiny_patch16_224_f8")
    mtrkit.apply_reduction(model, "mtr", r=r, layers=mtrkit.EveryNth(2))
    assert mtrkit.reduction_info(model).tokens[-1] == tokens_left


def test_a_size_that_is_refused_changes_nothing():
    model = small()
    clips = torch.randn(1, *model.patch_embed.input_size)
    with torch.no_grad():
        answer = model(clips)
        with pytest.raises(OptionError, match="smaller than one patch"):
            model.set_input_size(1, num_frames=2 * model.patch_embed.num_frames)
        assert torch.equal(model(clips), answer)


def test_mistakes():
    for place in ("middle", "none"):
        with pytest.raises(OptionError, match="has it in front; leave class_token out"):
            small(class_token=place)
    with pytest.raises(OptionError, match="no option frames"):
        mtrkit.create_model("videomamba_tiny_patch16_224_f8", frames=16)
    with pytest.raises(OptionError, match="multiple of tubelet_size"):
        small(num_frames=3, tubelet_size=2)
    with pytest.raises(OptionError, match="do not overlap"):
        small(stride=2)
    with pytest.raises(InputError, match=r"expected \(B, 3, 3, 16, 16\)"):
        small()(torch.randn(1, 3, 16, 16))
