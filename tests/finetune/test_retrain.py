"""Re-training for real, on a handful of images: what it learns, what it keeps, and where it stops."""

import copy
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import MethodType, SimpleNamespace

import pytest
import timm
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F
from torch.optim.optimizer import register_optimizer_step_pre_hook

import mtrkit
from mtrkit.errors import CheckpointError, InputError, OptionError
from mtrkit.finetune import CrossEntropy, estimate, retrain
from mtrkit.finetune.curve import Curve, read_curve
from mtrkit.finetune.trainer import check_images
from mtrkit.measure import image_folder
from tests.finetune.conftest import recipe, reduced, tiny_model
from tests.helpers.running import HOME, environment


def train(folder, out, model=None, given=None, **options):
    model = reduced() if model is None else model
    options = {"workers": 0, "show_progress": False, "save_every": 4, **options}
    return model, retrain(model, image_folder(folder), out, given or recipe(), **options)


def curve(out):
    return [{**row, "images_per_s": None} for row in read_curve(Path(out) / "log.csv")]


def assert_alike(a, b, rel):
    """Two curves, up to rounding."""
    for x, y in zip(a, b, strict=True):
        assert {k: v for k, v in x.items() if v is not None} == pytest.approx(
            {k: v for k, v in y.items() if v is not None}, rel=rel
        )


def weights(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


@pytest.mark.parametrize("method", ["mtr", "runs", "rmeeto", "evit"])
def test_learns_with_any_reducer(folder, tmp_path, method):
    model, result = train(folder, tmp_path / "run", reduced(method), recipe(epochs=12, lr=1e-2, crop_scale=0.6))
    rows = curve(tmp_path / "run")
    assert len(rows) == result.steps == 72
    first, last = (sum(row["loss"] for row in part) / 6 for part in (rows[:6], rows[-6:]))
    assert last < 0.8 * first
    assert mtrkit.reduction_info(model).method == method
    dense = mtrkit.remove_reduction(model)
    fresh = tiny_model(seed=1)
    mtrkit.load_checkpoint(fresh, tmp_path / "run" / "model.safetensors")
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(fresh.eval()(x), dense.eval()(x))


def test_every_weight_moves(folder, tmp_path):
    model = reduced()
    before = weights(model)
    train(folder, tmp_path / "run", model)
    assert [name for name, value in weights(model).items() if torch.equal(value, before[name])] == []


@pytest.mark.parametrize("mixing", [{}, {"mixup": 0.8, "cutmix": 1.0}], ids=["plain", "mixed"])
def test_accumulating_equals_the_large_batch(folder, tmp_path, mixing):
    for name, parts in (("whole", 1), ("cut", 4)):
        given = recipe(accumulate=parts, epochs=1, **mixing)
        model, _ = train(folder, tmp_path / name, reduced().double(), given, objective=in_double)
        found = curve(tmp_path / name), weights(model)
        if name == "whole":
            whole = found
    assert_alike(whole[0], found[0], rel=1e-9)
    for name, value in whole[1].items():
        torch.testing.assert_close(found[1][name], value, rtol=1e-9, atol=1e-12)


def in_double(model, bare, images, targets):
    logits = model(images.double())
    return F.cross_entropy(logits, targets.double()), logits


def test_clipping_clips(folder, tmp_path):
    train(folder, tmp_path / "loose", given=recipe(epochs=1))
    norms = []

    model = reduced()
    hook = register_optimizer_step_pre_hook(lambda optimizer, *_: norms.append(float(_norm(model.parameters()))))
    try:
        train(folder, tmp_path / "clipped", model, recipe(epochs=1, clip_norm=0.1))
    finally:
        hook.remove()
    assert min(row["grad_norm"] for row in curve(tmp_path / "loose")) > 0.1
    assert norms and max(norms) <= 0.1 + 1e-6


def _norm(parameters):
    return torch.stack([p.grad.norm() for p in parameters if p.grad is not None]).norm()


def test_the_average_is_what_is_saved_and_measured(folder, tmp_path):
    held = image_folder(folder).spread(8)
    once, _ = train(folder, tmp_path / "once", given=recipe(epochs=1 / 6))
    _, plain = train(folder, tmp_path / "plain", given=recipe(epochs=1))
    model, result = train(folder, tmp_path / "ema", given=recipe(epochs=1, ema=1.0), held_out=held)
    assert "held-out accuracy" in (tmp_path / "ema" / "log.svg").read_text()
    assert result.accuracy.n == 8
    # timm's average begins with the weights after the first step, and at a decay of 1 it stays there.
    first = weights(once)
    assert all(torch.equal(value, first[name]) for name, value in weights(model).items())
    assert [row["loss"] for row in curve(tmp_path / "ema")] == [row["loss"] for row in curve(tmp_path / "plain")]


def test_distillation_is_from_the_same_weights_dense():
    model = reduced(drop_path_rate=0.5).train()
    images, targets = torch.randn(4, 3, 32, 32), torch.eye(4)
    torch.manual_seed(5)
    loss, logits = CrossEntropy(recipe(distill=0.5))(model, model, images, targets)
    teacher = mtrkit.remove_reduction(copy.deepcopy(model)).eval()(images).log_softmax(-1).detach()
    student = logits.log_softmax(-1)
    by_hand = -(targets * student).sum(-1).mean() + 0.5 * (teacher.exp() * (teacher - student)).sum(-1).mean()
    torch.testing.assert_close(loss, by_hand)
    assert model.training and all(module.training for module in model.modules())


def test_a_teacher_from_before_does_not_move():
    model = reduced().train()
    images, targets = torch.randn(4, 3, 32, 32), torch.eye(4)
    lesson = mtrkit.remove_reduction(copy.deepcopy(model)).eval()(images).log_softmax(-1).detach()
    objective = CrossEntropy.for_model(model, recipe(distill=0.5, teacher="before"))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.05)
    loss, logits = objective(model, model, images, targets)
    student = logits.log_softmax(-1)
    by_hand = -(targets * student).sum(-1).mean() + 0.5 * (lesson.exp() * (lesson - student)).sum(-1).mean()
    torch.testing.assert_close(loss, by_hand)
    with pytest.raises(OptionError, match=r"teacher='after' is neither 'itself' nor 'before' nor a file with weights"):
        recipe(distill=0.5, teacher="after")
    with pytest.raises(OptionError, match="teacher='before' teaches nothing at distill=0; set distill"):
        recipe(teacher="before")


