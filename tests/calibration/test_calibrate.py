"""``mtrkit.calibrate`` on real and tiny models: what it gains, what it keeps, what it refuses."""

import copy
import dataclasses

import pytest
import torch

import mtrkit
import mtrkit.ops
import mtrkit.types
from mtrkit.calibration.samples import divergence, log_answers
from mtrkit.data import bundled_images
from mtrkit.errors import CheckpointError, InputError, OptionError, ScheduleError, UnsupportedModelError
from mtrkit.measure import preprocess_for
from tests.helpers.families import FAMILIES
from tests.standins.language import LANGUAGE
from tests.test_matrix import IMAGES, fingerprint, run

SAMPLES = torch.randn(60, 3, 32, 32, generator=torch.Generator().manual_seed(2))
FAST = {"layers": (1, 3), "show_progress": False}


def tiny(family="vim", **options):
    """A fresh model and its calibration."""
    model = FAMILIES[family]()
    return model, mtrkit.calibrate(model, SAMPLES, 0.3, **{**FAST, **options})


def always_corrected(calibration, model):
    """The same with a correction that cannot be overlooked, of the model's width."""
    width = mtrkit.adapters.find_adapter(model).shape(model, (3, 32, 32)).dim
    torch.manual_seed(0)
    parts = (torch.randn(*shape) / 3 for shape in ((width, 2), (2, width), (width,)))
    return dataclasses.replace(calibration, correction=mtrkit.types.Correction(*parts))


@pytest.mark.parametrize("name", ["vim_micro_patch4_32", "vim_micro_patch4_stride2_avgpool_32"])
def test_brings_answers_nearer_on_other_images(name):
    model = mtrkit.create_model(name, "pretrained").eval()
    tensor = preprocess_for(model.pretrained_cfg).tensor
    images = torch.stack([tensor(image) for image in bundled_images()[0]])
    calibration = mtrkit.calibrate(model, images[::5], 0.4, layers=(1, 4, 7), show_progress=False)
    assert calibration.correction is not None
    others = images[1::10]
    with torch.inference_mode():
        dense = log_answers(model(others))
        plain = mtrkit.apply_reduction(copy.deepcopy(model), "runs", 0.4, layers=(1, 4, 7))
        ours = mtrkit.apply_reduction(copy.deepcopy(model), calibration=calibration)
        before, after = (divergence(dense, log_answers(m(others))).mean() for m in (plain, ours))
    assert after < 0.9 * before


@pytest.mark.parametrize("family", ["vim", "vim_mean", "vim_mambar", "hustvl_vim_double", "videomamba", "timm_vit"])
@torch.no_grad()
def test_the_correction_is_that_of_the_final_features(family):
    """By hand: the reduced features after the last block, corrected, then the model's own norm and head."""
    method = "tome" if family == "timm_vit" else "runs"
    model, calibration = tiny(family, method=method)
    calibration = always_corrected(calibration, model)
    plain = mtrkit.apply_reduction(copy.deepcopy(model), calibration=dataclasses.replace(calibration, correction=None))
    last = getattr(plain, "layers", getattr(plain, "blocks", None))[-1]

    def correct(block, inputs, output):
        whole = output if isinstance(output, torch.Tensor) else None
        features = mtrkit.ops.stream_tokens(*output) if whole is None else output
        special = mtrkit.adapters.find_adapter(model).special_at(model)(features.shape[1])
        mask = torch.zeros(features.shape[1], 1)
        mask[list(special) or slice(None)] = 1
        corrected = features + mask * calibration.correction.of(features)
        return corrected if whole is not None else (corrected, torch.zeros_like(corrected))

    last.register_forward_hook(correct)
    expected = run(plain)
    mtrkit.apply_reduction(model, calibration=calibration)
    torch.testing.assert_close(run(model), expected, rtol=1e-4, atol=1e-4)


