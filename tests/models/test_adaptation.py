"""What a checkpoint is of is found out, what fits is adapted and said, what would be another model is refused."""

import argparse
import hashlib
import json
import warnings

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import mtrkit
from mtrkit import CheckpointError, CheckpointWarning, OptionError
from mtrkit.models import VideoMamba, checkpoint_metadata, create_model, load_checkpoint
from mtrkit.models.origin import Origin, class_place, origin_named
from mtrkit.models.positions import resize_positions
from mtrkit.models.releases import BUNDLED
from mtrkit.ops import columns_without
from tests.models.shared import IMAGES, real_images, tiny

STRIDE2, PLAIN, FRONT = (
    "vim_micro_patch4_stride2_32",
    "vim_micro_patch4_32",
    "videomamba_micro_patch4_stride2_32",
)
TENSORS = {  # sha256 of everything behind the header, as it was before the files said what they are of
    "vim_micro_patch4_32": "cb2c7f13b2b7dde5",
    "vim_micro_patch4_stride2_32": "c14a9603c9f70ebd",
    "vim_micro_patch4_stride2_avgpool_32": "faeb3680001df292",
    "vim_nano_patch4_stride2_32": "3983777455e99611",
    "videomamba_micro_patch4_stride2_32": "2c2773d3bf3c55e7",
}


def bare(tmp_path, name, file="weights.pth", **beside):
    """A bundled file's weights without its metadata, in the layout of the official training code."""
    torch.save({"model": load_file(BUNDLED[name]), **beside}, tmp_path / file)
    return tmp_path / file


def saved(tmp_path, model, name="x.pth"):
    """A state dict that says nothing of its model."""
    torch.save({"model": model.state_dict()}, tmp_path / name)
    return tmp_path / name


