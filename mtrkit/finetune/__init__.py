"""Get the accuracy of a reduced model back by re-training it for minutes (``pip install mtrkit[train]``).

>>> import mtrkit
>>> from mtrkit.finetune import Recipe, retrain
>>> model = mtrkit.create_model("vim_micro_patch4_stride2_32", "pretrained")
>>> model = mtrkit.apply_reduction(model, "runs", ratio=0.5)
>>> result = retrain(model, images, "runs/r50", Recipe(epochs=1), held_out=others)  # doctest: +SKIP

R-MeeTo (Shi et al. 2024, arXiv:2412.12496): the reducer stays in the model while its weights are trained for a few
epochs at a low rate. Any method and ratio can be the reducer. The same program runs on one processor or, started by
``accelerate launch``, on many machines; one that was interrupted goes on where it was.
"""

from mtrkit.finetune.estimate import Estimate, estimate
from mtrkit.finetune.objective import CrossEntropy, Objective
from mtrkit.finetune.recipe import Recipe
from mtrkit.finetune.result import Result
from mtrkit.finetune.trainer import retrain

__all__ = ["CrossEntropy", "Estimate", "Objective", "Recipe", "Result", "estimate", "retrain"]
