"""Training and inference give one answer for one choice: the masked patches behind the others might not be there."""

from itertools import pairwise

import pytest
import torch

import mtrkit
from mtrkit.dyvm import DyVM, DyVMTraining
from mtrkit.models import FeatureMaps
from mtrkit.patch import RECORD
from mtrkit.scan.mixer import mixer_forward, mixer_parts
from mtrkit.types import Gating
from tests.dyvm.models import MODELS, build, choosing, images, trained
from tests.helpers.families import FAMILIES

EXACT = {"rtol": 1e-9, "atol": 1e-9}


def masked(mixer, tokens, mask):
    """The mixer's output for tokens (B, L, D) of which some, (B, L), do not count."""
    parts = mixer_parts(mixer, halve=True)
    gating = Gating(None, torch.zeros(len(tokens), 0, dtype=torch.int64), mask[..., None])
    return mixer_forward(tokens, parts, gating=gating)[0]


@pytest.mark.parametrize("only", ["forward", "backward"])
@torch.no_grad()
def test_patches_at_the_end_are_as_good_as_gone_in_either_direction(only):
    mixer = build().layers[0].mixer
    silent = mixer.D_b if only == "forward" else mixer.D
    silent.zero_()  # and with it all that the other direction adds:
    (mixer.conv1d_b if only == "forward" else mixer.conv1d).weight.zero_()
    (mixer.conv1d_b if only == "forward" else mixer.conv1d).bias.zero_()
    tokens = torch.randn(3, 9, 16, dtype=torch.float64)
    kept = torch.tensor([0, 2, 3, 7, 8])
    short = mixer(tokens[:, kept])
    gone = torch.tensor([1, 4, 5, 6])
    behind = masked(mixer, tokens[:, torch.cat([kept, gone])], torch.tensor([[1.0] * 5 + [0.0] * 4] * 3).double())
    torch.testing.assert_close(behind[:, :5], short, **EXACT)
    in_place = masked(mixer, tokens, torch.ones(3, 9).double().index_fill(1, gone, 0.0))
    assert (in_place[:, kept] - short).abs().max() > 1e-3


def draws_the_best(parts, counts):
    """Make the parts draw the best patches, so many for each image at each stage; counts (stages, B)."""

    def draw(layer, patches, kept):
        scores = parts.predictor(layer)(patches, kept)[..., 0].masked_fill(kept < 0.5, -torch.inf)
        rank = scores.argsort(dim=1, descending=True).argsort(dim=1)
        return (rank < counts[parts.layers.index(layer)][:, None]).to(scores.dtype)

    parts.draw = draw


@pytest.mark.parametrize("family", MODELS)
def test_the_training_form_answers_as_shortened_sequences_of_each_image_do(family):
    model, x = build(family), images(3)
    checkpoint = trained(model)
    counts = torch.tensor([[40, 31, 14], [40, 10, 13], [7, 10, 1]])
    training = DyVMTraining(model, parts=checkpoint.parts).train()
    for head in training.parts.block_heads:
        head.eval()  # the gates are those of inference
    draws_the_best(training.parts, counts)
    found = training(x).detach()
    outputs = training.outputs
    assert torch.equal(torch.stack([mask.sum(dim=1) for mask in outputs.masks]).long(), counts)
    assert 0.2 < outputs.gates.mean() < 0.8
    training.remove()
    mtrkit.apply_reduction(model, "dyvm", checkpoint=checkpoint)
    plan = vars(model)[RECORD].plan
    special = plan.shape.special
    for i in range(3):
        left = [n + special for n in counts[:, i].tolist()]
        plan.schedule = (*left, left[-1])
        with torch.no_grad():
            shortened = model.forward_features(x[i : i + 1])
            torch.testing.assert_close(found[i : i + 1], model.forward_head(shortened), **EXACT)
        patches = model._apart(shortened)[0]
        torch.testing.assert_close(outputs.features[i : i + 1].detach(), patches, **EXACT)