def notes(load, *args, **options):
    """What loading says: at most one warning."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        load(*args, **options)
    assert len(caught) < 2 and all(entry.category is CheckpointWarning for entry in caught)
    return str(caught[0].message) if caught else ""


# What a file is of


@pytest.mark.parametrize("name", BUNDLED)
def test_bundled_files_say_what_they_are_of(name):
    model = create_model(name)
    with safe_open(BUNDLED[name], "pt") as file:
        found = file.metadata()
    assert {key: found[key] for key in ("family", "config")} == checkpoint_metadata(model)
    assert found["family"] == name.partition("_")[0] and json.loads(found["about"])["architecture"] == name
    content = BUNDLED[name].read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    assert hashlib.sha256(content[start:]).hexdigest()[:16] == TENSORS[name]
    assert notes(load_checkpoint, model, BUNDLED[name]) == ""


@pytest.mark.parametrize(("model", "file"), [(STRIDE2, FRONT), (FRONT, STRIDE2)])
@pytest.mark.parametrize("says", ["metadata", "args", "arch", "name", "table", "user"])
def test_the_other_family_is_refused(tmp_path, model, file, says):
    given, beside, options = "weights.pth", {}, {}
    if says == "args":
        beside = {"args": argparse.Namespace(model=f"{file.partition('_')[0]}_tiny_patch4_stride2_32")}
    elif says == "arch":
        beside = {"arch": file}
    elif says == "name":
        given = f"{file}.pth"
    elif says == "user":
        options = {"origin": file}
    path = BUNDLED[file] if says == "metadata" else bare(tmp_path, file, given, **beside)
    with pytest.raises(
        CheckpointError, match=r"(VideoMamba|Vim) \(class token .*the model is (Vim|VideoMamba) \(class"
    ):
        create_model(model, path, **options)
    assert "the weights are of" in notes(create_model, model, path, initial=True, **options)


def test_the_user_may_know_better(tmp_path):
    path = bare(tmp_path, FRONT, f"{STRIDE2}.pth")
    with pytest.raises(CheckpointError, match=r"says its name"):
        create_model(FRONT, path)
    assert notes(create_model, FRONT, path, origin=FRONT) == ""
    with pytest.raises(OptionError, match="not a model's name"):
        create_model(FRONT, path, origin="resnet50")


def test_what_nothing_says_is_assumed_and_said(tmp_path):
    said = notes(load_checkpoint, tiny(), saved(tmp_path, tiny()))
    assert "does not say whether it is of Vim or of VideoMamba" in said
    assert "taken as Vim (class token in the middle, directions averaged)" in said
    front = {"class_token": "front", "halve": False}
    said = notes(load_checkpoint, tiny(**front), saved(tmp_path, tiny(**front)))
    assert "taken as VideoMamba (class token in front, directions summed)" in said
    save_file(tiny().state_dict(), tmp_path / "x.safetensors", checkpoint_metadata(tiny()))
    assert notes(load_checkpoint, tiny(), tmp_path / "x.safetensors") == ""


def test_a_position_table_shows_its_class_token():
    assert [class_place(load_file(BUNDLED[name])["pos_embed"].float()) for name in BUNDLED] == [
        {"videomamba": "front"}.get(name.partition("_")[0], None if "avgpool" in name else "middle") for name in BUNDLED
    ]
    assert class_place(torch.randn(1, 197, 192)) is None and class_place(torch.zeros(1, 197, 4)) is None


def test_foreign_metadata_are_not_taken_for_ours(tmp_path):
    odd = [{"family": "resnet"}, {"family": "vim", "config": "["}, {"family": "vim", "config": '{"stride": "x"}'}]
    for metadata in odd:
        save_file(tiny().state_dict(), tmp_path / "x.safetensors", metadata)
        load_checkpoint(tiny(), tmp_path / "x.safetensors")


def test_names_of_models():
    official = "vim_small_patch16_stride8_224_bimambav2_final_pool_mean_abs_pos_embed_with_midclstok_div2"
    found = origin_named(official, "")
    assert (found.family, found.class_token, found.halve, found.grid) == ("vim", "middle", True, (27, 27))
    assert origin_named("vim_tiny_patch16_224_abs_pos_embed_with_cls_token", "").class_token == "front"
    assert origin_named("videomamba_tiny", "").grid is None
    assert origin_named("vit_tiny_patch16_224", "") is None and Origin().grid is None


# Another stride


@pytest.mark.parametrize(("model", "file"), [(PLAIN, STRIDE2), (STRIDE2, PLAIN)])
@pytest.mark.parametrize("size", [32, 48])
def test_another_stride_is_refused(tmp_path, model, file, size):
    for path in (BUNDLED[file], bare(tmp_path, file)):
        with pytest.raises(CheckpointError, match=r"stride of \d+x\d+|of stride \d+x\d+"):
            create_model(model, path, img_size=size)
    assert "stride" in notes(create_model, model, path, img_size=size, initial=True)


@pytest.mark.parametrize("size", ["", "to448", "to448to576"])
def test_official_files_of_any_resolution(tmp_path, size):
    side = {"": 14, "to448": 28, "to448to576": 36}[size]
    options = {"embed_dim": 16, "depth": 1, "num_classes": 2}
    with torch.device("meta"):
        model = create_model("videomamba_tiny_patch16_224", **options)
    weights = {name: torch.zeros(value.shape) for name, value in model.state_dict().items()}
    weights["pos_embed"] = torch.randn(1, side * side + 1, 16)
    torch.save({"model": weights}, tmp_path / f"videomamba_t16_in1k_res224{size}.pth")
    said = notes(
        create_model, "videomamba_tiny_patch16_224", tmp_path / f"videomamba_t16_in1k_res224{size}.pth", **options
    )
    assert said.endswith(f"positions for {side}x{side} patches were interpolated to 14x14") if size else said == ""


def test_stride_8_of_the_official_code_is_refused(tmp_path):
    options = {"embed_dim": 16, "depth": 1, "num_classes": 2}
    model = create_model("vim_tiny_patch16_stride8_224", **options)
    path = saved(tmp_path, model)
    with pytest.raises(CheckpointError, match=r"27x27 patches are those of 224x224 images at a stride of 8x8"):
        create_model("vim_tiny_patch16_224", path, **options)
    said = notes(create_model, "vim_tiny_patch16_224", path, origin="vim_tiny_patch16_432", **options)
    assert "27x27 patches were interpolated to 14x14" in said
    with pytest.raises(CheckpointError, match=r"of stride 8x8, says its name vim_t_midclstok_ft_78p3acc"):
        create_model("vim_tiny_patch16_224", saved(tmp_path, model, "vim_t_midclstok_ft_78p3acc.pth"), **options)


# Names

AROUND = {
    "module.": lambda state: {f"module.{name}": value for name, value in state.items()},
    "backbone.": lambda state: {f"backbone.{name}": value for name, value in state.items()},
    "model.": lambda state: {f"model.{name}": value for name, value in state.items()},
    "_orig_mod.": lambda state: {f"_orig_mod.{name}": value for name, value in state.items()},
    "student.": lambda state: {f"student.{name}": value for name, value in state.items()},
    "teacher.": lambda state: {f"teacher.{name}": value for name, value in state.items()},
    "anything.of.": lambda state: {f"anything.of.{name}": value for name, value in state.items()},
    "module.backbone.": lambda state: {f"module.backbone.{name}": value for name, value in state.items()},
    "blocks compiled": lambda state: {
        name.replace("layers.1.", "layers.1._orig_mod."): value for name, value in state.items()
    },
}


@pytest.mark.parametrize("layout", ["", "model", "state_dict", "module", "model_ema"])
@pytest.mark.parametrize("prefix", AROUND)
def test_prefixes_are_found_and_named(tmp_path, prefix, layout):
    source, model = tiny(), tiny()
    state = AROUND[prefix](source.state_dict())
    torch.save({layout: state} if layout else state, tmp_path / "x.pth")
    said = notes(load_checkpoint, model, tmp_path / "x.pth")
    assert all(torch.equal(value, source.state_dict()[name]) for name, value in model.state_dict().items())
    for part in ["_orig_mod."] if prefix == "blocks compiled" else prefix.removesuffix("of.").split("."):
        assert part in said


def test_other_parts_of_a_file_are_left_out_and_said(tmp_path):
    source, model = tiny(), tiny()
    state = {f"backbone.{name}": value for name, value in source.state_dict().items() if "head" not in name}
    head = {"head.weight": source.head.weight, "head.bias": source.head.bias, "decode_head.weight": torch.ones(3)}
    torch.save(state | head, tmp_path / "x.pth")
    said = notes(load_checkpoint, model, tmp_path / "x.pth")
    assert "took the prefix 'backbone.' off the names and left out 1 others (decode_head)" in said
    assert torch.equal(model.head.weight, source.head.weight)


def test_student_and_teacher(tmp_path):
    one, two = tiny(), tiny()
    both = {f"student.{name}": value for name, value in one.state_dict().items()}
    both |= {f"teacher.{name}": value for name, value in two.state_dict().items()}
    torch.save(both, tmp_path / "both.pth")
    for wanted, ema in ((one, "auto"), (one, False), (two, True)):
        model = tiny()
        load_checkpoint(model, tmp_path / "both.pth", ema=ema)
        assert torch.equal(model.pos_embed, wanted.pos_embed)
    torch.save({"student": one.state_dict(), "teacher": two.state_dict()}, tmp_path / "dicts.pth")
    load_checkpoint(model, tmp_path / "dicts.pth")
    assert torch.equal(model.pos_embed, one.pos_embed)
    unnamed = {name.replace("student.", "a.").replace("teacher.", "b."): both[name] for name in both}
    torch.save(unnamed, tmp_path / "ab.pth")
    with pytest.raises(CheckpointError, match=r"behind 'a\.' and 'b\.'"):
        load_checkpoint(tiny(), tmp_path / "ab.pth")
    torch.save({name: value for name, value in both.items() if "teacher" in name}, tmp_path / "teacher.pth")
    with pytest.raises(CheckpointError, match=r"behind 'teacher\.', not as plain"):
        load_checkpoint(tiny(), tmp_path / "teacher.pth", ema=False)


# Other inputs


@pytest.mark.parametrize("channels", [1, 2, 4, 6])
@torch.no_grad()
def test_other_channels_as_timm_adapts_them(channels):
    from timm.models import adapt_input_conv

    weight = create_model(PLAIN, "pretrained").patch_embed.proj.weight
    model = create_model(PLAIN)
    said = notes(load_checkpoint, other := create_model(PLAIN, in_chans=channels), BUNDLED[PLAIN])
    assert f"3 channels was adapted to {channels}" in said
    torch.testing.assert_close(other.patch_embed.proj.weight, adapt_input_conv(channels, weight))
    assert model.patch_embed.in_chans == 3


@torch.no_grad()
def test_grey_pictures_mean_the_same(tmp_path):
    images, _ = real_images(100)
    grey = images.mean(1, keepdim=True)
    model, one = create_model(PLAIN, "pretrained"), create_model(PLAIN, "pretrained", in_chans=1)
    torch.testing.assert_close(one(grey), model(grey.expand(-1, 3, -1, -1)), rtol=1e-3, atol=1e-3)
    three = tiny(in_chans=3)
    load_checkpoint(three, saved(tmp_path, source := tiny(in_chans=1)))
    torch.testing.assert_close(
        three(grey[:, :, :16, :16].expand(-1, 3, -1, -1)), source(grey[:, :, :16, :16]), rtol=1e-4, atol=1e-4
    )
    with pytest.raises(CheckpointError, match="patch_embed.proj.weight"):
        load_checkpoint(three, saved(tmp_path, tiny(in_chans=4)))


def clip(**options):
    size = {"img_size": 16, "patch_size": 4, "embed_dim": 32, "depth": 3, "num_classes": 5, "num_frames": 4}
    return VideoMamba(**(size | options)).eval()


@pytest.mark.parametrize("tubelet", [1, 2])
@torch.no_grad()
def test_image_weights_are_inflated(tmp_path, tubelet):
    source, model = tiny(class_token="front", halve=False), clip(tubelet_size=tubelet)
    said = notes(load_checkpoint, model, saved(tmp_path, source), origin="videomamba_tiny_patch4_16")
    assert "middle frame" in said
    weight = model.patch_embed.proj.weight
    assert torch.equal(weight[:, :, tubelet // 2], source.patch_embed.proj.weight)
    assert weight.count_nonzero() == source.patch_embed.proj.weight.count_nonzero()
    assert not model.temporal_pos_embedding.any()
    x = torch.randn(2, 3, 4, 16, 16)
    frames = source.patch_embed(x[:, :, tubelet // 2]) + columns_without(source.pos_embed, (0,))
    torch.testing.assert_close(model._embed(x)[:, 1:17], frames)
    with pytest.raises(CheckpointError, match="the model is VideoMamba"):
        load_checkpoint(model, saved(tmp_path, tiny()), origin="vim_tiny_patch4_16")


# With and without a class token


@pytest.mark.parametrize("name", [STRIDE2, FRONT])
@torch.no_grad()
def test_a_classifier_becomes_a_dense_backbone(tmp_path, name):
    options = {"class_token": "none", "num_classes": 0, "global_pool": ""}
    source, index = create_model(name, "pretrained"), 112 if name == STRIDE2 else 0
    for path in (BUNDLED[name], bare(tmp_path, name)):
        said = notes(load_checkpoint, model := create_model(name, **options), path)
        assert f"the class token was left out with its position, row {index}" in said and "head was left out" in said
        assert torch.equal(model.pos_embed, columns_without(source.pos_embed, (index,)))
    maps = create_model(name, path, class_token="none", features_only=True)(real_images(500)[0])
    assert [tuple(found.shape) for found in maps] == [(2, 96, 15, 15)] * 3


def test_its_head_would_read_something_else(tmp_path):
    path = saved(tmp_path, tiny())
    dense = tiny(class_token="none")
    with pytest.raises(CheckpointError, match=r"head reads a class token.*new_head=True"):
        load_checkpoint(dense, path)
    own = dense.head.weight.clone()
    assert "keeps its own head" in notes(load_checkpoint, dense, path, new_head=True)
    assert torch.equal(dense.head.weight, own)


@torch.no_grad()
def test_and_back(tmp_path):
    dense, model = tiny(class_token="none", num_classes=0), tiny()
    path = saved(tmp_path, dense)
    with pytest.raises(CheckpointError, match=r"no class token, which the model's head reads.*new_head=True"):
        load_checkpoint(model, path)
    token, row = model.cls_token.clone(), model.pos_embed[:, 8].clone()
    assert "the model's own is kept" in notes(load_checkpoint, model, path, new_head=True)
    assert torch.equal(model.cls_token, token) and torch.equal(model.pos_embed[:, 8], row)
    assert torch.equal(columns_without(model.pos_embed, (8,)), dense.pos_embed)
    load_checkpoint(larger := tiny(img_size=24), path, new_head=True)
    assert torch.equal(
        columns_without(larger.pos_embed, (18,)), resize_positions(dense.pos_embed, (4, 4), (6, 6), "none")
    )


# Norms


@torch.no_grad()
def test_layer_norm_is_a_model_of_ours(tmp_path):
    source, model = tiny(rms_norm=False), tiny(rms_norm=False)
    assert {"norm_f.bias", "layers.0.norm.bias"} <= source.state_dict().keys()
    torch.nn.init.normal_(source.layers[1].norm.bias)
    load_checkpoint(model, saved(tmp_path, source))
    assert torch.equal(model(IMAGES), source(IMAGES))
    hidden, residual = source._embed(IMAGES), 0
    for block in source.layers:
        residual = residual + hidden
        normed = torch.nn.functional.layer_norm(residual, (32,), block.norm.weight, block.norm.bias, 1e-5)
        hidden = block.mixer(normed)
    wanted = source.head(torch.nn.functional.layer_norm(residual + hidden, (32,), eps=1e-5)[:, 8])
    torch.testing.assert_close(source(IMAGES), wanted, rtol=1e-4, atol=1e-5)
    assert tiny(rms_norm=False).half().float()(IMAGES).shape == (3, 5)
    assert source.to(torch.bfloat16)(IMAGES.to(torch.bfloat16)).dtype == torch.bfloat16
    mtrkit.apply_reduction(source.float(), ratio=0.2)
    assert source(IMAGES).isfinite().all()


def test_norms_are_not_mixed_up(tmp_path):
    with pytest.raises(CheckpointError, match=r"the file has LayerNorm: build the model with rms_norm=False"):
        load_checkpoint(tiny(), saved(tmp_path, tiny(rms_norm=False)))
    with pytest.raises(CheckpointError, match=r"RMSNorm, without biases: build the model with rms_norm=True"):
        load_checkpoint(tiny(rms_norm=False), saved(tmp_path, tiny()))


def test_base_with_layer_norm_has_the_official_parameters():
    with torch.device("meta"):
        model = create_model("vim_base_patch16_224", rms_norm=False)
    assert sum(p.numel() for p in model.parameters()) == 97_598_440 + 25 * 768
    assert len(model.state_dict()) == 415 + 25


# Position tables


def test_a_grid_that_is_not_told_is_asked_for(tmp_path):
    source, model = tiny(img_size=(16, 28)), tiny()
    path = saved(tmp_path, source)
    with pytest.raises(CheckpointError, match=r"28 patches are no square.*pass pos_grid=\(rows, columns\)"):
        load_checkpoint(model, path)
    with pytest.raises(CheckpointError, match=r"pos_grid=\(4, 6\) has 24 places, the table 28"):
        load_checkpoint(model, path, pos_grid=(4, 6))
    said = notes(load_checkpoint, model, path, pos_grid=(4, 7))
    assert "positions for 4x7 patches were interpolated to 4x4" in said
    assert torch.equal(model.pos_embed, resize_positions(source.pos_embed, (4, 7), (4, 4), "middle"))
    save_file(source.state_dict(), tmp_path / "x.safetensors", checkpoint_metadata(source))
    load_checkpoint(tiny(), tmp_path / "x.safetensors")  # this file says it
    turned = tiny(img_size=(28, 16))
    assert "4x7 patches were interpolated to 7x4" in notes(load_checkpoint, turned, tmp_path / "x.safetensors")
    said = notes(load_checkpoint, tiny(), saved(tmp_path, tiny(img_size=24)))
    assert "6x6 patches, taken as a square, were interpolated to 4x4" in said


def test_other_lengths_of_clips_are_said(tmp_path):
    said = notes(load_checkpoint, clip(num_frames=8), saved(tmp_path, clip()))
    assert said.endswith("positions for 4 steps in time were interpolated to 8")


# Values and paths


def test_values_beyond_the_models_precision(tmp_path):
    state = {name: value.double() for name, value in tiny().state_dict().items()}
    state["norm_f.weight"][3] = 1e300
    torch.save(state, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match=r"infinite values \(norm_f\.weight\)"):
        load_checkpoint(tiny(), tmp_path / "x.pth")


@pytest.mark.parametrize("path", ["x" * 5000, "nul\0"])
def test_paths_that_cannot_be(path):
    with pytest.raises(CheckpointError, match=r"not the name of a file|does not exist"):
        load_checkpoint(tiny(), path)


def test_an_empty_position_table(tmp_path):
    torch.save(tiny().state_dict() | {"pos_embed": torch.zeros(1, 0, 32)}, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match=r"pos_embed \(1, 0, 32\) instead of"):
        load_checkpoint(tiny(), tmp_path / "x.pth")


def test_a_grid_that_two_strides_have_is_said(tmp_path):
    large = create_model(PLAIN, img_size=60, depth=1)
    said = notes(load_checkpoint, large, saved(tmp_path, large))
    assert "its 15x15 patches are those of 32x32 images at a stride of 2x2; taken as the model's" in said
    save_file(large.state_dict(), tmp_path / "x.safetensors", checkpoint_metadata(large))
    assert notes(load_checkpoint, large, tmp_path / "x.safetensors") == ""


def test_loading_through_timm_asks_the_same():
    import timm

    def load(file, **options):
        overlay = {"file": str(BUNDLED[file]), "custom_load": True}
        return timm.create_model(STRIDE2, pretrained=True, pretrained_cfg_overlay=overlay, **options)

    for file in (FRONT, PLAIN):
        with pytest.raises(CheckpointError, match="the weights are of"):
            load(file)
    said = notes(load, STRIDE2, in_chans=1, num_classes=7)
    assert "adapted to 1" in said and "keeps its own head" in said
