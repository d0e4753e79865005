"""Export a reduced model, and run the file without mtrkit.

    python examples/07_export.py                       # .onnx and .pt2 in a folder of its own
    python examples/07_export.py --out exported        # and keep them

Needs the extra `export`: pip install "mtrkit[export]"
"""

import argparse
import tempfile
from pathlib import Path

import onnxruntime
import torch

import mtrkit
from mtrkit.measure import batches, open_images, preprocess_for

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--out", type=Path, help="folder to write to (default: one that is deleted at the end)")
args = parser.parse_args()
folder = args.out or Path(tempfile.mkdtemp())
folder.mkdir(exist_ok=True)

model = mtrkit.create_model("vim_nano_patch4_stride2_32", "pretrained").eval()  # your model here
mtrkit.apply_reduction(model, "mtr", ratio=0.3)
images = next(batches(open_images("bundled").spread(8), preprocess_for(model.pretrained_cfg), 8))

for name in ("reduced.onnx", "reduced.pt2"):
    done = mtrkit.export(model, folder / name, images[:2])  # the number of images stays free
    print(f"{done.path.name}: at most {done.error:.1e} from the model's own output")

# From here on nothing needs mtrkit.
session = onnxruntime.InferenceSession(str(folder / "reduced.onnx"))
by_onnx = torch.from_numpy(session.run(None, {"input": images.numpy()})[0])
program = torch.export.load(folder / "reduced.pt2").module()
with torch.no_grad():
    by_torch = program(images)
print("classes by onnxruntime: ", by_onnx.argmax(1).tolist())
print("classes by torch.export:", by_torch.argmax(1).tolist())
print("the file says:", {entry: session.get_modelmeta().custom_metadata_map[entry] for entry in ("method", "ratio")})