@pytest.mark.parametrize(("registers", "counts"), [(12, (0, 1, 11, 12, 13, 26, 137, 196)), (0, (0, 1, 2, 137, 196))])
def test_special_tokens_of_the_training_form_stand_where_the_formula_says(registers, counts):
    """Registers at (⌊n/13⌋ + 1)·(i + 1) − 1 and the class token at ⌊n/2⌋, of n patches that are left."""
    size = {"img_size": 224, "patch_size": 16, "embed_dim": 16, "depth": 4}
    model = mtrkit.models.MambaReg(**size, num_registers=12) if registers else mtrkit.VisionMamba(**size)
    training = DyVMTraining(model.eval(), keep=0.5, layers=(1,), block_target=None)
    block = vars(model.layers[0])["forward"]
    left = torch.tensor(counts)
    gone = (torch.arange(196) >= left[:, None]).to(torch.uint8)
    slots = block._special_slots(gone, max(registers, 1))
    number = torch.arange(registers)
    wanted = (left[:, None] // 13 + 1) * (number + 1) - 1 if registers else left[:, None] // 2
    assert torch.equal(slots, wanted)
    training.remove()


def test_the_order_is_that_of_the_image_with_the_dropped_at_the_end():
    model, x = build(), images(2)
    training = DyVMTraining(model, parts=trained(model).parts).train()
    seen = []
    training._reduction().recorders.append(lambda hidden, stream: seen.append(stream))
    training(x)
    last = training.outputs.masks[-1]
    for sample in range(2):
        slot, mask = seen[0].slot[sample], last[sample]
        patches = torch.cat([slot[:32], slot[33:]])
        kept, gone = patches[mask > 0.5], patches[mask < 0.5]
        count = len(kept)
        assert slot[32] == count // 2 and kept.max() <= count and (gone > count).all()
        assert torch.equal(kept, kept.sort().values)


@pytest.mark.parametrize("family", ["hustvl_vim", "hustvl_vim_double", "hustvl_vim_last", "videomamba", "mambar_neck"])
def test_so_do_the_classes_of_the_official_repositories(family):
    """In float32, as these add their residuals in it."""
    torch.manual_seed(0)
    model, x = FAMILIES[family](), torch.randn(3, 3, 32, 32)
    parts = choosing(DyVM(32, 64, 6, keep=0.6))
    training = DyVMTraining(model, parts=parts).train()
    parts.block_heads.eval()
    left = 64 - (family == "hustvl_vim_last")  # without a class token the last patch is read, and never dropped
    draws_the_best(parts, torch.tensor([[int(left * 0.6**stage)] * 3 for stage in (1, 2, 3)]))
    found = training(x).detach()
    del parts.draw
    with torch.no_grad():
        torch.testing.assert_close(training.eval()(x), found, rtol=1e-3, atol=1e-3)
        assert not torch.allclose(training.remove()(x), found, rtol=1e-2, atol=1e-2)


def test_maps_for_dense_tasks_hold_the_last_features_of_dropped_patches():
    model, x = build("mean"), images(2)
    maps = FeatureMaps(model, out_indices=(0, 1, 2, 3))
    training = DyVMTraining(maps, keep=0.6, layers=(1, 2, 3), block_target=None).train()
    draws_the_best(training.parts, torch.tensor([[38] * 2, [23] * 2, [13] * 2]))
    found = [level.detach() for level in training(x)]
    del training.parts.draw
    with torch.no_grad():
        for level, wanted in zip(found, training.eval()(x), strict=True):
            torch.testing.assert_close(level, wanted, **EXACT)
    same = [torch.isclose(a, b, rtol=0, atol=1e-12).all(dim=1).sum() for a, b in pairwise(found)]
    assert [int(count) for count in same] == [2 * (64 - 38), 2 * (64 - 23), 2 * (64 - 13)]
