"""What decides the result of a run."""

from typing import Any

from torch import nn

from mtrkit.api import reduction_info
from mtrkit.dyvm import DyVMTraining
from mtrkit.finetune.draws import Draws
from mtrkit.finetune.objective import Objective
from mtrkit.finetune.recipe import Recipe
from mtrkit.measure import Preprocess, weights_digest


def identity_of(
    model: nn.Module, draws: Draws, recipe: Recipe, objective: Objective, preprocess: Preprocess
) -> dict[str, Any]:
    """What decides the result of a run; one with another cannot go on in its folder."""
    info, images = reduction_info(model), draws.images
    teacher = getattr(objective, "teacher", None)
    return {
        "model": type(model).__name__,
        "weights": weights_digest(model),
        "reduction": None if info is None else str(info).partition("\n")[0] + f"; tokens {info.tokens}",
        "objective": type(objective).__name__,
        "loss_weights": [getattr(objective, name, None) for name in ("token_weight", "block_weight")],
        "teacher": None if teacher is None else weights_digest(teacher),
        "recipe": recipe.as_dict(),
        "images": images.digest,
        "skip_unreadable": draws.skip_unreadable,
        "preprocess": str(preprocess),
        "drop_path": _drop_path(model),
        "noise": model.parts.noise if isinstance(model, DyVMTraining) else None,
    }


def _drop_path(model: nn.Module) -> float:
    """The greatest rate of stochastic depth, of our models or timm's."""
    paths = [vars(module) for module in model.modules() if type(module).__name__ == "DropPath"]
    return max((path.get("rate", path.get("drop_prob")) or 0.0 for path in paths), default=0.0)