def test_a_teacher_from_a_file(tmp_path):
    other = tiny_model(seed=3).eval()
    save_file(other.state_dict(), tmp_path / "other.safetensors")
    objective = CrossEntropy.for_model(reduced(), recipe(distill=0.5, teacher=str(tmp_path / "other.safetensors")))
    with mtrkit.reduction_disabled(objective.teacher):
        assert torch.equal(objective.teacher.eval()(x := torch.randn(2, 3, 32, 32)), other(x))


class Breaks:
    """An objective that is not a number from some step on."""

    def __init__(self, step):
        self.left = step

    def __call__(self, model, bare, images, targets):
        self.left -= 1
        logits = model(images)
        return F.cross_entropy(logits, targets) * (1 if self.left >= 0 else float("nan")), logits


def test_stops_at_a_loss_that_is_not_a_number(folder, tmp_path):
    with pytest.raises(CheckpointError, match=r"loss of step 7 is nan; .*step-4 is the last good checkpoint"):
        train(folder, tmp_path / "run", objective=Breaks(6))
    assert (tmp_path / "run" / "step-4").is_dir() and len(curve(tmp_path / "run")) == 6


def test_a_full_disk_keeps_the_last_good_checkpoint(folder, tmp_path, monkeypatch):
    save, calls = Accelerator.save_state, []

    def fill_up(self, *args, **kwargs):
        calls.append(args)
        if len(calls) == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return save(self, *args, **kwargs)

    monkeypatch.setattr(Accelerator, "save_state", fill_up)
    with pytest.raises(CheckpointError, match=r"step 8 cannot be written .*No space left.*step-4 is the last good"):
        train(folder, tmp_path / "run")
    monkeypatch.undo()
    _, result = train(folder, tmp_path / "run")
    train(folder, tmp_path / "other")
    assert result.steps == 12 and curve(tmp_path / "run") == curve(tmp_path / "other")


