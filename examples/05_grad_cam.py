"""Where does a model look, before and after its tokens were reduced? Grad-CAM by the package pytorch-grad-cam.

    pip install grad-cam
    python examples/05_grad_cam.py --out cam.png

One row per image: the image, the dense model's map, and that of the model with 30 % fewer FLOPs, whose tokens
`mtrkit.full_grid` puts back on the patches. A hook on a mixer sees a tensor (B, tokens, D) in both.
"""

import argparse

import numpy as np
import torch
from PIL import Image
from pytorch_grad_cam import GradCAM
from pytorch_grad_cam.utils.image import show_cam_on_image
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

import mtrkit
from mtrkit.data import bundled_images
from mtrkit.measure import preprocess_for

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--out", default="cam.png", help="picture to write (default: cam.png)")
parser.add_argument("--block", type=int, default=-3, help="block whose mixer is looked at (default: -3)")
parser.add_argument("--images", type=int, default=4, help="how many (default: 4)")
args = parser.parse_args()

model = mtrkit.create_model("vim_micro_patch4_stride2_32", "pretrained").eval()
pixels, labels, classes = bundled_images()
chosen = range(0, len(pixels), len(pixels) // args.images)
normalise = preprocess_for(model.pretrained_cfg).tensor
images = torch.stack([normalise(pixels[i]) for i in chosen])

with torch.inference_mode():
    targets = [ClassifierOutputTarget(answer) for answer in model(images).argmax(dim=1).tolist()]

mtrkit.apply_reduction(model, "runs", ratio=0.3)
layer = model.layers[args.block].mixer


def maps():
    """(B, H, W) from 0 to 1: how much each place speaks for the class that the dense model gives."""
    with (
        mtrkit.trace_reduction(model) as trace,
        GradCAM(model, [layer], reshape_transform=lambda tokens: mtrkit.full_grid(tokens, trace)) as cam,
    ):
        return cam(images, targets)


reduced = maps()
with mtrkit.reduction_disabled(model):
    dense = maps()

rows = []
for i, place in enumerate(chosen):
    picture = np.asarray(pixels[place], dtype=np.float32) / 255
    rows.append(
        np.hstack([pixels[place], *(show_cam_on_image(picture, cam[i], use_rgb=True) for cam in (dense, reduced))])
    )
    same = np.corrcoef(dense[i].ravel(), reduced[i].ravel())[0, 1]
    print(f"{classes[labels[place]]:12} correlation of the two maps {same:.2f}")
sheet = Image.fromarray(np.vstack(rows))
sheet.resize((6 * sheet.width, 6 * sheet.height), Image.Resampling.NEAREST).save(args.out)
print(f"{images.shape[0]} images, one row each (image, dense, reduced): {args.out}")
