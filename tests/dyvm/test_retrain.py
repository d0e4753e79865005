"""DyVM through the trainer: what it learns, what it draws after an interruption, and what comes out."""

import copy

import pytest
import torch
from safetensors import SafetensorError

import mtrkit
from mtrkit.dyvm import DyVMObjective, DyVMTraining, dyvm_loss, loss_terms, measure_scan_share, teacher_outputs
from mtrkit.errors import CheckpointError, InputError
from mtrkit.finetune import retrain
from mtrkit.measure import image_folder
from tests.finetune.conftest import folder, recipe, tiny_model  # noqa: F401, the first is a fixture

IMAGES = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def student():
    """A model, and its copy that teaches it."""
    model = tiny_model()
    teacher = copy.deepcopy(model)
    torch.manual_seed(1)
    return DyVMTraining(model, keep=0.9, block_target=0.8), teacher


def train(root, out, given=None, objective=None):
    """A run on a few images."""
    training, teacher = student()
    objective = DyVMObjective(teacher) if objective is None else objective(teacher)
    given = recipe() if given is None else given
    images = image_folder(root)
    retrain(training, images, out, given, objective=objective, workers=0, show_progress=False, save_every=4)
    return training


def misses(training):
    """How far from the wanted shares the choices are that it draws."""
    training.train()(IMAGES)
    return {name: term.item() for name, term in loss_terms(training.outputs, torch.tensor([0, 1, 2, 3])).items()}


def test_the_objective_is_the_loss_and_refuses_other_models():
    training, teacher = student()
    objective, targets = DyVMObjective(teacher, token_weight=3.0), torch.tensor([0, 1, 2, 3])
    torch.manual_seed(2)
    loss, logits = objective(training, training, IMAGES, targets)
    assert torch.equal(logits, training.outputs.logits)
    lesson = teacher_outputs(teacher, IMAGES)
    torch.testing.assert_close(loss, dyvm_loss(training.outputs, targets, lesson, token_weight=3.0))
    assert not teacher.training and not any(p.requires_grad for p in teacher.parameters())
    for wrong in (training.eval(), teacher):
        with pytest.raises(InputError, match="trains a DyVMTraining in training mode"):
            objective(wrong, wrong, IMAGES, targets)


def test_training_reaches_the_shares_and_gives_a_checkpoint(folder, tmp_path):  # noqa: F811
    before = misses(student()[0])
    training = train(folder, tmp_path / "run", recipe(epochs=10, lr=1e-2))
    after = misses(training)
    assert all(after[name] < before[name] / 3 for name in ("tokens", "blocks")), (before, after)
    training.eval()
    share = measure_scan_share(training, IMAGES)
    with torch.no_grad():
        found = training(IMAGES)
        checkpoint, model = training.checkpoint(), training.remove()
        assert torch.equal(mtrkit.apply_reduction(model, checkpoint=checkpoint)(IMAGES), found)
    assert mtrkit.reduction_info(model).scan_share == share


def test_a_full_disk_at_the_end_is_named(folder, tmp_path, monkeypatch):  # noqa: F811
    def fill_up(*_):
        raise SafetensorError("Error while serializing: No space left on device (os error 28)")

    monkeypatch.setattr("safetensors.torch.save_file", fill_up)
    with pytest.raises(CheckpointError, match=r"dyvm.safetensors cannot be written .*step-6 is the last good"):
        train(folder, tmp_path / "run", recipe(epochs=1))


def test_an_interrupted_run_draws_the_same_choices(folder, tmp_path):  # noqa: F811
    class Stops(DyVMObjective):
        """Once, in the seventh of twelve steps."""

        calls = 0

        def __call__(self, *arguments):
            Stops.calls += 1
            if Stops.calls == 7:
                raise KeyboardInterrupt
            return super().__call__(*arguments)

    whole = train(folder, tmp_path / "whole").state_dict()
    with pytest.raises(KeyboardInterrupt):
        train(folder, tmp_path / "cut", objective=Stops)
    went_on = train(folder, tmp_path / "cut", objective=Stops).state_dict()
    assert Stops.calls == 7 + 8, "it did not go on from step 4"
    assert all(torch.equal(value, went_on[name]) for name, value in whole.items())
