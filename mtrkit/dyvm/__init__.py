"""DyVM: training of pruned tokens and of the scans that run per image, and what is saved of it.

>>> import mtrkit
>>> from mtrkit import dyvm
>>> model = mtrkit.create_model("vim_micro_patch4_stride2_32")
>>> training = dyvm.DyVMTraining(model, keep=0.7, block_target=0.8)  # a trainer's loop runs it and the loss
>>> checkpoint = training.checkpoint()  # with `save`, beside the model's own state dict
>>> model = mtrkit.apply_reduction(model.eval(), "dyvm", checkpoint=checkpoint)
>>> mtrkit.reduction_info(model).options["keep"]
0.7

Source: "Dynamic Vision Mamba", arXiv:2504.04787.
"""

from mtrkit.dyvm.loss import dyvm_loss, loss_terms, ratio_terms
from mtrkit.dyvm.objective import DyVMObjective
from mtrkit.dyvm.outputs import DyVMOutputs, TeacherOutputs, teacher_outputs
from mtrkit.dyvm.release import load_release
from mtrkit.dyvm.share import measure_scan_share
from mtrkit.dyvm.training import DyVMTraining
from mtrkit.methods.dyvm import BlockSelector, DyVM, TokenPredictor
from mtrkit.patch import DyVMCheckpoint

__all__ = [
    "BlockSelector",
    "DyVM",
    "DyVMCheckpoint",
    "DyVMObjective",
    "DyVMOutputs",
    "DyVMTraining",
    "TeacherOutputs",
    "TokenPredictor",
    "dyvm_loss",
    "load_release",
    "loss_terms",
    "measure_scan_share",
    "ratio_terms",
    "teacher_outputs",
]
