"""The loss of DyVM: be right, keep as much as wanted, and stay near the teacher.

Source: arXiv:2504.04787, with the weights of its released recipe.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from mtrkit.dyvm.outputs import DyVMOutputs, TeacherOutputs
from mtrkit.errors import InputError

_DISTILL = 0.5  # of either of the two terms that compare with the teacher


def dyvm_loss(
    outputs: DyVMOutputs,
    targets: Tensor,
    teacher: TeacherOutputs | None = None,
    *,
    token_weight: float = 10.0,
    block_weight: float = 10.0,
) -> Tensor:
    """The sum of :func:`loss_terms`, a scalar."""
    terms = loss_terms(outputs, targets, teacher, token_weight=token_weight, block_weight=block_weight)
    return torch.stack(list(terms.values())).sum()


def loss_terms(
    outputs: DyVMOutputs,
    targets: Tensor,
    teacher: TeacherOutputs | None = None,
    *,
    token_weight: float = 10.0,
    block_weight: float = 10.0,
) -> dict[str, Tensor]:
    """Every term by name, its weight included.

    ``"class"``: cross entropy. ``"tokens"``: over the stages s the mean of (share kept − ρ^s)², image by image.
    ``"blocks"``: (share of scans that run − target)² over the whole batch. ``"logits"``: half the Kullback–Leibler
    divergence of the student's answers from the teacher's, in nats per image. ``"features"``: half the mean squared
    difference of the kept patches' features from the teacher's at the same patches. Terms without their part are left
    out.

    Args:
        outputs: Of the student, ``DyVMTraining.outputs``.
        targets: Classes (B,), or their probabilities (B, classes), as mixup and smoothing make them.
        teacher: From :func:`teacher_outputs`, on the same images. Default: no teacher.
        token_weight: Of ``"tokens"``.
        block_weight: Of ``"blocks"``.

    Raises:
        InputError: The teacher's answers have other shapes than the student's.
    """
    terms = {"class": F.cross_entropy(outputs.logits, targets)}
    terms |= ratio_terms(outputs, token_weight=token_weight, block_weight=block_weight)
    if teacher is not None:
        _check_teacher(outputs, teacher)
        terms["logits"] = _DISTILL * divergence(outputs.logits, teacher.logits)
        terms["features"] = _DISTILL * _difference(outputs, teacher.features)
    return terms


def ratio_terms(outputs: DyVMOutputs, *, token_weight: float = 10.0, block_weight: float = 10.0) -> dict[str, Tensor]:
    """``"tokens"`` and ``"blocks"`` of :func:`loss_terms`, for tasks whose other terms are their own.

    Args:
        outputs: Of the student, ``DyVMTraining.outputs``.
        token_weight: Of ``"tokens"``; 20 in the paper's segmentation.
        block_weight: Of ``"blocks"``; the same.
    """
    terms = {}
    if outputs.masks:
        shares = torch.stack([mask.float().mean(dim=1) for mask in outputs.masks])  # (stages, B)
        wanted = torch.tensor([outputs.keep**stage for stage in range(1, len(shares) + 1)], device=shares.device)
        terms["tokens"] = token_weight * (shares - wanted[:, None]).square().mean()
    if outputs.gates is not None and outputs.block_target is not None:
        terms["blocks"] = block_weight * (outputs.gates.float().mean() - outputs.block_target).square()
    return terms


def divergence(student: Tensor, teacher: Tensor) -> Tensor:
    """Kullback-Leibler divergence of the answers to logits (B, K) from a teacher's, in nats, the mean over images."""
    own, theirs = student.float().log_softmax(dim=1), teacher.float().log_softmax(dim=1)
    return F.kl_div(own, theirs, reduction="batchmean", log_target=True)


def _difference(outputs: DyVMOutputs, teacher: Tensor) -> Tensor:
    squares = (outputs.features.float() - teacher.float()).square().mean(dim=-1)
    if not outputs.masks:
        return squares.mean()
    kept = outputs.masks[-1].detach().float()
    return (squares * kept).sum() / kept.sum().clamp(min=1)


def _check_teacher(outputs: DyVMOutputs, teacher: TeacherOutputs) -> None:
    own = (outputs.logits.shape, outputs.features.shape)
    if (teacher.logits.shape, teacher.features.shape) != own:
        raise InputError(
            f"the teacher gives logits {tuple(teacher.logits.shape)} and features {tuple(teacher.features.shape)}, and "
            f"the student {tuple(own[0])} and {tuple(own[1])}; a teacher is a copy of the model, run on the same images"
        )