def test_undo_and_disabling_leave_nothing():
    model, calibration = tiny()
    before, dense, keys = fingerprint(model), run(model), list(model.state_dict())
    mtrkit.apply_reduction(model, calibration=always_corrected(calibration, model))
    assert mtrkit.reduction_info(model).corrected and list(model.state_dict()) == keys
    assert not torch.equal(run(model), dense)
    with mtrkit.reduction_disabled(model):
        assert torch.equal(run(model), dense)
    mtrkit.remove_reduction(model)
    assert torch.equal(run(model), dense) and fingerprint(model) == before


def test_the_model_stays_as_it_is():
    model = mtrkit.apply_reduction(FAMILIES["vim"](), "mtr", 0.3)
    model.train()
    model.layers[2].eval()
    before, answers, training = fingerprint(model), run(model.eval()), [m.training for m in model.train().modules()]
    mtrkit.calibrate(model, SAMPLES, 0.3, **FAST)
    assert fingerprint(model) == before and [m.training for m in model.modules()] == training
    assert torch.equal(run(model.eval()), answers)


def test_the_same_seed_gives_the_same():
    model, first = tiny()
    assert mtrkit.calibrate(model, SAMPLES, 0.3, **FAST).digest == first.digest
    batches = [(batch, torch.zeros(len(batch))) for batch in SAMPLES.split(13)]
    assert mtrkit.calibrate(model, batches, 0.3, **FAST).digest == first.digest
    assert mtrkit.calibrate(model, SAMPLES, 0.3, seed=1, **FAST).digest != first.digest


def test_places_by_a_race():
    model, calibration = tiny(layers=None)
    info = mtrkit.reduction_info(mtrkit.apply_reduction(model, calibration=calibration))
    assert info.tokens == calibration.tokens and info.layers == calibration.layers
    assert info.ratio_reached == pytest.approx(0.3, abs=0.03)


def test_a_file_gives_the_same_bits(tmp_path):
    model, calibration = tiny()
    calibration, file = always_corrected(calibration, model), tmp_path / "c.safetensors"
    calibration.save(file)
    loaded = mtrkit.Calibration.load(file)
    assert loaded.digest == calibration.digest and file.stat().st_size < 10_000 and str(loaded) == str(calibration)
    ours = run(mtrkit.apply_reduction(copy.deepcopy(model), calibration=calibration))
    assert torch.equal(run(mtrkit.apply_reduction(model, calibration=file)), ours)


def test_holds_in_other_dtypes_and_under_adapters():
    peft = pytest.importorskip("peft")
    model, calibration = tiny()
    calibration = always_corrected(calibration, model)
    ours = run(mtrkit.apply_reduction(copy.deepcopy(model), calibration=calibration))
    double = mtrkit.apply_reduction(copy.deepcopy(model).double(), calibration=calibration)
    torch.testing.assert_close(run(double, IMAGES.double()).float(), ours, rtol=1e-3, atol=1e-3)
    half = mtrkit.apply_reduction(copy.deepcopy(model).bfloat16(), calibration=calibration)
    assert run(half, IMAGES.bfloat16()).dtype == torch.bfloat16
    lora = peft.get_peft_model(copy.deepcopy(model), peft.LoraConfig(target_modules=["in_proj"]))
    adapted = mtrkit.apply_reduction(lora.double(), calibration=calibration)
    torch.testing.assert_close(run(adapted, IMAGES.double()), run(double, IMAGES.double()))


def test_compiles_and_exports_whole():
    model, calibration = tiny()
    mtrkit.apply_reduction(model, calibration=always_corrected(calibration, model))
    expected = run(model)
    assert torch.equal(run(torch.compile(model, fullgraph=True, backend="eager")), expected)
    exported = torch.export.export(model, (IMAGES,)).module()
    torch.testing.assert_close(exported(IMAGES), expected)


@pytest.mark.parametrize("family", LANGUAGE)
def test_texts(family):
    model = LANGUAGE[family]()
    texts = torch.randint(0, 16, (24, 40), generator=torch.Generator().manual_seed(0))
    try:
        calibration = mtrkit.calibrate(model, texts, 0.2, **FAST)
    except InputError as error:
        assert "compares logits" in str(error)
        return
    mtrkit.apply_reduction(model, calibration=calibration)
    assert mtrkit.reduction_info(model).tokens == calibration.tokens


