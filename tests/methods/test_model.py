"""R-MeeTo inside a whole model against the plain loop between the model's own blocks."""

import numpy as np
import pytest
import torch

import mtrkit
from mtrkit.schedule import EveryNth
from tests.helpers.families import FAMILIES
from tests.methods import plain
from tests.test_matrix import IMAGES, run


def forward(model, picture, tokens, **options):
    """Logits of one picture (3, H, W) by a hustvl-form model with a middle class token."""
    x = model.patch_embed(picture[None])[0]
    place = len(x) // 2
    hidden = (torch.cat([x[:place], model.cls_token[0], x[place:]]) + model.pos_embed[0])[None]
    residual, image = None, plain.Image(None, None, [1] * len(hidden[0]), [place], [[]] * len(hidden[0]), {})
    for block, left in zip(model.layers, tokens, strict=True):
        hidden, residual = block(hidden, residual)
        if left < hidden.shape[1]:
            image.hidden, image.residual = hidden[0].numpy(), residual[0].numpy()
            image = plain.rmeeto(image, hidden.shape[1] - left, **options)
            hidden, residual = (torch.from_numpy(np.stack(r))[None].float() for r in (image.hidden, image.residual))
    return model.head(model.norm_f(hidden + residual)[0, image.classes[0]])


@pytest.mark.parametrize("options", [{}, {"class_position": "floor"}, {"order": "leave"}, {"operation": "prune"}])
@torch.no_grad()
def test_rmeeto_in_a_model(options):
    model = FAMILIES["hustvl_vim"]()
    mtrkit.apply_reduction(model, "rmeeto", r=9, layers=EveryNth(2), **options)
    reduced, tokens = run(model), mtrkit.reduction_info(model).tokens
    assert tokens == (65, 56, 56, 47, 47, 47)
    mtrkit.remove_reduction(model)
    for picture, logits in zip(IMAGES, reduced, strict=True):
        torch.testing.assert_close(logits, forward(model, picture, tokens, **options), rtol=1e-3, atol=1e-4)


@torch.no_grad()
def test_tome_is_rmeeto_once_order_is_restored():
    model = FAMILIES["hustvl_vim"]()
    answers = [run(mtrkit.apply_reduction(model, method, ratio=0.3)) for method in ("tome", "rmeeto", "mtr")]
    assert torch.equal(answers[0], answers[1]) and not torch.equal(answers[0], answers[2])


@torch.no_grad()
def test_the_released_codes_class_position_is_one_for_the_whole_batch():
    model = FAMILIES["hustvl_vim"]()
    places = {}
    for class_position in ("exact", "floor"):
        mtrkit.apply_reduction(model, "rmeeto", r=9, layers=(1, 2, 3, 4), class_position=class_position)
        with mtrkit.trace_reduction(model) as trace:
            run(model)
        places[class_position] = trace.slot[:, 32].tolist()
    assert len(set(places["exact"])) > 1
    position, length = 32, 65
    for _ in range(4):
        position, length = position * (length - 9) // length, length - 9
    assert set(places["floor"]) == {position}


@torch.no_grad()
def test_dense_tasks_get_the_grid_back_whatever_the_order():
    model = FAMILIES["hustvl_vim_max"]()
    seen = []
    handle = model.norm_f.register_forward_hook(lambda module, args, out: seen.append(out))
    for options in ({"order": "leave"}, {"order": "shuffle", "shuffle_ratio": 0.5}):
        mtrkit.apply_reduction(model, "rmeeto", ratio=0.4, **options)
        with mtrkit.trace_reduction(model) as trace:
            run(model)
        for sample in range(len(IMAGES)):
            for group in trace.groups(sample):
                rows = seen[-1][sample, group]
                assert torch.equal(rows, rows[:1].expand_as(rows))
    handle.remove()
