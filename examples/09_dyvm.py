"""Train DyVM: what chooses, for each image, the patches to keep and the scans to run, and the model with it.

    python examples/09_dyvm.py                        # a few steps on bundled images, to see it run
    python examples/09_dyvm.py cifar10/train --epochs 2

The folder has one folder of images per class. Every tenth image is held out of training and measures the accuracy.
Needs `pip install "mtrkit[train]"`. The same command again goes on where an interrupted run stopped.
"""

import argparse
import copy

import torch

import mtrkit
from mtrkit.dyvm import DyVMObjective, DyVMTraining
from mtrkit.finetune import Recipe, retrain
from mtrkit.measure import open_images, predict, preprocess_for, score

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("data", nargs="?", default="bundled", help="folder of images (default: the bundled ones)")
parser.add_argument("--out", default="runs/dyvm", help="folder of the run (default: runs/dyvm)")
parser.add_argument("--keep", type=float, default=0.7, help="share of the patches each stage keeps (default: 0.7)")
parser.add_argument("--block-target", type=float, default=0.9, help="share of the scans that run (default: 0.9)")
parser.add_argument("--epochs", type=float, default=0.2, help="passes over the images (default: 0.2)")
args = parser.parse_args()

NAME = "vim_micro_patch4_stride2_32"  # your model here
model = mtrkit.create_model(NAME, "pretrained")
images = open_images(args.data)
held_out = images.spread(max(1, len(images) // 10))

torch.manual_seed(0)  # the predictors and selectors begin at random, and a run that goes on begins with the same ones
objective = DyVMObjective(copy.deepcopy(model))  # the model as it was is the teacher
# With noise few steps leave the choices undecided (docs/finetune.md).
training = DyVMTraining(model, keep=args.keep, block_target=args.block_target, noise=0)
light = {"auto_augment": None, "color_jitter": 0.0, "erase": 0.0, "repeats": 1}
recipe = Recipe(args.epochs, batch_size=64, lr=8e-4, min_lr=1e-5, weight_decay=1e-8, clip_norm=1.0, **light)
retrain(training, images.without(held_out), args.out, recipe, objective=objective, held_out=held_out)

# What was trained is two files, and is used without any of the above.
trained = mtrkit.create_model(NAME, f"{args.out}/model.safetensors").eval()
mtrkit.apply_reduction(trained, "dyvm", checkpoint=f"{args.out}/dyvm.safetensors")
print(f"accuracy on {len(held_out)} held-out images:", end=" ")
print(score(predict(trained, held_out, preprocess_for(trained.pretrained_cfg)), held_out))
print(mtrkit.reduction_info(trained))
