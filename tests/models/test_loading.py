"""A checkpoint gets into a model whole or not at all; models come by name, weights from wherever they are."""

import sys
import types

import pytest
import torch
from safetensors.torch import save_file

import mtrkit
from mtrkit import CheckpointError
from mtrkit.models import create_model, list_models, load_checkpoint, register_model
from mtrkit.models.registry import MODELS
from mtrkit.models.releases import OFFICIAL, find_checkpoint
from tests.models.shared import IMAGES, tiny


def copy_of(model):
    """A state dict that does not change with the model."""
    return {name: value.clone() for name, value in model.state_dict().items()}


def write(tmp_path, state, name="x.pth"):
    """Save a state dict the official way and return the path."""
    torch.save({"model": state}, tmp_path / name)
    return tmp_path / name


@torch.no_grad()
def test_loads_strictly_and_in_place(tmp_path):
    source, model = tiny(), tiny()
    before = [p.data_ptr() for p in model.parameters()]
    load_checkpoint(model, write(tmp_path, source.state_dict()))
    assert torch.equal(model(IMAGES), source(IMAGES))
    assert [p.data_ptr() for p in model.parameters()] == before


def test_half_precision_files_fill_float32_models(tmp_path):
    source, model = tiny(), tiny()
    load_checkpoint(model, write(tmp_path, {k: v.half() for k, v in source.state_dict().items()}))
    assert model.pos_embed.dtype == torch.float32
    assert torch.equal(model.pos_embed, source.pos_embed.half().float())


@torch.no_grad()
def test_a_reduced_model_can_be_loaded(tmp_path):
    source, model = tiny(), mtrkit.apply_reduction(tiny(), ratio=0.2)
    load_checkpoint(model, write(tmp_path, source.state_dict()))
    assert torch.equal(model(IMAGES), mtrkit.apply_reduction(source, ratio=0.2)(IMAGES))


def without(*names):
    """Leave entries out."""
    return lambda state: {k: v for k, v in state.items() if k not in names}


def with_(**entries):
    """Add or change entries; ``__`` stands for a dot."""
    return lambda state: state | {name.replace("__", "."): value for name, value in entries.items()}


def poisoned(name, value):
    """Put one bad number in."""

    def change(state):
        state[name].view(-1)[3] = value
        return state

    return change


BAD = {
    "missing": (without("norm_f.weight", "cls_token"), r"2 missing \(cls_token, norm_f\.weight\)"),
    "unexpected": (with_(extra=torch.zeros(1)), r"1 unexpected \(extra\)"),
    "shape": (with_(norm_f__weight=torch.ones(31)), r"norm_f\.weight \(31,\) instead of \(32,\)"),
    "broadcast": (with_(norm_f__weight=torch.ones(1)), r"norm_f\.weight \(1,\) instead of \(32,\)"),
    "width": (with_(pos_embed=torch.ones(1, 17, 31)), r"pos_embed \(1, 17, 31\) instead of \(1, 17, 32\)"),
    "positions": (with_(pos_embed=torch.ones(1, 19, 32)), r"pos_embed \(1, 19, 32\) instead of"),
    "no positions": (with_(pos_embed=torch.ones(1, 1, 32)), r"pos_embed \(1, 1, 32\) instead of"),
    "scalar": (with_(pos_embed=torch.ones(())), r"pos_embed \(\) instead of"),
    "integers": (with_(head__bias=torch.ones(5, dtype=torch.int64)), r"head\.bias is torch\.int64"),
    "nan": (poisoned("layers.1.mixer.A_log", float("nan")), r"1 tensors have NaN.*layers\.1\.mixer\.A_log"),
    "inf": (poisoned("head.weight", float("-inf")), r"infinite values \(head\.weight\)"),
    "classes": (
        with_(head__weight=torch.zeros(9, 32), head__bias=torch.zeros(9)),
        r"head has 9 classes, the model's 5: build the model with num_classes=9, or pass new_head=True",
    ),
    "rope": (with_(rope__freqs_cos=torch.zeros(16, 32)), "RoPE.*midclstok"),
    "video": (with_(temporal_pos_embedding=torch.zeros(1, 8, 32)), "VideoMamba for videos"),
    "registers": (with_(pos_embed_cls=torch.zeros(1, 12, 32)), "Mamba-Reg"),
    "two class tokens": (with_(cls_token_head=torch.zeros(1, 1, 32)), "two class tokens"),
    "layer scale": (with_(layers__0__mixer__gamma=torch.zeros(32)), "layer scale"),
    "one direction": (
        lambda state: {k: v for k, v in state.items() if "_b." not in k and not k.endswith("_b")},
        "without backward weights",
    ),
    "four directions": (with_(layers__0__mixer__A_log_0=torch.zeros(1)), "LocalVim"),
    "transformer": (with_(blocks__0__attn__qkv__weight=torch.zeros(1)), "vision transformer"),
}


@pytest.mark.parametrize("bad", BAD)
def test_what_does_not_fit_changes_nothing(tmp_path, bad):
    change, says = BAD[bad]
    model = tiny()
    before = copy_of(model)
    path = write(tmp_path, change(copy_of(tiny())))
    with pytest.raises(CheckpointError, match=says) as caught:
        load_checkpoint(model, path)
    assert str(path) in str(caught.value)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_another_size_is_named_by_a_few_of_its_tensors(tmp_path):
    path = write(tmp_path, tiny(embed_dim=48).state_dict())
    with pytest.raises(
        CheckpointError, match=r"does not fit VisionMamba: \d\d of another shape \(.*, \.\.\.\)\. Choose"
    ):
        load_checkpoint(tiny(), path)