def test_another_run_s_folder_is_refused(folder, tmp_path):
    train(folder, tmp_path / "run", given=recipe(epochs=1))
    with pytest.raises(InputError, match="folder of another run .*recipe"):
        train(folder, tmp_path / "run", given=recipe(epochs=1, lr=2e-3))
    with pytest.raises(InputError, match="folder of another run .*reduction"):
        train(folder, tmp_path / "run", reduced("mtr"), recipe(epochs=1))
    with pytest.raises(InputError, match="folder of another run .*drop_path"):
        train(folder, tmp_path / "run", reduced(drop_path_rate=0.1), recipe(epochs=1))
    with pytest.raises(InputError, match="folder of another run .*skip_unreadable"):
        train(folder, tmp_path / "run", given=recipe(epochs=1), skip_unreadable=True)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter.txt").write_text("")
    with pytest.raises(InputError, match="not empty and not the folder of a run"):
        train(folder, tmp_path / "full")
    with pytest.raises(InputError, match="cannot be written"):
        train(folder, tmp_path / "full" / "letter.txt" / "run")


@pytest.mark.parametrize("content", [b"", b"garbled", b"\xff" * 50], ids=["empty", "garbled", "long"])
@pytest.mark.parametrize("name", ["optimizer.bin", "model.safetensors"])
def test_a_broken_checkpoint_is_named(folder, tmp_path, name, content):
    train(folder, tmp_path / "run", given=recipe(epochs=1))
    assert (tmp_path / "run" / "step-6" / name).exists()
    (tmp_path / "run" / "step-6" / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=r"step-6 cannot be read .*delete it"):
        train(folder, tmp_path / "run", given=recipe(epochs=1))


def test_a_full_disk_at_the_end_is_named(folder, tmp_path, monkeypatch):
    def fill_up(*args):
        raise SafetensorError("Error while serializing: No space left on device (os error 28)")

    monkeypatch.setattr("mtrkit.finetune.run.save_file", fill_up)
    with pytest.raises(CheckpointError, match=r"model.safetensors cannot be written .*step-6 is the last good"):
        train(folder, tmp_path / "run", given=recipe(epochs=1))
    monkeypatch.undo()
    assert train(folder, tmp_path / "run", given=recipe(epochs=1))[1].weights.exists()


def test_a_disk_that_is_full_for_the_log_is_named(folder, tmp_path, monkeypatch):
    add = Curve.add

    def fill_up(self, row):
        if row["step"] == 5:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        add(self, row)

    monkeypatch.setattr(Curve, "add", fill_up)
    with pytest.raises(CheckpointError, match=r"log.csv cannot be written .*No space left.*step-4 is the last good"):
        train(folder, tmp_path / "run", given=recipe(epochs=1))


def test_tied_weights_are_saved(folder, tmp_path):
    model = reduced()
    model.layers[1].mixer.in_proj.weight = model.layers[0].mixer.in_proj.weight
    _, result = train(folder, tmp_path / "run", model, recipe(epochs=1))
    saved = load_file(result.weights)
    assert torch.equal(saved["layers.0.mixer.in_proj.weight"], saved["layers.1.mixer.in_proj.weight"])


def test_an_unreadable_image_is_named_in_one_line_whoever_reads_it(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "images")
    broken = next((tmp_path / "images").glob("*/3.png"))
    broken.write_bytes(b"no image")
    for workers in (0, 1):
        with pytest.raises(InputError) as error:
            train(tmp_path / "images", tmp_path / f"run{workers}", given=recipe(epochs=1), workers=workers)
        assert str(broken) in str(error.value) and "Traceback" not in str(error.value)
        assert "\n" not in str(error.value)


