"""Re-train a reduced model for a few minutes, as R-MeeTo does, and see what comes back.

    python examples/04_get_the_accuracy_back.py                       # a few steps on bundled images, to see it run
    python examples/04_get_the_accuracy_back.py cifar10/train --epochs 1

The folder has one folder of images per class. Every tenth image is held out of training and measures the accuracy.
Needs `pip install "mtrkit[train]"`. The same command again goes on where an interrupted run stopped.
"""

import argparse

import mtrkit
from mtrkit.finetune import Recipe, retrain
from mtrkit.measure import open_images, predict, preprocess_for, score

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("data", nargs="?", default="bundled", help="folder of images (default: the bundled ones)")
parser.add_argument("--out", default="runs/back", help="folder of the run (default: runs/back)")
parser.add_argument("--ratio", type=float, default=0.5, help="share of the FLOPs to remove (default: 0.5)")
parser.add_argument("--epochs", type=float, default=0.2, help="passes over the images (default: 0.2)")
args = parser.parse_args()

model = mtrkit.create_model("vim_micro_patch4_stride2_32", "pretrained")  # your model here
images = open_images(args.data)
held_out = images.spread(max(1, len(images) // 10))
preprocess = preprocess_for(model.pretrained_cfg)

dense = score(predict(model, held_out, preprocess), held_out)
mtrkit.apply_reduction(model, "mtr", ratio=args.ratio)
reduced = score(predict(model, held_out, preprocess), held_out)

# Small images and a short run: a higher rate than R-MeeTo's, and little augmentation.
light = {"mixup": 0.0, "cutmix": 0.0, "auto_augment": None, "color_jitter": 0.0, "erase": 0.0, "repeats": 1}
recipe = Recipe(args.epochs, batch_size=64, lr=2e-4, min_lr=1e-5, clip_norm=1.0, crop_scale=0.6, **light)
result = retrain(model, images.without(held_out), args.out, recipe, held_out=held_out)

print(f"{len(held_out)} held-out images, ratio {args.ratio}")
print(f"dense                   {dense}")
print(f"reduced, as it is       {reduced}")
print(f"reduced and re-trained  {result.accuracy}   ({result.steps} steps, {result.seconds / 60:.1f} minutes)")
print(f"weights: {result.weights}")