@torch.no_grad()
def test_new_head_and_no_head(tmp_path):
    source, model = tiny(num_classes=9), tiny()
    path, own = write(tmp_path, source.state_dict()), model.head.weight.clone()
    load_checkpoint(model, path, new_head=True)
    assert torch.equal(model.head.weight, own)
    assert torch.equal(model.forward_features(IMAGES), source.forward_features(IMAGES))
    load_checkpoint(model, write(tmp_path, tiny().state_dict(), "five.pth"), new_head=True)
    assert not torch.equal(model.head.weight, own), "a head that fits is taken"
    bare = tiny(num_classes=0)
    load_checkpoint(bare, path)
    assert torch.equal(bare.forward_features(IMAGES), source.forward_features(IMAGES))


@torch.no_grad()
def test_positions_for_another_size_are_interpolated(tmp_path):
    source, model = tiny(), tiny(img_size=24, stride=2)
    load_checkpoint(model, write(tmp_path, source.state_dict()))
    assert source.patch_embed.grid_size == (4, 4) and model.patch_embed.grid_size == (11, 11)
    assert model.class_index == 60
    assert torch.equal(model.pos_embed[:, 60], source.pos_embed[:, 8])


def test_any_module_can_be_loaded(tmp_path):
    path = write(tmp_path, torch.nn.Linear(3, 2).state_dict())
    load_checkpoint(torch.nn.Linear(3, 2), path)
    with pytest.raises(CheckpointError, match="does not fit Linear"):
        load_checkpoint(torch.nn.Linear(3, 4), path)


def test_create_model_and_its_mode(tmp_path):
    assert create_model("vim_micro_patch4_32").training
    model = create_model("vim_micro_patch4_32", "pretrained")
    assert not model.training
    save_file(model.state_dict(), tmp_path / "x.safetensors")
    again = create_model("vim_micro_patch4_32", tmp_path / "x.safetensors")
    assert not again.training and torch.equal(again.head.weight, model.head.weight)
    other = create_model("vim_micro_patch4_32", str(tmp_path / "x.safetensors"), num_classes=3, new_head=True)
    assert other.num_classes == 3
    with pytest.raises(CheckpointError, match=r"does not fit vim_micro_patch4_32.*num_classes=10"):
        create_model("vim_micro_patch4_32", "pretrained", num_classes=3)


def test_create_model_refuses_with_advice():
    with pytest.raises(mtrkit.UnknownNameError, match="Did you mean 'vim_tiny_patch16_224'"):
        create_model("vim_tiny_patch16_22")
    with pytest.raises(mtrkit.OptionError, match=r"no option img_sizes; known: img_size, patch_size"):
        create_model("vim_tiny_patch16_224", img_sizes=224)


def test_register_and_list():
    @register_model
    def vim_test(**options):
        return tiny(**options)

    try:
        assert "vim_test" in list_models() and list_models("*_test") == ["vim_test"]
        assert create_model("vim_test", num_classes=2).num_classes == 2
        with pytest.raises(mtrkit.OptionError, match="registered already"):
            register_model(vim_test)
    finally:
        MODELS.remove("vim_test")


class Hub(types.ModuleType):
    """A Hugging Face Hub without a network: remembers what was asked for."""

    def __init__(self, answer):
        super().__init__("huggingface_hub")
        self.asked, self.answer = [], answer

    def hf_hub_download(self, repo, file):
        """Answer with a path, or fail."""
        self.asked.append((repo, file))
        if isinstance(self.answer, Exception):
            raise self.answer
        return str(self.answer)


@pytest.fixture
def hub(monkeypatch, tmp_path):
    fake = Hub(tmp_path / "downloaded.pth")
    monkeypatch.setitem(sys.modules, "huggingface_hub", fake)
    return fake


@pytest.mark.parametrize("name", OFFICIAL)
@pytest.mark.parametrize("form", ["pretrained", "{0.repo}", "hf:{0.repo}", "hf:{0.repo}/{0.file}"])
def test_official_releases_are_found(hub, name, form):
    release = OFFICIAL[name]
    assert find_checkpoint(form.format(release), name) == hub.answer
    assert hub.asked == [(release.repo, release.file)]


def test_other_hub_files_and_refusals(hub):
    assert find_checkpoint("hf:org/repo/folder/file.safetensors", "vim_tiny_patch16_224") == hub.answer
    assert hub.asked == [("org/repo", "folder/file.safetensors")]
    with pytest.raises(
        CheckpointError, match=r"hf:org/repo belongs to 'vim_tiny_patch16_224'.*write hf:org/repo/<file>"
    ):
        find_checkpoint("hf:org/repo", "vim_tiny_patch16_224")
    with pytest.raises(CheckpointError, match="it has files for vim_small_patch16_224, vim_small_patch16_stride8_224"):
        find_checkpoint("hustvl/Vim-small-midclstok", "vim_tiny_patch16_224")
    with pytest.raises(CheckpointError, match="no weights are published for 'other'"):
        find_checkpoint("pretrained", "other")
    assert find_checkpoint("some/local/file.pth", "vim_tiny_patch16_224").name == "file.pth"


def test_hub_problems_say_what_to_do(hub, monkeypatch):
    hub.answer = OSError("offline\nand more")
    with pytest.raises(CheckpointError, match=r"cannot be fetched.*\(offline\).*huggingface\.co/hustvl/Vim-tiny"):
        create_model("vim_tiny_patch16_224", "hustvl/Vim-tiny-midclstok")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(CheckpointError, match="pip install huggingface-hub"):
        create_model("vim_tiny_patch16_224", "hustvl/Vim-tiny-midclstok")