def test_held_out_images_of_other_classes_are_refused(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "val")
    shutil.rmtree(sorted((tmp_path / "val").iterdir())[1])
    with pytest.raises(InputError, match="classes of the held-out images"):
        train(folder, tmp_path / "run", held_out=image_folder(tmp_path / "val"))
    assert not (tmp_path / "run").exists()


def test_an_accelerator_that_trains_otherwise_is_refused(folder, tmp_path):
    with pytest.raises(OptionError, match="mixed_precision='no' and the recipe precision='bf16'"):
        train(folder, tmp_path / "run", given=recipe(precision="bf16"), accelerator=Accelerator(cpu=True))
    with pytest.raises(OptionError, match="gradient_accumulation_steps=2"):
        train(folder, tmp_path / "run", accelerator=Accelerator(cpu=True, gradient_accumulation_steps=2))


@pytest.mark.parametrize("teacher", ["itself", "before"])
def test_gradients_flow_under_autocast_beside_a_teacher(folder, tmp_path, teacher):
    model, before = reduced(), weights(reduced())
    train(folder, tmp_path / "run", model, recipe(epochs=1, precision="bf16", distill=1.0, teacher=teacher, lr=0.1))
    still = [name for name, value in weights(model).items() if torch.equal(value, before[name])]
    assert not still


def test_parts_of_a_batch_draw_by_themselves(folder, tmp_path):
    """The passes of one step, and processes, drop other paths; the same run again drops the same ones."""
    drawn = []

    class Watched(CrossEntropy):
        def __call__(self, model, bare, images, targets):
            drawn.append(torch.rand(4).tolist())
            return super().__call__(model, bare, images, targets)

    for name in ("a", "b"):
        given = recipe(epochs=1, accumulate=2)
        train(folder, tmp_path / name, given=given, objective=Watched(given))
    half = len(drawn) // 2
    assert drawn[:half] == drawn[half:] and len({tuple(numbers) for numbers in drawn}) == half


def test_images_that_do_not_fit_are_refused(folder, tmp_path):
    with pytest.raises(InputError, match="5 classes"):
        train(folder, tmp_path / "run", tiny_model(num_classes=5))
    (tmp_path / "images").symlink_to(folder)
    (tmp_path / "more").mkdir()
    for path in [*folder.iterdir()]:
        (tmp_path / "more" / path.name).symlink_to(path)
    (tmp_path / "more" / "zebra").mkdir()
    with pytest.raises(InputError, match="class 'zebra' .* has no images"):
        train(tmp_path / "more", tmp_path / "run", tiny_model(num_classes=5))
    assert not (tmp_path / "run").exists()


SCRIPT = """
accelerator = None
import sys
import torch
torch.set_num_threads(1)
from tests.finetune.conftest import recipe, reduced
from mtrkit.finetune import retrain
from mtrkit.measure import image_folder
folder, out, changes = sys.argv[1], sys.argv[2], eval(sys.argv[3])
images = image_folder(folder)
given = recipe(auto_augment="rand-m9-mstd0.5-inc1", mixup=0.8, cutmix=1.0, **changes)
model = reduced(drop_path_rate=0.2)
model.spare = torch.nn.Parameter(torch.ones(3), requires_grad=False)  # which no pass uses
options = {"held_out": images.spread(7), "save_every": 3, "show_progress": False}
retrain(model, images, out, given, accelerator=accelerator, **options)
"""

# Accelerate spreads over GPUs only, and would go on with DDP; what it calls of torch spreads over CPUs too.
FSDP2 = """
from accelerate import Accelerator, DistributedType
from accelerate.state import PartialState
from accelerate.utils import FullyShardedDataParallelPlugin
plugin = FullyShardedDataParallelPlugin(fsdp_version=2)
accelerator = Accelerator(cpu=True, fsdp_plugin=plugin)
PartialState._shared_state["distributed_type"] = accelerator.state.distributed_type = DistributedType.FSDP
accelerator.state.fsdp_plugin = plugin
"""
SPREAD = """
from torch.distributed.tensor import DTensor
assert all(isinstance(parameter, DTensor) for parameter in model.parameters())
"""


