"""What training sees: choices that are drawn, gradients that pass through them, and the loss."""

import copy

import pytest
import torch
import torch.nn.functional as F
from timm.optim import create_optimizer_v2
from torch import nn

import mtrkit
from mtrkit.dyvm import (
    BlockSelector,
    DyVMOutputs,
    DyVMTraining,
    TeacherOutputs,
    TokenPredictor,
    dyvm_loss,
    loss_terms,
    teacher_outputs,
)
from mtrkit.errors import InputError, OptionError, UnsupportedModelError
from mtrkit.methods.dyvm import straight_through
from tests.dyvm.models import MODELS, build, choosing, images, trained
from tests.helpers.families import FAMILIES

LABELS = torch.tensor([0, 1, 2, 3])


def test_the_predictor_by_a_plain_loop():
    torch.manual_seed(0)
    net, x = TokenPredictor(8).double(), torch.randn(2, 5, 8, dtype=torch.float64)
    kept = torch.tensor([[1.0, 0, 1, 1, 0], [0, 0, 0, 0, 0]]).double()
    norm, first = net.in_conv[0], net.in_conv[1]
    second, third, fourth = net.out_conv[0], net.out_conv[2], net.out_conv[4]
    for given in (kept, None):
        found = net(x, given)
        mask = torch.ones(2, 5) if given is None else given
        for b in range(2):
            tokens = F.gelu(first(norm(x[b])))
            mean = sum(mask[b, i] * tokens[i, 4:] for i in range(5)) / (mask[b].sum() + 1)
            for i in range(5):
                y = torch.cat([tokens[i, :4], mean])
                y = fourth(F.gelu(third(F.gelu(second(y)))))
                torch.testing.assert_close(found[b, i], y.log_softmax(-1), rtol=1e-9, atol=1e-9)


def test_straight_through_is_exact_and_has_the_derivative_of_what_goes_in():
    soft = torch.tensor([0.1, 0.5, 0.7000001], requires_grad=True)
    hard = straight_through(soft)
    assert hard.tolist() == [0, 1, 1]
    (hard * torch.tensor([1.0, 2.0, 3.0])).sum().backward()
    assert soft.grad.tolist() == [1, 2, 3]


def test_a_new_selector_lets_nearly_all_scans_run():
    """With bias 5 the difference of two Gumbel variables is below −5 with probability σ(−5) = 0.0067."""
    torch.manual_seed(0)
    gates = BlockSelector(6)(torch.randn(20_000, 6))
    assert set(gates.unique().tolist()) == {0, 1}
    assert gates.mean().item() == pytest.approx(torch.sigmoid(torch.tensor(5.0)).item(), abs=2e-3)


def test_the_temperature_of_the_gates_is_two():
    """The slope of σ((l + noise)/2) where it is drawn at l: half of p·(1 − p)."""
    torch.manual_seed(0)
    selector = BlockSelector(4)
    nn.init.zeros_(selector.bias)
    seen = torch.ones(50_000, 4)
    selector(seen)[:, 0].mean().backward()
    logistic = torch.rand(200_000).logit() / 2
    wanted = (torch.sigmoid(logistic) * torch.sigmoid(-logistic) / 2).mean()
    assert selector.bias.grad[0].item() == pytest.approx(wanted.item(), rel=0.02)


@pytest.mark.parametrize("family", MODELS)
def test_gradients_reach_everything(family):
    model, x = build(family), images()
    teacher = copy.deepcopy(model)
    training = DyVMTraining(model, layers=(1, 2, 3), parts=None).train()
    choosing(training.parts)
    torch.manual_seed(0)
    training(x)
    dyvm_loss(training.outputs, LABELS, teacher_outputs(teacher, x)).backward()
    for name, parameter in training.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert parameter.grad.any() or "parts" not in name, name
    assert {name.partition(".")[0] for name in training.state_dict()} == {"model", "parts"}


def test_an_image_that_loses_every_patch_gives_no_nan():
    training = DyVMTraining(build("mean"), layers=(1,), noise=0).train()
    last = training.parts.score_predictors[0].out_conv[4]
    with torch.no_grad():
        last.weight.zero_()
        last.bias.copy_(torch.tensor([-9.0, 9.0]))
    training(images())
    assert not training.outputs.masks[0].any() and training.outputs.logits.isfinite().all()
    dyvm_loss(training.outputs, LABELS).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in training.parameters())


