"""Which patches does the class token read? The hidden attention of a block's scans, dense and reduced.

    python examples/06_hidden_attention.py --out attention.png

A scan is linear in its input once Δ, B and C are known: y_t = Σ_s C_t · exp(A Σ_{s<k≤t} Δ_k) Δ_s B_s x_s. The factors
of x_s are what token t reads of token s, as attention does. Here t is the class token, both directions are taken
together, and a patch's number is the mean size of its factors over the channels. Hooks see Δ, B and C; in a reduced
model they are of fewer tokens, and `mtrkit.full_grid` puts the map back on the patches.

Source: Ali et al., "The Hidden Attention of Mamba Models", arXiv:2403.01590.
"""

import argparse

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

import mtrkit
from mtrkit.data import bundled_images
from mtrkit.measure import preprocess_for

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--out", default="attention.png", help="picture to write (default: attention.png)")
parser.add_argument("--block", type=int, default=-1, help="block that is looked at (default: -1, the last)")
parser.add_argument("--images", type=int, default=4, help="how many (default: 4)")
args = parser.parse_args()

model = mtrkit.create_model("vim_micro_patch4_stride2_32", "pretrained").eval()
pixels, labels, classes = bundled_images()
chosen = range(0, len(pixels), len(pixels) // args.images)
normalise = preprocess_for(model.pretrained_cfg).tensor
images = torch.stack([normalise(pixels[i]) for i in chosen])
mixer = model.layers[args.block].mixer


def seen_by_class_token(trace):
    """(B, L'): what the class token reads of every token in the block, in one pass over the images."""
    found = {}
    hooks = [
        getattr(mixer, f"x_proj{end}").register_forward_hook(
            lambda layer, given, out, end=end: found.update({end: out})
        )
        for end in ("", "_b")
    ]
    model(images)
    for hook in hooks:
        hook.remove()
    place = trace.slot_at(found[""].shape[1])[:, model.class_index].expand(
        len(images)
    )  # where each image has its class token now
    return sum(read(projected, end, place) for end, projected in found.items())


def read(projected, end, place):
    """One direction; ``projected`` (B, L', R + 2N) is what x_proj gives."""
    A = -torch.exp(getattr(mixer, f"A{end}_log"))
    states = A.shape[1]
    dt, B, C = projected.split([projected.shape[-1] - 2 * states, states, states], dim=-1)
    delta = F.softplus(getattr(mixer, f"dt_proj{end}")(dt))  # (B, L', E)
    passed = delta.cumsum(dim=1)  # Σ Δ up to each token, and from each token on for the backward direction
    passed = passed if end == "" else passed[:, -1:] - passed + delta
    image, token = torch.arange(len(place)), torch.arange(delta.shape[1])
    between = (passed[image, place][:, None] - passed).clamp(min=0)  # (B, L', E)
    factor = torch.exp(between[..., None] * A) * B[:, :, None] * C[image, place][:, None, None]  # (B, L', E, N)
    before = token <= place[:, None] if end == "" else token >= place[:, None]
    return (factor.sum(dim=-1) * delta).abs().mean(dim=-1) * before


def maps():
    """(B, rows, columns) from 0 to 1."""
    with torch.no_grad(), mtrkit.trace_reduction(model) as trace:
        attention = mtrkit.full_grid(seen_by_class_token(trace), trace)
    return attention / attention.amax(dim=(1, 2), keepdim=True)


mtrkit.apply_reduction(model, "runs", ratio=0.3)
reduced = maps()
with mtrkit.reduction_disabled(model):
    dense = maps()

size, rows = 224, []
for i, place in enumerate(chosen):
    picture = np.asarray(Image.fromarray(pixels[place]).resize((size, size), Image.Resampling.NEAREST))
    lit = []
    for attention in (dense[i], reduced[i]):
        light = Image.fromarray((255 * attention.numpy()).astype(np.uint8)).resize(
            (size, size), Image.Resampling.NEAREST
        )
        lit.append((picture * (0.15 + 0.85 * np.asarray(light)[..., None] / 255)).astype(np.uint8))
    rows.append(np.hstack([picture, *lit]))
    same = np.corrcoef(dense[i].flatten(), reduced[i].flatten())[0, 1]
    print(f"{classes[labels[place]]:12} correlation of the two maps {same:.2f}")
Image.fromarray(np.vstack(rows)).save(args.out)
print(f"{len(rows)} images, one row each (image, dense, reduced): {args.out}")
