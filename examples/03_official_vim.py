"""Patch the model of the official hustvl/Vim repository inside existing inference code.

Your code builds and loads the model as it does today; one line is added. Nothing of mtrkit has to be known to the
repository, and its checkpoint, its parameters and their names stay as they are.

    cd Vim/vim                                       # a clone of https://github.com/hustvl/Vim that can be imported
    python path/to/03_official_vim.py \\
        models_mamba:vim_tiny_patch16_224_bimambav2_final_pool_mean_abs_pos_embed_with_midclstok_div2 \\
        --checkpoint vim_t_midclstok_76p1acc.pth --ratio 0.3

The first argument says where the function or class is that builds the model: module:name.
"""

import argparse
import importlib
import sys

import torch

import mtrkit
from mtrkit.models import load_state_dict

OFFICIAL = "models_mamba:vim_tiny_patch16_224_bimambav2_final_pool_mean_abs_pos_embed_with_midclstok_div2"


def find_builder(path):
    """Import ``module:name``, or say what is missing."""
    module, _, name = path.partition(":")
    sys.path.insert(0, "")  # the repository's models_mamba.py lies in its folder vim/, which is not a package
    try:
        return getattr(importlib.import_module(module), name)
    except Exception as error:  # the repository needs its own fork of mamba-ssm, whose import can fail in many ways
        sys.exit(
            f"{path} cannot be imported here ({type(error).__name__}: {error}).\n"
            "Run this inside the folder vim/ of a clone of hustvl/Vim, in the environment that its README describes.\n"
            "Without that repository the same checkpoint runs in mtrkit's own Vim, on any machine:\n"
            '    mtrkit.create_model("vim_tiny_patch16_224", "vim_t_midclstok_76p1acc.pth")'
        )


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("builder", nargs="?", default=OFFICIAL, help="module:name of what builds the model")
parser.add_argument("--checkpoint", help="official .pth file (default: random weights)")
parser.add_argument("--ratio", type=float, default=0.3, help="share of the FLOPs to remove (default: 0.3)")
args = parser.parse_args()

# --- your existing code -----------------------------------------------------------------------------------------
device = "cuda" if torch.cuda.is_available() else "cpu"
model = find_builder(args.builder)()
if args.checkpoint:
    model.load_state_dict(load_state_dict(args.checkpoint))
model = model.to(device).eval()

# --- the one line that is new -----------------------------------------------------------------------------------
mtrkit.apply_reduction(model, method="mtr", ratio=args.ratio)

# --- your existing code -----------------------------------------------------------------------------------------
size = mtrkit.reduction_info(model).input_size
with torch.inference_mode():
    logits = model(torch.randn(2, *size, device=device))

print(mtrkit.reduction_info(model))
print(f"logits: {tuple(logits.shape)}")
