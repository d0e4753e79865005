"""Every numerical bound of the tests, per dtype, with its reason. Nothing in the environment relaxes them."""

import torch

# Scan and convolution against the float64 reference on the same (already rounded) inputs, as RMS of the error
# over RMS of the reference. float32: a dozen roundings of 6e-8 per step, partly cancelling, and an
# exponential good to 1e-7. bfloat16 and float16: one rounding of the result (2^-9 and 2^-12 at most), since
# all arithmetic is float32. float64: only the order of sums differs.
SCAN_VALUES = {torch.float32: 2e-6, torch.bfloat16: 3e-3, torch.float16: 4e-4, torch.float64: 1e-13}

# Gradients pass through twice as many roundings, and sums over tokens and channels of terms that cancel.
SCAN_GRADIENTS = {torch.float32: 1e-5, torch.bfloat16: 4e-3, torch.float16: 6e-4, torch.float64: 1e-12}

# 2^x and softplus of the compiled kernel, relative, over the whole range: three units in the last place.
EXPONENTIAL = 4e-7


def rms_error(value: torch.Tensor, reference: torch.Tensor) -> float:
    """RMS of the error over RMS of the reference; both empty or both zero count as equal."""
    difference = (value.cpu().double() - reference.cpu().double()).norm().item()
    return difference / max(reference.cpu().double().norm().item(), 1e-30)
