"""The plain functions under the command line."""

import time

import numpy as np
import pytest
import torch
from PIL import Image

import mtrkit
from mtrkit.data import bundled_images
from mtrkit.errors import InputError, OptionError
from mtrkit.measure import (
    ImageSet,
    Precision,
    Preprocess,
    check_backend,
    forward_pass,
    image_folder,
    interleave,
    open_images,
    paired_difference,
    peak_memory,
    predict,
    preprocess_for,
    score,
    summarise,
    twin,
    weights_digest,
    wilson_interval,
)

CPU = torch.device("cpu")


def micro():
    return mtrkit.create_model("vim_micro_patch4_32", "pretrained")


@pytest.mark.parametrize(("correct", "n"), [(741, 1000), (0, 10), (10, 10), (1, 1), (3, 7)])
def test_wilson_interval_ends_where_the_score_test_rejects(correct, n):
    low, high = wilson_interval(correct, n)
    assert 0 <= low <= correct / n <= high <= 1
    for end in (end for end in (low, high) if 1e-9 < end < 1 - 1e-9):
        deviations = abs(correct / n - end) / (end * (1 - end) / n) ** 0.5
        assert deviations == pytest.approx(1.959964, abs=1e-5)


def test_wilson_interval_refuses_nonsense():
    for wrong in ((1, 0), (3, 2), (-1, 2), (1, 2, 1.0)):
        with pytest.raises(InputError):
            wilson_interval(*wrong)


@pytest.mark.parametrize("crop", [1.0, 0.875, 0.9])
@pytest.mark.parametrize("size", [(40, 40), (333, 250), (57, 201), (28, 28)])
def test_preprocessing_is_that_of_torchvision(size, crop):
    transforms = pytest.importorskip("torchvision.transforms", exc_type=ImportError)
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    ours = Preprocess((32, 32), (0.5, 0.4, 0.3), (0.2, 0.3, 0.4), crop, "bicubic")
    theirs = transforms.Compose(
        [
            transforms.Resize(int(32 / crop), transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(32),
            transforms.ToTensor(),
            transforms.Normalize((0.5, 0.4, 0.3), (0.2, 0.3, 0.4)),
        ]
    )
    torch.testing.assert_close(ours(image), theirs(image), rtol=0, atol=1e-6)


def test_an_image_of_the_right_size_keeps_its_pixels():
    image = Image.fromarray(bundled_images().images[0])
    assert np.array_equal(preprocess_for(micro().pretrained_cfg).cut(image), bundled_images().images[0])


def test_preprocess_for_wide_models():
    preprocess = preprocess_for({}, size=(32, 64))
    assert preprocess(Image.new("L", (500, 100)).convert("RGB")).shape == (3, 32, 64)
    with pytest.raises(OptionError):
        preprocess_for({}, crop=1.5)


def test_bundled_images_are_a_balanced_set():
    images, labels, classes = bundled_images()
    assert images.shape == (1000, 32, 32, 3) and images.dtype == np.uint8
    assert np.bincount(labels).tolist() == [100] * 10 and list(classes) == sorted(classes)


def test_image_folder(tmp_path):
    for name, colour in (("b/2.png", "red"), ("b/1.png", "blue"), ("a/x/3.JPG", "green")):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), colour).save(tmp_path / name, "png")
    (tmp_path / "a" / "notes.txt").write_text("no image")
    images = image_folder(tmp_path)
    assert (images.classes, images.labels) == (("a", "b"), (0, 1, 1))
    assert images.openers[1]().getpixel((0, 0)) == (0, 0, 255)
    (tmp_path / "b" / "1.png").unlink()
    assert image_folder(tmp_path).digest != images.digest


def test_spread_keeps_every_class():
    few = open_images("bundled").spread(20)
    assert sorted(few.labels) == [label for label in range(10) for _ in range(2)]
    assert few.digest != open_images("bundled").digest


