"""What checkpoint files may hold, and what is refused, with the file and the remedy in the message."""

import argparse
import os
import pickle
import zipfile
from collections import OrderedDict

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from mtrkit import CheckpointError
from mtrkit.models import load_state_dict

WEIGHTS = {"a.weight": torch.arange(6.0).reshape(2, 3), "b": torch.tensor([1.5])}
AVERAGED = {name: value + 1 for name, value in WEIGHTS.items()}


class Exploit:
    """A pickle that runs a command when it is opened without care."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.system, (f"touch {self.target}",)


def same(state, wanted):
    """Whether two state dicts are equal."""
    return state.keys() == wanted.keys() and all(torch.equal(state[k], wanted[k]) for k in wanted)


def saved(tmp_path, content, name="file.pth", **options):
    """Save with ``torch.save`` and return the path."""
    path = tmp_path / name
    torch.save(content, path, **options)
    return path


LAYOUTS = {
    "bare": WEIGHTS,
    "ordered": OrderedDict(WEIGHTS),
    "model": {"model": WEIGHTS, "epoch": 3},
    "state_dict": {"state_dict": WEIGHTS},
    "module": {"model": {f"module.{name}": value for name, value in WEIGHTS.items()}},
    "parameters": {name: nn.Parameter(value) for name, value in WEIGHTS.items()},
    "official": {
        "model": WEIGHTS,
        "model_ema": AVERAGED,
        "optimizer": {"state": {0: {"exp_avg": torch.zeros(2, 3)}}, "param_groups": [{"lr": 0.1}]},
        "lr_scheduler": {"base_values": [1e-3]},
        "epoch": 299,
        "scaler": {},
        "args": argparse.Namespace(model="vim_tiny", lr=1e-3, gpu=None),
    },
}


@pytest.mark.parametrize("path", [str, lambda p: p], ids=["str", "Path"])
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(tmp_path, layout, zipped, path):
    file = saved(tmp_path, LAYOUTS[layout], _use_new_zipfile_serialization=zipped)
    assert same(load_state_dict(path(file)), WEIGHTS)


def test_safetensors(tmp_path):
    save_file(WEIGHTS, tmp_path / "x.safetensors")
    assert same(load_state_dict(tmp_path / "x.safetensors"), WEIGHTS)


def test_averaged_weights(tmp_path):
    both = saved(tmp_path, LAYOUTS["official"])
    assert same(load_state_dict(both, ema=True), AVERAGED)
    assert same(load_state_dict(both, ema=False), WEIGHTS)
    only = saved(tmp_path, {"model_ema": AVERAGED}, "only.pth")
    assert same(load_state_dict(only), AVERAGED)
    with pytest.raises(CheckpointError, match="no plain weights, only model_ema; pass ema=True"):
        load_state_dict(only, ema=False)
    for layout in ("bare", "model"):
        with pytest.raises(CheckpointError, match=r"no averaged \(EMA\) weights"):
            load_state_dict(saved(tmp_path, LAYOUTS[layout]), ema=True)


def test_the_official_base_release_means_its_averaged_weights(tmp_path):
    base = saved(tmp_path, LAYOUTS["official"], "vim_b_midclstok_81p9acc.pth")
    assert same(load_state_dict(base), AVERAGED)
    assert same(load_state_dict(base, ema=False), WEIGHTS)
    tiny = saved(tmp_path, LAYOUTS["official"], "vim_t_midclstok_76p1acc.pth")
    assert same(load_state_dict(tiny), WEIGHTS)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_code_is_refused_and_not_run(tmp_path, zipped):
    trap = tmp_path / "ran"
    file = saved(tmp_path, {"model": WEIGHTS, "x": Exploit(trap)}, _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match=r"asks for (posix|nt)\.system.*nothing was run"):
        load_state_dict(file)
    assert not trap.exists()


def test_a_plain_pickle_is_refused_and_not_run(tmp_path):
    trap, file = tmp_path / "ran", tmp_path / "file.pth"
    file.write_bytes(pickle.dumps(Exploit(trap)))
    with pytest.raises(CheckpointError, match=r"file\.pth"):
        load_state_dict(file)
    assert not trap.exists()


def test_a_namespace_is_no_way_around(tmp_path):
    trap = tmp_path / "ran"
    file = saved(tmp_path, {"model": WEIGHTS, "args": argparse.Namespace(x=Exploit(trap))})
    with pytest.raises(CheckpointError, match="nothing was run"):
        load_state_dict(file)
    assert not trap.exists()


def test_a_whole_module_is_refused_by_name(tmp_path):
    with pytest.raises(CheckpointError, match=r"torch\.nn\.modules\.linear\.Linear.*save model\.state_dict\(\)"):
        load_state_dict(saved(tmp_path, nn.Linear(2, 2)))


def test_the_allowed_class_is_allowed_for_this_file_only(tmp_path):
    file = saved(tmp_path, LAYOUTS["official"])
    load_state_dict(file)
    with pytest.raises(pickle.UnpicklingError):
        torch.load(file, weights_only=True)


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_truncated_anywhere(tmp_path, suffix):
    whole, cut = tmp_path / f"whole.{suffix}", tmp_path / f"cut.{suffix}"
    save_file(WEIGHTS, whole) if suffix == "safetensors" else torch.save({"model": WEIGHTS}, whole)
    content = whole.read_bytes()
    for length in range(1, len(content), 7):
        cut.write_bytes(content[:length])
        with pytest.raises(CheckpointError, match=rf"cut\.{suffix}.*[Ff]etch it again"):
            load_state_dict(cut)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_damaged_bytes_never_raise_anything_else(tmp_path, zipped):
    file = saved(tmp_path, {"model": WEIGHTS}, _use_new_zipfile_serialization=zipped)
    content = bytearray(file.read_bytes())
    random = torch.Generator().manual_seed(3)
    for position in torch.randint(len(content), (150,), generator=random).tolist():
        damaged = content.copy()
        damaged[position] ^= 0x5A
        file.write_bytes(damaged)
        try:
            load_state_dict(file)
        except CheckpointError as error:
            assert "file.pth" in str(error)


JUNK = {
    "number": (3.5, "holds a float"),
    "list": ([WEIGHTS["b"]], "holds a list"),
    "tensor": (WEIGHTS["b"], "holds a Tensor"),
    "empty dict": ({}, "no weights"),
    "numbers": ({"a": 1, "b": 2}, r"2 of them not named plain tensors, such as 'a' \(int\)"),
    "unnamed": ({0: WEIGHTS["b"]}, "such as 0"),
    "mixed": ({"model": {**WEIGHTS, "epoch": 3}}, r"1 of them .* 'epoch' \(int\)"),
    "sparse": ({"a": torch.eye(2).to_sparse()}, "not named plain"),
    "meta": ({"a": torch.empty(2, device="meta")}, "not named plain"),
    "expanded": ({"a": torch.zeros(1).expand(10**12)}, "not named plain"),
}


@pytest.mark.filterwarnings("ignore:Validating sparse tensor")
@pytest.mark.parametrize("junk", JUNK)
def test_what_is_no_state_dict_is_refused(tmp_path, junk):
    content, says = JUNK[junk]
    with pytest.raises(CheckpointError, match=says):
        load_state_dict(saved(tmp_path, content))


@pytest.mark.parametrize("name", ["x.pth", "x.pt", "x.safetensors"])
def test_files_that_are_none(tmp_path, name):
    path = tmp_path / name
    with pytest.raises(CheckpointError, match="does not exist"):
        load_state_dict(path)
    path.touch()
    with pytest.raises(CheckpointError, match="empty"):
        load_state_dict(path)
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(CheckpointError, match=name):
        load_state_dict(path)
    path.write_text("<!doctype html><title>404</title>")
    with pytest.raises(CheckpointError, match=name):
        load_state_dict(path)
    path.unlink()
    path.mkdir()
    with pytest.raises(CheckpointError, match="a directory"):
        load_state_dict(path)


def test_a_zip_file_of_something_else(tmp_path):
    path = tmp_path / "x.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("hello.txt", "hello")
    with pytest.raises(CheckpointError, match=r"not a complete PyTorch checkpoint"):
        load_state_dict(path)
