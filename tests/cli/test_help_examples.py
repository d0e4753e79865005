"""Every example in every --help runs, as it is printed.

Three things are put in place of what the examples are about, and nothing in the commands is changed:

- Names of models stand for small models of the same kind (``MODEL`` too), with the ten classes of the bundled images.
- The files and folders that are named are there in the working directory, made of bundled data: ``vim_t.pth`` holds
  weights of the small model, ``imagenet/val`` two images per class, ``clip.mp4`` a few frames.
- ``SHORTER`` is added at the end of a command so that it measures little. ``torchrun`` and its options are left out, as
  ``test_processes.py`` starts several processes, and so is compiling, which ``test_compile.py`` does. AOTInductor takes
  minutes: its example is only parsed, and ``tests/export`` runs it.
"""

import io
import json
import shlex
import tarfile
from contextlib import nullcontext
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from PIL import Image

from mtrkit.cli import main as cli
from mtrkit.data import bundled_images
from mtrkit.models import VideoMamba, VisionMamba
from mtrkit.models.registry import MODELS

SIZES = {"img_size": 32, "patch_size": 4, "embed_dim": 32, "depth": 6, "num_classes": 10}
DEEP, CLIPS = SIZES | {"depth": 24}, {"num_frames": 8, "depth": 12}
SMALL = {
    "vim_tiny_patch16_224": lambda **options: VisionMamba(**(SIZES | options)),
    "vim_small_patch16_224": lambda **options: VisionMamba(**(DEEP | options)),
    "MODEL": lambda **options: VisionMamba(**(SIZES | options)),
    "videomamba_tiny_patch16_224_f8": lambda **options: VideoMamba(**(SIZES | CLIPS | options)),
}
TRAINING = (
    "--device cpu --epochs 0.5 --batch-size 4 --accumulate 1 --warmup-epochs 0 --workers 0 --repeats 1 "
    "--auto-augment none --mixup 0 --cutmix 0 --held-out 0"
)
SHORTER = {
    "bench": "--rounds 1 --seconds 0 --batch-size 2 --device cpu",
    "calibrate": "--limit 20 --device cpu",
    "compare": "--limit 10 --rounds 0 --device cpu",
    "demo": "--limit 6 --rounds 1",
    "draw": "--rounds 1",
    "eval": "--limit 10 --rounds 0 --device cpu",
    "finetune": TRAINING,
}
NEEDED = {
    ".onnx": "onnxscript",
    "mtrkit finetune": "accelerate",
    "clip.mp4": "av",
    "k400": "av",
    "--plot": "matplotlib",
}


def examples():
    """Every line of every command's examples, with continued lines put together."""
    texts = [cli._EPILOG.partition("\n\n")[0]]
    texts += [cli.importlib.import_module(f"mtrkit.cli.{module}").EPILOG for module, _ in cli.COMMANDS.values()]
    for text in texts:
        head, *lines = text.replace("\\\n", " ").strip().splitlines()
        assert head == "examples:"
        yield from (" ".join(line.split()) for line in lines)


EXAMPLES = list(dict.fromkeys(examples()))


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """The folder in which the examples are run."""
    root = tmp_path_factory.mktemp("examples")
    images, labels, classes = bundled_images()
    for part in ("imagenet/train", "imagenet/val", "FOLDER"):
        for index in [*range(0, 1000, 100), *range(50, 1000, 100), *range(25, 1000, 100)]:
            folder = root / part / classes[labels[index]]
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(images[index]).save(folder / f"{index}.png")
    for name in ("cat.jpg", "dog.jpg", "photo.jpg"):
        Image.fromarray(images[300]).resize((48, 40)).save(root / name)
    _write_shards(root)
    torch.manual_seed(0)
    for name in ("vim_t.pth", "vim_t_midclstok_76p1acc.pth", "FILE"):
        torch.save(VisionMamba(**SIZES).state_dict(), root / name)
    torch.save(VisionMamba(**DEEP).state_dict(), root / "vim_s.pth")
    if find_spec("av"):
        _write_videos(root)
    return root