def test_prediction_keeps_the_order_of_slow_and_fast_images():
    model, images = micro(), open_images("bundled").spread(13)
    slow = tuple((lambda o=o, i=i: (time.sleep(0.02 * (i % 2 == 0)), o())[1]) for i, o in enumerate(images.openers))
    delayed = ImageSet(images.name, images.classes, images.labels, slow, "")
    preprocess, done = preprocess_for(model.pretrained_cfg), []
    whole = predict(model, images, preprocess, batch_size=13)
    assert torch.equal(predict(model, delayed, preprocess, batch_size=5, workers=4, progress=done.append), whole)
    assert done == [5, 5, 3]
    assert score(whole, images).n == 13


def test_interleave_times_everything_once_per_round():
    calls = []
    passes = {name: (lambda name=name: calls.append(name)) for name in "abc"}
    rounds = list(interleave(passes, CPU, rounds=4, seconds=0))
    assert [list(taken) for taken in rounds] == [list("abc")] * 4
    assert "".join(calls[6:]) == "abcbcacababc"  # two warm-up calls each come before


def test_summary_compares_within_rounds():
    rounds = [{"dense": 1.0, "fast": 0.5}, {"dense": 4.0, "fast": 2.0}, {"dense": 3.0, "fast": 1.0}]
    timing = summarise(rounds, "fast", "dense", batch_size=10)
    assert (timing.images_per_second, timing.speedup, timing.rounds) == (10, 2, 3)
    assert timing.quartiles == (7.5, 15) and timing.speedup_quartiles == (2, 2.5)


def test_peak_memory_counts_what_lies_there_at_the_same_time():
    def run():
        first = torch.empty(1 << 20)
        del first
        second = torch.empty(3 << 18)
        return second + torch.empty(1)

    assert peak_memory(run, CPU) == pytest.approx(6 << 20, rel=0.01)  # 3 MiB and its sum
    assert peak_memory(run, CPU, held=1000) == peak_memory(run, CPU) + 1000
    assert peak_memory(run, torch.device("meta")) is None


def test_peak_memory_does_not_depend_on_who_ran_before():
    model, x = micro(), torch.randn(8, 3, 32, 32)
    run, small = forward_pass(model, x, Precision("float32")), forward_pass(model, x[:1], Precision("float32"))
    alone = peak_memory(small, CPU)
    run()
    assert peak_memory(small, CPU) == alone and peak_memory(run, CPU) > 4 * alone


def test_twins_share_weights_and_nothing_else():
    model = micro()
    other = mtrkit.apply_reduction(twin(model))
    assert mtrkit.reduction_info(model) is None
    assert all(a is b for a, b in zip(model.parameters(), other.parameters(), strict=True))
    assert weights_digest(model) == weights_digest(other)
    with torch.no_grad():
        model.pos_embed[0, 0, 0] += 1e-6
    assert weights_digest(model) != weights_digest(micro())


def test_check_backend_tells_right_from_wrong(monkeypatch):
    assert check_backend("native", CPU).good
    assert isinstance(check_backend("mamba_ssm", CPU), str)
    scan = mtrkit.selective_scan

    def forgets_the_gate(u, delta, A, B, C, D, z, bias, **options):
        return scan(u, delta, A, B, C, D, None if u.dtype == torch.float32 else z, bias, **options) + 0 * z

    monkeypatch.setattr("mtrkit.measure.parity.selective_scan", forgets_the_gate)
    assert not check_backend("native", CPU).good


def test_paired_difference_covers_the_true_one():
    generator = torch.Generator().manual_seed(0)
    n, trials, covered = 200, 400, 0
    for _ in range(trials):
        u = torch.rand(n, generator=generator)
        difference = paired_difference(u < 0.8, (u < 0.7) | (u > 0.97))
        covered += difference.low <= 0.07 <= difference.high
    assert 0.92 <= covered / trials <= 0.99


def test_paired_difference_refuses_other_images():
    with pytest.raises(InputError, match="equally long"):
        paired_difference(torch.ones(3).bool(), torch.ones(4).bool())
