"""Which images a step sees: a function of the seed and the step, however the work is cut."""

import random
import tarfile

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from mtrkit.errors import InputError, OptionError
from mtrkit.finetune import Recipe
from mtrkit.finetune.chance import seeded
from mtrkit.finetune.draws import BatchPlan, Draws, check_cut
from mtrkit.finetune.trainer import augmentation
from mtrkit.measure import image_folder, open_images
from tests.finetune.conftest import recipe, tiny_model


def draws_of(folder, skip_unreadable=False, **changes):
    given = recipe(**changes)
    return Draws(image_folder(folder), augmentation(tiny_model(), given), given, skip_unreadable)


def seen(draws, workers):
    plan = BatchPlan(draws, range(0, 8), range(1), 1)
    return list(DataLoader(draws, batch_sampler=plan, num_workers=workers))


def test_workers_and_what_was_drawn_before_change_nothing(folder):
    draws = draws_of(folder, auto_augment="rand-m9-mstd0.5-inc1", erase=0.25)
    first = seen(draws, 0)
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    for a, b in zip(first, seen(draws, 2), strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
    assert not torch.equal(first[0][0], first[6][0])  # the next epoch has another order and other augmentations


def test_shards_are_drawn_as_a_folder_is(folder, tmp_path):
    with tarfile.open(tmp_path / "all.tar", "w") as tar:
        for label, place in enumerate(sorted(folder.iterdir())):
            for path in sorted(place.iterdir()):
                tar.add(path, f"{place.name}/{path.name}")
                (tmp_path / "label").write_text(str(label))
                tar.add(tmp_path / "label", f"{place.name}/{path.stem}.cls")
    given = recipe()
    draws = Draws(open_images(tmp_path / "all.tar"), augmentation(tiny_model(), given), given)
    for a, b in zip(seen(draws_of(folder), 0), seen(draws, 2), strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_an_epoch_sees_every_image_once(folder):
    draws = draws_of(folder)
    per_epoch = len(draws)
    assert per_epoch == 48 == draws.steps_per_epoch * 8
    labels = torch.tensor([draws[n][1] for n in range(per_epoch)])
    assert labels.bincount().tolist() == [12] * 4


@pytest.mark.parametrize("parts", [1, 2, 4])
def test_parts_make_up_the_batch_and_mix_the_same_pairs(folder, parts):
    draws = draws_of(folder)
    cut = [draws.batch(3, part, parts) for part in range(parts)]
    assert sorted(n for part in cut for n in part) == list(range(24, 32))
    pairs = {frozenset(pair) for part in cut for pair in zip(part, reversed(part), strict=True)}
    assert pairs == {frozenset((24 + i, 31 - i)) for i in range(4)}


def test_repeats_show_an_image_several_times_in_a_row(folder):
    draws = draws_of(folder, repeats=3)
    order = [int(draws.used[i]) for i in _order(draws)]
    shown = [draws.images.openers.index(opener) for opener in _opened(draws, range(9))]
    assert shown == [order[n // 3] for n in range(9)]
    assert not torch.equal(draws[0][0], draws[1][0])


def _order(draws):
    from mtrkit.finetune.draws import _permutation

    return _permutation(len(draws.used), draws.recipe.seed, 0)


def _opened(draws, numbers):
    """The openers that are called for some draws, in order."""
    called = []

    class Watched:
        def __init__(self, opener):
            self.opener = opener

        def __call__(self):
            called.append(self.opener)
            return self.opener()

    images = draws.images
    watched = type(images)(images.name, images.classes, images.labels, tuple(map(Watched, images.openers)), "")
    for number in numbers:
        Draws(watched, draws.augment, draws.recipe)[number]
    return called


def test_a_fraction_is_the_same_images_in_every_epoch(folder):
    draws = draws_of(folder, fraction=0.5)
    assert len(draws.used) == 24 and len(set(draws.used.tolist())) == 24
    assert torch.equal(draws.used, draws_of(folder, fraction=0.5).used)
    assert not torch.equal(draws.used, draws_of(folder, fraction=0.5, seed=1).used)


def test_random_states_come_back():
    random.seed(3), np.random.seed(3), torch.manual_seed(3)
    expected = random.random(), np.random.rand(), torch.rand(1)
    random.seed(3), np.random.seed(3), torch.manual_seed(3)
    with seeded(1, 2):
        inside = random.random(), np.random.rand(), torch.rand(1)
    assert (random.random(), np.random.rand(), torch.rand(1)) == expected
    with seeded(1, 2):
        assert (random.random(), np.random.rand(), torch.rand(1)) == inside


def test_unreadable_images_are_named_or_passed_over(folder, tmp_path):
    import shutil

    shutil.copytree(folder, tmp_path / "images")
    broken = sorted((tmp_path / "images").rglob("*.png"))[5]
    broken.write_bytes(b"not an image")
    with pytest.raises(InputError, match=broken.name):
        seen(draws_of(tmp_path / "images"), 0)
    skipped = sum(int(part[2].sum()) for part in seen(draws_of(tmp_path / "images", skip_unreadable=True), 0)[:6])
    assert skipped == 1


def test_the_rate_is_constant_until_it_falls():
    given = recipe(lr=1.0, min_lr=0.5, warmup_epochs=0.3, decay_epochs=0.5)
    rates = [given.rate(step, 20, 10) for step in range(20)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0] and set(rates[3:15]) == {1.0} and rates[-1] == 0.5
    assert rates[14:] == pytest.approx([1.0, 0.9, 0.8, 0.7, 0.6, 0.5])
    flat = recipe(lr=1.0, min_lr=0.5, decay_epochs=0)
    assert {flat.rate(step, 20, 10) for step in range(20)} == {1.0}


def test_the_rate_of_the_paper_falls_as_a_cosine():
    rates = [Recipe().rate(step, 101, 50) for step in (0, 25, 50, 100)]
    assert rates == pytest.approx([2e-5, 1e-6 + 19e-6 * (2 + 2**0.5) / 4, 1.05e-5, 1e-6])


def test_what_cannot_be_is_refused(folder):
    with pytest.raises(InputError, match="48 images are fewer than one batch of 64"):
        draws_of(folder, batch_size=64)
    with pytest.raises(InputError, match="multiple of 8"):
        check_cut(recipe(batch_size=12, accumulate=2), processes=2)
    for changes in (
        {"lr": 0},
        {"ema": 2.0},
        {"batch_size": 0},
        {"min_lr": 1.0},
        {"fraction": 0},
        {"precision": "int8"},
    ):
        with pytest.raises(OptionError):
            recipe(**changes)
