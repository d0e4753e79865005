"""Segment a picture with Vim as the backbone, its tokens reduced: every feature map stays on the full grid.

    python examples/segment.py                       # a mosaic of the bundled images
    python examples/segment.py --image street.jpg --ratio 0.4

The setting is that of Vim and DyVM on ADE20K: 512x512 pixels, no class token, the features after blocks 5, 11, 17 and
23, an UperNet head. The weights of backbone and head are random unless you load yours, so the classes mean nothing
here; the shapes and the time are what yours will be.
"""

import argparse
import statistics
import time

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

import mtrkit
from mtrkit.data import bundled_images
from mtrkit.measure import read_image

BLOCKS = (5, 11, 17, 23)
STRIDES = (4, 8, 16, 32)  # of the pyramid that UperNet expects; a Vim has one stride, 16, throughout


def conv(channels, width, kernel):
    """Convolution, normalisation and activation, at the same resolution."""
    layer = nn.Conv2d(channels, width, kernel, padding=kernel // 2, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(width), nn.ReLU())


def resize(features, size):
    """Bilinear, to another height and width."""
    return F.interpolate(features, size=size, mode="bilinear", align_corners=False)


class PyramidPooling(nn.Module):
    """What the whole picture, its quarters and smaller parts hold, beside what each place holds."""

    def __init__(self, channels, width, bins=(1, 2, 3, 6)):
        super().__init__()
        self.pooled = nn.ModuleList(nn.Sequential(nn.AdaptiveAvgPool2d(n), conv(channels, width, 1)) for n in bins)
        self.fuse = conv(channels + len(bins) * width, width, 3)

    def forward(self, x):
        parts = [resize(pooled(x), x.shape[-2:]) for pooled in self.pooled]
        return self.fuse(torch.cat([x, *parts], dim=1))


class UperHead(nn.Module):
    """UperNet's head (Xiao et al., arXiv:1807.10221) on any list of maps, finest first: (B, classes, rows, columns)."""

    def __init__(self, channels, num_classes, width=64):
        super().__init__()
        self.pyramid = PyramidPooling(channels[-1], width)
        self.lateral = nn.ModuleList(conv(c, width, 1) for c in channels[:-1])
        self.smooth = nn.ModuleList(conv(width, width, 3) for _ in channels[:-1])
        self.fuse = conv(len(channels) * width, width, 3)
        self.classify = nn.Conv2d(width, num_classes, 1)

    def forward(self, maps):
        levels = [self.pyramid(maps[-1])]
        for x, lateral in zip(maps[-2::-1], self.lateral[::-1], strict=True):  # from coarse to fine
            levels.insert(0, lateral(x) + resize(levels[0], x.shape[-2:]))
        smooth = [layer(x) for layer, x in zip(self.smooth, levels[:-1], strict=True)]
        finest = maps[0].shape[-2:]
        return self.classify(self.fuse(torch.cat([resize(x, finest) for x in (*smooth, levels[-1])], dim=1)))


class Segmentor(nn.Module):
    """A backbone with a head, and between them the maps of one stride brought to those of a pyramid."""

    def __init__(self, backbone, num_classes):
        super().__init__()
        info = backbone.feature_info
        self.backbone, self.head = backbone, UperHead(info.channels(), num_classes)
        self.scales = [own / wanted for own, wanted in zip(info.reduction(), STRIDES, strict=True)]

    def forward(self, images):
        pyramid = []
        for x, scale in zip(self.backbone(images), self.scales, strict=True):
            pyramid.append(resize(x, [max(1, round(side * scale)) for side in x.shape[-2:]]))
        return resize(self.head(pyramid), images.shape[-2:])


def load_image(path, size):
    """(1, 3, size, size), normalised: the picture at ``path``, or a mosaic of bundled photographs."""
    if path:
        pixels = np.asarray(read_image(path).resize((size, size), Image.Resampling.BICUBIC))
    else:
        side = size // 32
        tiles = bundled_images()[0][: side * side].reshape(side, side, 32, 32, 3)
        pixels = tiles.transpose(0, 2, 1, 3, 4).reshape(size, size, 3)
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    return torch.tensor((pixels / 255 - mean) / std, dtype=torch.float32).permute(2, 0, 1)[None]


@torch.inference_mode()
def seconds(part, image, rounds):
    """Median time of a forward pass: with the reduction, and without."""
    reduced, dense = [], []
    for _ in range(rounds):  # in turns, as the speed of a machine drifts
        begin = time.perf_counter()
        part(image)
        reduced.append(time.perf_counter() - begin)
        with mtrkit.reduction_disabled(part):
            begin = time.perf_counter()
            part(image)
            dense.append(time.perf_counter() - begin)
    return statistics.median(reduced), statistics.median(dense)


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--image", help="a picture of your own (default: a mosaic of the bundled images)")
parser.add_argument("--model", default="vim_tiny_patch16_224", help="name of the backbone (default: %(default)s)")
parser.add_argument("--size", type=int, default=512, help="pixels a side, a multiple of 32 (default: 512)")
parser.add_argument("--ratio", type=float, default=0.3, help="share of the backbone's FLOPs to remove (default: 0.3)")
parser.add_argument("--rounds", type=int, default=5, help="passes to time (default: 5)")
args = parser.parse_args()

torch.manual_seed(0)
backbone = mtrkit.create_model(
    args.model, features_only=True, out_indices=BLOCKS, img_size=args.size, class_token="none"
)
model = Segmentor(backbone, num_classes=150).eval()
image = load_image(args.image, args.size)

mtrkit.apply_reduction(backbone, method="mtr", ratio=args.ratio)  # or the segmentor: the model inside is found
print(mtrkit.reduction_info(backbone))

with torch.inference_mode():
    print("\nmaps:     ", *(tuple(features.shape) for features in backbone(image)))
    print("prediction:", tuple(model(image).argmax(dim=1).shape), "classes (of random weights)\n")

print(f"{'seconds':16}{'dense':>8}{'reduced':>9}{'speed-up':>10}")
for name, part in (("backbone", backbone), ("with the head", model)):
    reduced, dense = seconds(part, image, args.rounds)
    print(f"{name:16}{dense:8.3f}{reduced:9.3f}{dense / reduced:10.2f}")
