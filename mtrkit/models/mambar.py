"""Mamba-Reg (Mamba®): the Vim stack with registers spread through the sequence, all of them read by the head.

Source: Wang et al., "Mamba-R: Vision Mamba ALSO Needs Registers", arXiv:2405.14858.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from mtrkit.errors import CheckpointError, InputError, MtrkitError, OptionError
from mtrkit.models.fitting import Fit
from mtrkit.models.layers import norm_layer
from mtrkit.models.vim import VisionMamba
from mtrkit.ops import spread_places

_REGISTERS = "pos_embed_cls"


class MambaReg(VisionMamba):
    """Mamba-Reg for images (B, C, H, W); ``global_pool="token"`` reads the registers.

    Args:
        num_registers: n, tokens that stand behind ⌊M / (n + 1)⌋ patches each, of M.
        reduce: By how much each register is narrowed before the head sees all of them side by side; 1 for not at all.
        **options: As of :class:`VisionMamba`, without a class token.

    Raises:
        OptionError: A value out of range, or too few patches for so many registers.
    """

    def __init__(self, num_registers: int = 12, reduce: int = 1, **options: Any) -> None:
        width = options.get("embed_dim", 192)
        if num_registers < 1 or reduce < 1 or width % reduce:
            raise OptionError(
                f"num_registers={num_registers} must be 1 or more, and reduce={reduce} a divisor of the width {width}"
            )
        place = options.get("class_token", "none")
        if place != "none":
            raise OptionError(f"class_token={place!r}: a Mamba-Reg has registers in its place; leave class_token out")
        self.num_registers, self.reduce = num_registers, reduce
        super().__init__(**({"class_token": "none"} | options))
        self._check_places(self.patch_embed.num_patches, OptionError)
        self.cls_token = nn.Parameter(torch.zeros(1, num_registers, width))
        self.pos_embed_cls = nn.Parameter(torch.zeros(1, num_registers, width))
        for table in (self.cls_token, self.pos_embed_cls):
            nn.init.trunc_normal_(table, std=0.02)
        if reduce > 1:
            self.neck = nn.Linear(width, width // reduce, bias=False)
            self.norm_neck = norm_layer(num_registers * width // reduce, self.rms_norm)

    @property
    def places(self) -> tuple[int, ...]:
        """Where the registers stand in the sequence."""
        return self.special_positions(self.patch_embed.num_patches + self.num_registers)

    def special_positions(self, num_tokens: int) -> tuple[int, ...]:
        """Indices of the registers in a sequence of L = ``num_tokens``, at any size."""
        return spread_places(self.num_registers, num_tokens - self.num_registers)

    @property
    def head_hidden_size(self) -> int:
        """All registers side by side, each narrowed."""
        return self.num_registers * self.embed_dim // self.reduce if self.global_pool == "token" else self.embed_dim

    def set_input_size(self, img_size: Any) -> None:
        """Take images of another height and width from now on; patch positions are interpolated."""
        self._check_places(math.prod(self.patch_embed.grid_of(*self.patch_embed.check_img_size(img_size))), OptionError)
        super().set_input_size(img_size)

    def adapt_state_dict(self, state: dict[str, Tensor], fit: Fit | None = None) -> dict[str, Tensor]:
        """Interpolate patch positions made for another grid; the registers have none to interpolate.

        Raises:
            CheckpointError: The weights have no registers.
        """
        if _REGISTERS not in state:
            raise CheckpointError("the weights have no registers; load them into a model without")
        rest = super().adapt_state_dict({name: value for name, value in state.items() if name != _REGISTERS}, fit)
        return rest | {_REGISTERS: state[_REGISTERS]}

    def _embed(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, M + n, D): a register behind each group of patches."""
        patches = self.patch_embed(x) + self._positions(x)
        if self.patch_embed.dynamic_img_size:
            self._check_places(patches.shape[1], InputError)
        registers = (self.cls_token + self.pos_embed_cls).expand(x.shape[0], -1, -1)
        count = self.num_registers
        group = self.special_positions(patches.shape[1] + count)[0]
        groups = patches[:, : count * group].unflatten(1, (count, group))
        spread = torch.cat([groups, registers[:, :, None]], dim=2).flatten(1, 2)
        return self.pos_drop(torch.cat([spread, patches[:, count * group :]], dim=1))

    def _apart(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """(B, M + n, D) to the patches (B, M, D) and the registers (B, n, D)."""
        group, count = self.special_positions(tokens.shape[1])[0], self.num_registers
        spread = tokens[:, : count * (group + 1)].unflatten(1, (count, group + 1))
        return torch.cat([spread[:, :, :-1].flatten(1, 2), tokens[:, count * (group + 1) :]], dim=1), spread[:, :, -1]

    def _pool(self, tokens: Tensor) -> Tensor:
        patches, registers = self._apart(tokens)
        if self.global_pool == "token":
            return self.norm_neck(self.neck(registers).flatten(1)) if self.reduce > 1 else registers.flatten(1)
        return patches.mean(dim=1) if self.global_pool == "avg" else tokens

    def _check_places(self, num_patches: int, error: type[MtrkitError]) -> None:
        if num_patches <= self.num_registers:
            raise error(
                f"{self.num_registers} registers stand between more patches than {num_patches}; take larger "
                "images or fewer registers"
            )