def start(*arguments, launcher=(), **settings):
    variables = environment(OMP_NUM_THREADS="1", ACCELERATE_USE_CPU="true", **settings)
    script = ["-c", SCRIPT] if not launcher else [*launcher]
    command = [sys.executable, *script, *map(str, arguments)]
    return subprocess.Popen(command, cwd=HOME, env=variables, stderr=subprocess.PIPE, text=True)


def finish(process):
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors


def test_killed_in_mid_epoch_it_goes_on_to_the_same_bits(folder, tmp_path):
    changes = {"epochs": 10, "ema": 0.9}
    first, killed = start(folder, tmp_path / "whole", changes), start(folder, tmp_path / "killed", changes)
    deadline = time.monotonic() + 120
    while not (tmp_path / "killed" / "step-9").exists() and time.monotonic() < deadline and killed.poll() is None:
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    done = len(curve(tmp_path / "killed"))
    assert 9 <= done < 60
    finish(start(folder, tmp_path / "killed", changes))
    finish(first)
    assert curve(tmp_path / "killed") == curve(tmp_path / "whole")
    a, b = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("killed", "whole"))
    assert a == b


@pytest.mark.parametrize("sharded", [False, True], ids=["ddp", "fsdp2"])
def test_two_processes_do_what_one_does(folder, tmp_path, sharded):
    changes = {"epochs": 2, "seed": 3, "ema": 0.9}  # the second one trains on after the average was measured
    program = tmp_path / "program.py"
    program.write_text(SCRIPT.replace("drop_path_rate=0.2", ""))
    spread = tmp_path / "spread.py"
    spread.write_text(program.read_text().replace("accelerator = None", FSDP2) + SPREAD)
    port = 20000 + (2 * os.getpid() + sharded) % 20000
    launcher = [
        "-m",
        "torch.distributed.run",
        "--nproc-per-node=2",
        f"--master-port={port}",
        str(spread if sharded else program),
    ]
    pair = start(folder, tmp_path / "two", changes, launcher=launcher)
    one = start(folder, tmp_path / "one", changes, launcher=[str(program)])
    finish(pair), finish(one)
    assert_alike(curve(tmp_path / "one"), curve(tmp_path / "two"), rel=1e-4)
    identity = [json.loads((tmp_path / name / "run.json").read_text())["run"] for name in ("one", "two")]
    assert identity[0] == identity[1]
    a, b = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    assert a.keys() == b.keys()
    for name, value in a.items():
        torch.testing.assert_close(b[name], value, rtol=1e-4, atol=1e-5)
    if sharded:  # from a checkpoint it goes on to the same weights, averages included
        shutil.rmtree(tmp_path / "two" / "step-12")
        finish(start(folder, tmp_path / "two", changes, launcher=launcher))
        again = load_file(tmp_path / "two" / "model.safetensors")
        assert all(torch.equal(again[name], value) for name, value in b.items())


def test_computing_activations_twice_changes_nothing(folder, tmp_path):
    train(folder, tmp_path / "plain", given=recipe(epochs=1))
    model = reduced()
    model.set_grad_checkpointing(True)
    train(folder, tmp_path / "twice", model, recipe(epochs=1))
    assert_alike(curve(tmp_path / "plain"), curve(tmp_path / "twice"), rel=1e-5)


def test_autocast_stays_near_float32(folder, tmp_path):
    train(folder, tmp_path / "float", given=recipe(epochs=1))
    train(folder, tmp_path / "half", given=recipe(epochs=1, precision="bf16"))
    exact, near = ([row["loss"] for row in curve(tmp_path / name)] for name in ("float", "half"))
    assert exact != near and exact == pytest.approx(near, rel=0.02)