def _write_shards(root):
    images, labels, _ = bundled_images()
    for shard in range(64):
        with tarfile.open(root / f"imagenet-val-{shard:04d}.tar", "w") as tar:
            for suffix, content in ((".png", _png(images[15 * shard])), (".cls", str(labels[15 * shard]).encode())):
                info = tarfile.TarInfo(f"{shard}{suffix}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))


def _png(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def _write_videos(root):
    import av

    (root / "k400").mkdir()
    with av.open(str(root / "clip.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
        for index in range(10):
            frame = Image.fromarray(bundled_images().images[index]).resize((48, 32))
            container.mux(stream.encode(av.VideoFrame.from_image(frame)))
        container.mux(stream.encode())
    for part in ("train", "val"):
        lines = [f"../clip.mp4 {label}" for label in range(10)]
        (root / "k400" / f"{part}.csv").write_text("\n".join(lines))


@pytest.fixture
def small_models(monkeypatch):
    """Small models under the names of the examples; their weights may be those of clips or of images."""
    for name, build in SMALL.items():
        monkeypatch.setitem(MODELS._entries, name, build)
    monkeypatch.setattr("mtrkit.cli.loading.load_weights", _load)


def _load(model, checkpoint, name, **how):
    """Clips keep random weights, as FILE is of a model of images; a small file is not what its official name says."""
    from mtrkit.models import load_weights

    file = "vim_t.pth" if "midclstok" in checkpoint else checkpoint
    return model if isinstance(model, VideoMamba) else load_weights(model, file, name, **how)


def test_every_command_has_examples_and_none_has_a_placeholder():
    commands = {shlex.split(example.partition("mtrkit ")[2])[0] for example in EXAMPLES}
    assert commands == set(cli.COMMANDS) and not [example for example in EXAMPLES if "..." in example]


@pytest.mark.usefixtures("small_models")
@pytest.mark.parametrize("example", EXAMPLES)
def test_example(world, monkeypatch, mtrkit_run, example):
    for mark, package in NEEDED.items():
        if mark in example and find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
    monkeypatch.chdir(world)
    words = shlex.split(example)
    words = words[words.index("mtrkit") + 1 :]
    if "--calibration" in words:  # of the example before it
        _calibrate(mtrkit_run, words[-1])
    if "runs/dyvm/model.safetensors" in words and not Path("runs/dyvm").exists():  # perhaps of another process
        _train(mtrkit_run, next(earlier for earlier in EXAMPLES if "--out runs/dyvm " in earlier))
    if "aotinductor" in words:
        command = cli.importlib.import_module("mtrkit.cli.export")
        assert cli._parser("export", command).parse_args(words).format == "aotinductor"
        return
    if words[0] == "export":  # which takes as long as a model has blocks: three, with random weights
        monkeypatch.setitem(MODELS._entries, words[1], lambda **options: VisionMamba(**(SIZES | {"depth": 3})))
        monkeypatch.setattr("mtrkit.cli.loading.load_weights", lambda model, *_, **__: model)
    if "--help" not in words:
        words += shlex.split(SHORTER.get(words[0], ""))
    with torch.compiler.set_stance("force_eager") if "--compile" in words else nullcontext():
        ran = mtrkit_run(*words)
    assert ran.code == 0, ran.err
    if "--json" in words:
        json.loads(ran.out)


def _train(run, example):
    assert run(*shlex.split(example.partition("mtrkit ")[2]), *shlex.split(TRAINING)).code == 0


def _calibrate(run, out):
    fit = "calibrate vim_tiny_patch16_224 --checkpoint vim_t.pth --data FOLDER --limit 20 --ratio 0.3 --device cpu"
    assert run(*fit.split(), "--out", out).code == 0
