"""One line on, one line off: reduce the tokens of a pretrained model, look at what happened, and undo it.

python examples/01_apply_and_remove.py
"""

import torch

import mtrkit
from mtrkit.data import bundled_images
from mtrkit.measure import preprocess_for

# A pretrained Vision Mamba and eight real images: both come with the package.
model = mtrkit.create_model("vim_micro_patch4_stride2_32", "pretrained")
pixels, labels, classes = bundled_images()
normalise = preprocess_for(model.pretrained_cfg).tensor
images = torch.stack([normalise(image) for image in pixels[::125]])
truth = [classes[label] for label in labels[::125]]


def answers():
    """Names of the predicted classes, and the logits they are from."""
    with torch.inference_mode():
        logits = model(images)
    return [classes[index] for index in logits.argmax(dim=1).tolist()], logits


dense, before = answers()

mtrkit.apply_reduction(model, method="mtr", ratio=0.3)  # one line on
print(mtrkit.reduction_info(model), "\n")
reduced, _ = answers()

with mtrkit.reduction_disabled(model):  # off for a moment, for a teacher or a comparison
    assert torch.equal(answers()[1], before)

mtrkit.apply_reduction(model, method="mtr", ratio=0.4)  # applying again replaces
mtrkit.remove_reduction(model)  # one line off
assert torch.equal(answers()[1], before)

print(f"{'truth':12}{'dense':12}{'30 % fewer FLOPs':12}")
for row in zip(truth, dense, reduced, strict=True):
    print("".join(f"{name:12}" for name in row))
print("\nAfter remove_reduction the logits are the same as before, bit for bit.")