@pytest.mark.parametrize("name", ["resnet10t", "deit_tiny_patch16_224"])
def test_learns_with_any_model_of_timm(folder, tmp_path, name):
    model = timm.create_model(name, num_classes=4, **({} if name == "resnet10t" else {"img_size": 32, "patch_size": 8}))
    model.pretrained_cfg = {**model.pretrained_cfg, "input_size": (3, 32, 32)}
    _, result = train(folder, tmp_path / "run", model, recipe(epochs=1), held_out=image_folder(folder))
    assert result.steps == 6 and result.accuracy.n == 48 and (tmp_path / "run" / "model.safetensors").exists()


def test_an_estimate_leaves_statistics_alone(folder):
    model = tiny_model()
    model.head = nn.Sequential(nn.BatchNorm1d(16), nn.Linear(16, 4))
    before = weights(model)
    assert estimate(model, image_folder(folder), recipe()).steps == 12
    assert all(torch.equal(value, before[name]) for name, value in weights(model).items())


def test_looking_at_a_model_leaves_its_statistics_alone(folder):
    model = timm.create_model("resnet10t", num_classes=4)
    model.pretrained_cfg = {**model.pretrained_cfg, "input_size": (3, 32, 32)}
    model.bn1.eval()
    before = weights(model)
    check_images(model, image_folder(folder))
    assert all(torch.equal(value, before[name]) for name, value in weights(model).items())
    assert model.training and not model.bn1.training


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_no_mark_is_left_on_the_model(folder, tmp_path, precision):
    """Accelerate's is a forward under autocast, which would go on after training."""
    model = reduced()
    before = set(vars(model))
    train(folder, tmp_path / "run", model, recipe(epochs=1, precision=precision, ema=0.9))
    fresh = reduced(seed=1)
    mtrkit.load_checkpoint(fresh, tmp_path / "run" / "model.safetensors")
    x = torch.randn(2, 3, 32, 32)
    assert set(vars(model)) == before and torch.equal(fresh.eval()(x), model(x))


def test_a_forward_of_the_users_own_stays(folder, tmp_path):
    model = reduced()
    model.forward = own = MethodType(type(model).forward, model)
    train(folder, tmp_path / "run", model, recipe(epochs=1, precision="bf16"))
    assert vars(model)["forward"] is own


def test_the_average_may_begin_short(folder, tmp_path):
    def reached(name, **average):
        model, _ = train(folder, tmp_path / name, given=recipe(epochs=1, **average))
        return torch.cat([value.flatten() for value in weights(model).values()])

    last = reached("last")
    short, long = (reached(str(warm), ema=0.9999, ema_warmup=warm) for warm in (True, False))
    assert 0 < (short - last).norm() < 0.7 * (long - last).norm()


def test_compiled_it_learns_the_same_and_keeps_the_names(folder, tmp_path):
    train(folder, tmp_path / "plain", given=recipe(epochs=1))
    AcceleratorState._reset_state()
    compiling = Accelerator(cpu=True, dynamo_backend="aot_eager")
    try:
        train(folder, tmp_path / "compiled", given=recipe(epochs=1), accelerator=compiling)
    finally:
        AcceleratorState._reset_state()  # other tests do not compile
    assert_alike(curve(tmp_path / "plain"), curve(tmp_path / "compiled"), rel=1e-4)
    mtrkit.load_checkpoint(tiny_model(seed=1), tmp_path / "compiled" / "model.safetensors")


def test_tensorboard_gets_every_number(folder, tmp_path, monkeypatch):
    written = []

    class Writer:
        def __init__(self, folder, purge_step):
            written.append((Path(folder).name, purge_step))

        def add_scalar(self, name, value, step):
            written.append((name, value, step))

        def close(self):
            written.append("closed")

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", SimpleNamespace(SummaryWriter=Writer))
    train(folder, tmp_path / "run", given=recipe(epochs=1 / 3), tensorboard=True)
    assert written[0] == ("tensorboard", 1) and written[-1] == "closed"
    losses = [(row["loss"], row["step"]) for row in curve(tmp_path / "run")]
    assert [entry[1:] for entry in written if entry[0] == "loss"] == losses


def test_tensorboard_that_is_missing_is_named(folder, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(OptionError, match="pip install tensorboard"):
        train(folder, tmp_path / "run", tensorboard=True)