def test_what_the_model_wants_without_weight_decay_has_none():
    model = build()
    names = {f"model.{name}" for name in model.no_weight_decay()}
    groups = create_optimizer_v2(DyVMTraining(model), opt="adamw", weight_decay=0.05).param_groups
    free = {id(p) for group in groups if not group["weight_decay"] for p in group["params"]}
    found = dict(DyVMTraining(model).named_parameters())
    assert names and all(id(found[name]) in free for name in names)


@pytest.mark.parametrize("term", ["class", "tokens", "blocks", "logits", "features"])
def test_each_term_reaches_what_it_should(term):
    model, x = build(), images()
    training = DyVMTraining(model, parts=choosing(trained(model).parts)).train()
    training(x)
    terms = loss_terms(training.outputs, LABELS, TeacherOutputs(torch.randn(4, 5), torch.randn(4, 64, 16)))
    terms[term].backward()
    moved = {
        name.split(".")[1] for name, value in training.parts.named_parameters(prefix="x") if value.grad is not None
    }
    assert moved >= {"tokens": {"score_predictors"}, "blocks": {"block_heads"}}.get(
        term, {"score_predictors", "block_heads"}
    )


def test_the_loss_by_hand():
    masks = (torch.tensor([[1.0, 1, 1, 0], [1, 0, 1, 0]]), torch.tensor([[1.0, 0, 0, 0], [1, 0, 1, 0]]))
    gates = torch.tensor([[[1.0, 1], [0, 1]], [[1, 0], [0, 0]]])
    features, theirs = torch.randn(2, 4, 3), torch.randn(2, 4, 3)
    logits, wanted = torch.randn(2, 5), torch.randn(2, 5)
    targets = torch.rand(2, 5).softmax(-1)
    terms = loss_terms(DyVMOutputs(logits, masks, gates, features, 0.7, 0.8), targets, TeacherOutputs(wanted, theirs))
    log, p = logits.log_softmax(-1), wanted.softmax(-1)
    plain = {
        "class": -(targets * log).sum() / 2,
        "tokens": 10 * ((0.75 - 0.7) ** 2 + (0.5 - 0.7) ** 2 + (0.25 - 0.49) ** 2 + (0.5 - 0.49) ** 2) / 4,
        "blocks": 10 * (4 / 8 - 0.8) ** 2,
        "logits": 0.5 * (p * (p.log() - log)).sum() / 2,
        "features": 0.5 * sum(((features - theirs)[b, i] ** 2).sum() for b, i in ((0, 0), (1, 0), (1, 2))) / 9,
    }
    assert set(terms) == set(plain)
    for name, value in plain.items():
        torch.testing.assert_close(terms[name], torch.as_tensor(value), msg=name)
    outputs = DyVMOutputs(logits, masks, gates, features, 0.7, 0.8)
    total = dyvm_loss(outputs, targets, TeacherOutputs(wanted, theirs), token_weight=1.0, block_weight=0.0)
    changed = {**plain, "tokens": plain["tokens"] / 10, "blocks": 0.0}
    torch.testing.assert_close(total, torch.as_tensor(sum(changed.values())))


def test_a_teacher_of_another_shape_is_refused():
    outputs = DyVMOutputs(torch.randn(2, 5), (), None, torch.randn(2, 4, 3), 0.7, None)
    with pytest.raises(InputError, match="teacher"):
        loss_terms(outputs, torch.tensor([0, 1]), TeacherOutputs(torch.randn(2, 5), torch.randn(2, 5, 3)))


@pytest.mark.parametrize("family", ["vim", "vim_mambar", "hustvl_vim", "videomamba", "mambar_neck"])
def test_the_teacher_gives_what_the_model_normalises_last(family):
    torch.manual_seed(0)
    model, x = FAMILIES[family](), torch.randn(2, 3, 32, 32)
    found, normed = teacher_outputs(model, x), []
    hook = model.norm_f.register_forward_hook(lambda norm, inputs, out: normed.append(out))
    with torch.no_grad():
        assert torch.equal(found.logits, model(x))
    hook.remove()
    tokens = normed[-1][0] if isinstance(normed[-1], tuple) else normed[-1]
    special = {"vim_mambar": (16, 33, 50), "mambar_neck": (12, 25, 38, 51), "videomamba": (0,)}.get(family, (32,))
    rest = [i for i in range(tokens.shape[1]) if i not in special]
    torch.testing.assert_close(found.features, tokens[:, rest])