REFUSED = {
    "another ratio": ({"ratio": 0.4}, "ratio=0.4"),
    "another method": ({"method": "mtr"}, "method='mtr'"),
    "tokens": ({"tokens": [65] * 6}, "tokens="),
    "another option": ({"similarity": "l2"}, "similarity='l2'"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_refuses_what_contradicts_it(what):
    model, calibration = tiny()
    given, words = REFUSED[what]
    with pytest.raises(OptionError, match="a calibration of 'runs' at ratio 0.3") as error:
        mtrkit.apply_reduction(model, calibration=calibration, **given)
    assert words in str(error.value) and mtrkit.reduction_info(model) is None
    mtrkit.apply_reduction(model, "runs", 0.3, calibration=calibration, similarity="cosine")  # what it says itself


def test_refuses_other_models():
    model, calibration = tiny()
    others = {
        "other weights": FAMILIES["vim"](),
        "6 blocks of 'vim', and this one has 6 blocks of 'hustvl": FAMILIES["hustvl_vim"](),
    }
    with torch.no_grad():
        others["other weights"].layers[3].mixer.D.mul_(1.2)
    for words, other in others.items():
        with pytest.raises(OptionError, match=words):
            mtrkit.apply_reduction(other, calibration=calibration)


def test_refuses_other_sizes():
    model, calibration = tiny()
    mtrkit.apply_reduction(model, calibration=calibration)
    model.set_input_size(48)
    with pytest.raises(ScheduleError, match="call apply_reduction again"):
        run(model, torch.randn(2, 3, 48, 48))


def test_refuses_files_of_other_kinds(tmp_path):
    from safetensors.torch import save_file

    other, broken = tmp_path / "other.safetensors", tmp_path / "broken.safetensors"
    save_file({"x": torch.ones(1)}, other)
    broken.write_bytes(b"nothing")
    for file in (other, broken):
        with pytest.raises(CheckpointError, match="is not a calibration"):
            mtrkit.apply_reduction(FAMILIES["vim"](), calibration=file)
    with pytest.raises(FileNotFoundError):
        mtrkit.apply_reduction(FAMILIES["vim"](), calibration=tmp_path / "missing.safetensors")


MISTAKES = {
    "too few": ({"images": SAMPLES[:10]}, InputError, "at least 20"),
    "no tensors": ({"images": [("a", 1)]}, InputError, "not str"),
    "several sizes": ({"images": [SAMPLES, SAMPLES[..., :16]]}, InputError, "of one size"),
    "raw images": ({"images": SAMPLES.byte()}, InputError, "torch.uint8"),
    "no batches": ({"batch_size": 0}, OptionError, "batch_size=0"),
    "nothing to do": ({"ratio": 0}, OptionError, "ratio=0"),
    "out of reach": ({"ratio": 0.95}, ScheduleError, "out of reach"),
    "unknown option": ({"metrics": "X"}, OptionError, "metrics"),
    "not finite": ({"images": SAMPLES * float("nan")}, InputError, "not finite"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_named(mistake):
    given, error, words = MISTAKES[mistake]
    arguments = {"images": SAMPLES, "ratio": 0.3, **FAST} | given
    with pytest.raises(error, match=words):
        mtrkit.calibrate(FAMILIES["vim"](), **arguments)


def test_a_compiled_model_is_run_as_it_is():
    model, calibration = tiny()
    compiled = torch.compile(model, backend=lambda *_: pytest.fail("compiled"))
    assert mtrkit.calibrate(compiled, SAMPLES, 0.3, **FAST).digest == calibration.digest


def test_refuses_answers_that_are_no_logits():
    model = FAMILIES["vim"]()
    model.reset_classifier(0)
    with pytest.raises(InputError, match="has no head"):
        mtrkit.calibrate(model, SAMPLES, **FAST)
    with pytest.raises(UnsupportedModelError):
        mtrkit.calibrate(torch.nn.Linear(3, 3), SAMPLES, **FAST)
    with pytest.raises(InputError, match="compares logits"):
        log_answers([model])
