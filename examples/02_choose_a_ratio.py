"""Choose a ratio for your model: accuracy against FLOPs on labelled images, and the largest ratio you can afford.

    python examples/02_choose_a_ratio.py                              # the bundled model on bundled images
    python examples/02_choose_a_ratio.py path/to/labelled_images --loss 0.05

The folder has one folder of images per class. Choose on images that you do not report accuracy on.
"""

import argparse

import mtrkit
from mtrkit.measure import open_images, predict, preprocess_for, score

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("data", nargs="?", default="bundled", help="folder of images (default: the bundled ones)")
parser.add_argument("--loss", type=float, default=0.05, help="accuracy that may be lost (default: 0.05)")
parser.add_argument("--limit", type=int, default=400, help="images to use (default: 400)")
args = parser.parse_args()

model = mtrkit.create_model("vim_micro_patch4_stride2_32", "pretrained")  # your model here
images = open_images(args.data).spread(args.limit)
preprocess = preprocess_for(model.pretrained_cfg)

dense = score(predict(model, images, preprocess), images)
print(f"{len(images)} images\nratio   GFLOPs  top-1 (95 % interval)")
print(f"dense   {mtrkit.count_flops(model).gflops:.4f}  {dense}")

chosen = 0.0
for ratio in (0.05, 0.1, 0.15, 0.2, 0.3):  # a sweep is a loop: applying again replaces
    mtrkit.apply_reduction(model, ratio=ratio)
    accuracy = score(predict(model, images, preprocess), images)
    print(f"{ratio:<6}  {mtrkit.count_flops(model).gflops:.4f}  {accuracy}")
    if accuracy.share < dense.share - args.loss:
        break
    chosen = ratio

mtrkit.apply_reduction(model, ratio=chosen)
print(f"\nchosen: ratio={chosen}, the largest before more than {100 * args.loss:g} points of accuracy are lost")