def test_a_seed_gives_the_same_choices_and_another_one_others():
    model, x = build(), images()
    training = DyVMTraining(model, parts=trained(model).parts).train()
    drawn = []
    for seed in (5, 5, 6):
        torch.manual_seed(seed)
        training(x)
        drawn.append([*training.outputs.masks, training.outputs.gates])
    assert all(map(torch.equal, drawn[0], drawn[1]))
    assert not any(map(torch.equal, drawn[0], drawn[2]))
    first, second, third = drawn[0][:3]
    assert (second <= first).all() and (third <= second).all(), "a patch came back"


def test_without_noise_the_predictor_decides():
    model, x = build(), images()
    parts = trained(model, block_target=None).parts
    training, found, seen = DyVMTraining(model, parts=parts, noise=0).train(), [], []
    parts.score_predictors[0].register_forward_hook(lambda predictor, given, scores: seen.append(scores))
    for seed in (5, 6):
        torch.manual_seed(seed)
        training(x)
        found.append(training.outputs.masks)
    assert all(map(torch.equal, *found))
    assert torch.equal(found[0][0], (seen[0][..., 0] >= seen[0][..., 1]).to(x.dtype))


def test_eval_mode_is_inference_and_copies_work():
    model, x = build(), images()
    training = DyVMTraining(model, parts=trained(model).parts).train()
    training.parts.scan_share = 0.5
    training(x)
    assert training.parts.scan_share is None, "a share that was measured before this step was kept"
    twin = copy.deepcopy(training).eval()
    assert twin.outputs is None and twin._reduction().trained is twin.parts
    with torch.no_grad():
        found = training.eval()(x)
        assert training.outputs is None and torch.equal(twin(x), found)
        checkpoint = training.checkpoint()
        dense = training.remove()(x)
        assert torch.equal(mtrkit.apply_reduction(model, "dyvm", checkpoint=checkpoint)(x), found)
        assert not torch.allclose(found, dense)


def test_autocast_and_checkpointed_blocks():
    torch.manual_seed(0)
    model, x = FAMILIES["vim"](), torch.randn(4, 3, 32, 32)
    training = DyVMTraining(model).train()
    choosing(training.parts)
    grads = []
    for again in (False, True):
        model.set_grad_checkpointing(again)
        torch.manual_seed(1)
        training.zero_grad()
        training(x)
        dyvm_loss(training.outputs, LABELS).backward()
        grads.append(torch.cat([p.grad.flatten() for p in training.parameters()]))
    torch.testing.assert_close(grads[0], grads[1])
    with torch.autocast("cpu", torch.bfloat16):
        training(x)
        loss = dyvm_loss(training.outputs, LABELS)
    loss.backward()
    assert loss.isfinite() and set(training.outputs.masks[-1].unique().tolist()) == {0, 1}


def test_parts_alone_and_no_selectors():
    model, x = build(), images()
    training = DyVMTraining(model, block_target=None, layers=()).train()
    dense = training(x)
    assert training.outputs.masks == () and training.outputs.gates is None and not list(training.parts.parameters())
    torch.testing.assert_close(dense, training.remove()(x))
    training = DyVMTraining(model, layers=()).train()
    training(x)
    assert training.outputs.masks == () and training.outputs.gates.shape == (4, 4, 2)


def test_what_cannot_be_is_refused():
    model = build()
    for options in ({"keep": 0}, {"keep": 1.1}, {"block_target": 2}, {"layers": (4,)}, {"keep": True}, {"noise": -1}):
        with pytest.raises(OptionError):
            DyVMTraining(model, **options)
        assert mtrkit.reduction_info(model) is None
    with pytest.raises(UnsupportedModelError, match="two-direction"):
        DyVMTraining(FAMILIES["timm_vit"]())
    training = DyVMTraining(model)
    mtrkit.apply_reduction(model, "random")
    with pytest.raises(UnsupportedModelError, match="patched by something else"):
        training(images())


def test_a_teacher_s_reduction_does_not_count():
    model, x = build(), images()
    dense = teacher_outputs(model, x)
    mtrkit.apply_reduction(model, "mtr", ratio=0.3, layers=[1, 2])
    found = teacher_outputs(model, x)
    assert torch.equal(found.logits, dense.logits) and torch.equal(found.features, dense.features)
