"""The small parts of a Vision Mamba beside its mixer: norm, stochastic depth, patch embedding."""

import warnings
from typing import overload

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtrkit.dynamo import refuse_proxy
from mtrkit.errors import InputError, OptionError, SizeWarning
from mtrkit.models.positions import grid_of
from mtrkit.scan import fused
from mtrkit.scan.fastpath import are_plain, can_add_and_norm, known_forward, plain_tensors

Size = int | tuple[int, int]


def pair(size: Size) -> tuple[int, int]:
    """A height and a width from one number for both, or from two."""
    return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))


def init_weights(layer: nn.Linear | nn.Conv2d | nn.Conv3d, std: float) -> None:
    """Truncated normal weights and no bias to begin with."""
    nn.init.trunc_normal_(layer.weight, std=std)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


@known_forward
class RMSNorm(nn.Module):
    """Root-mean-square norm over the last axis, with a weight and no bias.

    Computed in the dtype of the input, whatever the dtype of the weight: the residual stream stays float32
    in a model of half precision.

    Args:
        dim: Length of the last axis.
        eps: Added to the mean square.
    """

    def __init__(self, dim: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    @overload
    def forward(self, x: Tensor) -> Tensor: ...
    @overload
    def forward(self, x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]: ...
    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        """(..., D) to (..., D); with a residual of that shape the norm of ``residual + x`` like x, and that sum."""
        if residual is None:
            return F.rms_norm(x, self.weight.shape, self.weight.to(x.dtype), self.eps)
        if can_add_and_norm(x, residual, self.weight):
            return fused.add_rms_norm(x, residual, self.weight, self.eps)
        residual = residual + x
        return self.forward(residual).to(x.dtype), residual

    def extra_repr(self) -> str:
        """What printing the model shows."""
        return f"{self.weight.shape[0]}, eps={self.eps}"


class LayerNorm(nn.LayerNorm):
    """Layer norm over the last axis, in the dtype of the input, as :class:`RMSNorm`."""

    def __init__(self, dim: int, eps: float = 1e-5) -> None:
        super().__init__(dim, eps)

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) to (..., D)."""
        return F.layer_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.bias.to(x.dtype), self.eps)


def norm_layer(dim: int, rms_norm: bool = True) -> nn.Module:
    """The norm of the released models, or the other one that the official code has."""
    return RMSNorm(dim) if rms_norm else LayerNorm(dim)


@known_forward
class DropPath(nn.Module):
    """Stochastic depth: in training, drop a sample's whole branch and scale the branches that stay.

    Args:
        rate: Probability of being dropped, in [0, 1).

    Source: Huang et al., "Deep Networks with Stochastic Depth", arXiv:1603.09382.
    """

    def __init__(self, rate: float = 0.0) -> None:
        super().__init__()
        if not 0 <= rate < 1:
            raise OptionError(f"drop_path_rate={rate}; give a probability in [0, 1)")
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """(B, ...) to the same shape; the identity in eval mode."""
        if not self.training or self.rate == 0:
            return x
        kept = x.new_empty(x.shape[0], *(1 for _ in x.shape[1:])).bernoulli_(1 - self.rate)
        return x * (kept / (1 - self.rate))

    def extra_repr(self) -> str:
        """What printing the model shows."""
        return f"rate={self.rate:.3g}"


class PatchEmbed(nn.Module):
    """Patches of an image as tokens, row by row; patches overlap if the stride is below their size.

    Args:
        img_size: Height and width that the images must have.
        patch_size: Height and width of a patch.
        stride: Step from patch to patch. Default: the patch size.
        in_chans: Channels of the images.
        embed_dim: Width D of the tokens.
        dynamic_img_size: Whether images of every size are taken.
    """

    def __init__(
        self,
        img_size: Size = 224,
        patch_size: Size = 16,
        stride: Size | None = None,
        in_chans: int = 3,
        embed_dim: int = 192,
        dynamic_img_size: bool = False,
    ) -> None:
        super().__init__()
        self.dynamic_img_size = dynamic_img_size
        self.in_chans, self.patch_size = in_chans, pair(patch_size)
        self.stride = pair(patch_size if stride is None else stride)
        self.proj: nn.Conv2d | nn.Conv3d = nn.Conv2d(in_chans, embed_dim, self.patch_size, self.stride)
        self.set_input_size(img_size)

    def set_input_size(self, img_size: Size) -> None:
        """Take images of another height and width from now on; ``grid_size`` and ``num_patches`` follow."""
        height, width = self.check_img_size(img_size)
        self._say_what_is_cut(height, width)
        self.img_size = (height, width)
        self.grid_size = self.grid_of(height, width)

    def check_img_size(self, img_size: Size) -> tuple[int, int]:
        """Return height and width; raise :class:`OptionError` if the image is smaller than one patch."""
        height, width = pair(img_size)
        if height < self.patch_size[0] or width < self.patch_size[1]:
            raise OptionError(f"img_size={height}x{width} is smaller than one patch of {self.patch_size}")
        return height, width

    def grid_of(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of the patches of an image of this size."""
        return grid_of((height, width), self.patch_size, self.stride)

    def _say_what_is_cut(self, height: int, width: int) -> None:
        """Warn if the patches end before the image does."""
        below, right = (height - self.patch_size[0]) % self.stride[0], (width - self.patch_size[1]) % self.stride[1]
        if below or right:
            warnings.warn(
                SizeWarning(
                    f"images of {height}x{width} pixels are seen up to {height - below}x{width - right}: patches of "
                    f"{self.patch_size} at steps of {self.stride} leave {below} rows at the bottom and {right} columns "
                    "at the right out; resize or pad the images to see all of them"
                ),
                stacklevel=4,
            )

    @property
    def num_patches(self) -> int:
        """M, patches of one input."""
        return self.grid_size[0] * self.grid_size[1]

    @property
    def input_size(self) -> tuple[int, ...]:
        """Shape of one input."""
        return (self.in_chans, *self.img_size)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, M, D); images of another shape raise :class:`InputError`."""
        refuse_proxy(x)
        if tuple(x.shape[1:]) != self.input_size:
            self._check_size(tuple(x.shape))
        return self._project(x).flatten(2).transpose(1, 2)

    def _project(self, x: Tensor) -> Tensor:
        """The convolution. 16 bits on a CPU go through float32: without instructions torch is 20 times slower."""
        proj, dtype = self.proj, x.dtype
        if not (x.is_cpu and dtype in (torch.float16, torch.bfloat16) and are_plain((proj,))):
            return proj(x)
        if not plain_tensors((proj.weight, proj.bias)) or proj.weight.dtype is not dtype:
            return proj(x)
        bias = None if proj.bias is None else proj.bias.float()
        return proj._conv_forward(x.float(), proj.weight.float(), bias).to(dtype)

    def _check_size(self, shape: tuple[int, ...]) -> None:
        """Refuse inputs of another size than the built one, or say what of them is cut if every size is taken."""
        kernel = self.proj.kernel_size
        wide = len(shape) == len(kernel) + 2 and shape[1] == self.in_chans
        if not (self.dynamic_img_size and wide and all(a >= b for a, b in zip(shape[2:], kernel, strict=True))):
            raise InputError(
                f"got an input of shape {shape}, expected (B, {', '.join(map(str, self.input_size))}): "
                f"{self._other_model(len(shape)) or self._remedy()}"
            )
        if not torch.compiler.is_compiling():
            self._say_what_is_cut(*shape[-2:])

    def _other_model(self, dimensions: int) -> str:
        """Which model to take for inputs of another kind; empty if they are of this one."""
        if dimensions != 5:
            return ""
        return "for clips take a VideoMamba, such as mtrkit.create_model('videomamba_tiny_patch16_224_f8')"

    def _remedy(self) -> str:
        """What to do about an input of another size."""
        return (
            "resize it, call model.set_input_size((height, width)), or build the model for this size or, with "
            "dynamic_img_size=True, for all"
        )
