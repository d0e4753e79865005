"""A stand-in for the `VisionMamba` of hustvl/Vim as its users have it: same form, same traps, our words.

The original needs a CUDA fork of mamba_ssm to be imported at all. This one has its attribute names,
signatures, state-dict keys and order of operations, and in the place of the CUDA kernels a loop over tokens
in float64 that shares nothing with mtrkit. Its slow path drops the backward direction, as the original's
does, so a patch that took it would be found out.
"""

import math
import random

import torch
import torch.nn.functional as F
from torch import nn


def loop_scan(u, delta, A, B, C, D):
    """y (B, E, L) of one direction, token by token in float64."""
    u, delta, A, B, C, D = (t.double() for t in (u, delta, A, B, C, D))
    state = torch.zeros(*u.shape[:2], A.shape[1], dtype=torch.float64)
    out = []
    for t in range(u.shape[2]):
        step = delta[:, :, t, None]
        state = torch.exp(step * A) * state + step * u[:, :, t, None] * B[:, None, :, t]
        out.append((state * C[:, None, :, t]).sum(-1) + D * u[:, :, t])
    return torch.stack(out, dim=-1)


def fused_no_out_proj(xz, conv, x_proj, dt_proj, A_log, D):
    """What the fork's fused function computes: (B, 2E, L) to the gated scan output (B, E, L)."""
    x, z = xz.chunk(2, dim=1)
    length, rank, n = x.shape[2], dt_proj.in_features, A_log.shape[1]
    u = F.silu(F.conv1d(F.pad(x, (conv.kernel_size[0] - 1, 0)), conv.weight, conv.bias, groups=x.shape[1]))
    dt, B, C = (x_proj.weight @ u).split([rank, n, n], dim=1)
    delta = F.softplus(dt_proj.weight @ dt + dt_proj.bias[:, None])
    assert delta.shape[2] == length
    y = loop_scan(u, delta, -torch.exp(A_log.float()), B, C, D.float())
    return (y * F.silu(z.double())).to(xz.dtype)


class MambaLayers(nn.Module):
    """What the two-direction mixers of all official repositories hold."""

    def __init__(self, d_model, d_state=16, d_conv=4, expand=2, if_divide_out=True, init_layer_scale=None):
        super().__init__()
        self.d_model, self.d_state, self.d_conv = d_model, d_state, d_conv
        self.d_inner, self.dt_rank = expand * d_model, math.ceil(d_model / 16)
        self.use_fast_path, self.bimamba_type, self.if_divide_out = True, "v2", if_divide_out
        self.in_proj = nn.Linear(d_model, 2 * self.d_inner, bias=False)
        for suffix in ("", "_b"):
            conv = nn.Conv1d(self.d_inner, self.d_inner, d_conv, groups=self.d_inner, padding=d_conv - 1)
            self.add_module(f"conv1d{suffix}", conv)
            self.add_module(f"x_proj{suffix}", nn.Linear(self.d_inner, self.dt_rank + 2 * d_state, bias=False))
            self.add_module(f"dt_proj{suffix}", nn.Linear(self.dt_rank, self.d_inner))
            a_log = torch.log(torch.arange(1.0, d_state + 1)).repeat(self.d_inner, 1)
            self.register_parameter(f"A{suffix}_log", nn.Parameter(a_log))
            self.register_parameter(f"D{suffix}", nn.Parameter(torch.ones(self.d_inner)))
        self.out_proj = nn.Linear(self.d_inner, d_model, bias=False)
        if init_layer_scale is not None:
            self.gamma = nn.Parameter(init_layer_scale * torch.ones(d_model))


class Mamba(MambaLayers):
    """The two-direction mixer, v2."""

    def forward(self, hidden_states, inference_params=None):
        """Both directions on the fast path; on the slow one, silently, only the forward direction."""
        xz = self.in_proj(hidden_states).transpose(1, 2)
        out = fused_no_out_proj(xz, self.conv1d, self.x_proj, self.dt_proj, self.A_log, self.D)
        if self.use_fast_path and inference_params is None:
            back = fused_no_out_proj(xz.flip(-1), self.conv1d_b, self.x_proj_b, self.dt_proj_b, self.A_b_log, self.D_b)
            out = out + back.flip(-1)
            out = out / 2 if self.if_divide_out else out
        out = self.out_proj(out.transpose(1, 2))
        return out * self.gamma if hasattr(self, "gamma") else out


class RMSNorm(nn.Module):
    """Root-mean-square norm with the attributes of the kernel's module."""

    def __init__(self, dim, eps=1e-5):
        super().__init__()
        self.eps, self.weight = eps, nn.Parameter(torch.ones(dim))
        self.register_parameter("bias", None)

    def forward(self, x):
        """Normalise the last axis."""
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps) * self.weight


def fused_add_norm(x, norm, residual):
    """Normalise x + residual (float32) and return it with the sum."""
    total = x.float() if residual is None else x.float() + residual
    return norm(total).to(x.dtype), total


class Block(nn.Module):
    """Add, norm, mixer."""

    def __init__(self, dim, norm, fused, drop_path, **mixer):
        super().__init__()
        self.residual_in_fp32, self.fused_add_norm = True, fused
        self.mixer, self.norm = Mamba(dim, **mixer), norm(dim, eps=1e-5)
        self.drop_path = nn.Dropout(drop_path) if drop_path else nn.Identity()

    def forward(self, hidden_states, residual=None, inference_params=None):
        """Return the mixer's output and the running sum without it."""
        hidden_states, residual = self.add_and_norm(hidden_states, residual)
        return self.mixer(hidden_states, inference_params=inference_params), residual

    def add_and_norm(self, hidden_states, residual):
        """What the mixer sees, and the sum."""
        if self.fused_add_norm:
            dropped = hidden_states if residual is None else self.drop_path(hidden_states)
            return fused_add_norm(dropped, self.norm, residual)
        residual = hidden_states if residual is None else residual + self.drop_path(hidden_states)
        return self.norm(residual.to(self.norm.weight.dtype)), residual.float()


class PatchEmbed(nn.Module):
    """Non-overlapping patches of a square image."""

    def __init__(self, img_size, patch_size, stride, dim):
        super().__init__()
        side = (img_size - patch_size) // stride + 1
        self.img_size, self.patch_size = (img_size, img_size), (patch_size, patch_size)
        self.grid_size, self.num_patches = (side, side), side * side
        self.proj = nn.Conv2d(3, dim, patch_size, stride)
        self.norm = nn.Identity()

    def forward(self, x):
        """(B, 3, H, W) to (B, M, D)."""
        assert x.shape[-2:] == self.img_size
        return self.proj(x).flatten(2).transpose(1, 2)


class VisionMamba(nn.Module):
    """The model, with the switches that matter to a patch."""

    def __init__(
        self,
        img_size=32,
        patch_size=4,
        stride=4,
        depth=6,
        embed_dim=32,
        num_classes=10,
        rms_norm=True,
        fused_add_norm=True,
        drop_path_rate=0.0,
        final_pool_type="none",
        if_rope=False,
        if_bidirectional=False,
        flip_img_sequences_ratio=-1.0,
        if_cls_token=True,
        use_double_cls_token=False,
        use_middle_cls_token=True,
        if_divide_out=True,
        init_layer_scale=None,
    ):
        super().__init__()
        self.if_rope, self.if_bidirectional, self.if_cls_token = if_rope, if_bidirectional, if_cls_token
        self.flip_img_sequences_ratio, self.final_pool_type = flip_img_sequences_ratio, final_pool_type
        self.use_double_cls_token, self.use_middle_cls_token = use_double_cls_token, use_middle_cls_token
        self.fused_add_norm, self.residual_in_fp32 = fused_add_norm, True
        self.num_tokens = (2 if use_double_cls_token else 1) if if_cls_token else 0
        self.d_model = self.num_features = self.embed_dim = embed_dim
        self.patch_embed = PatchEmbed(img_size, patch_size, stride, embed_dim)
        for name in (
            ("cls_token_head", "cls_token_tail")[: self.num_tokens]
            if use_double_cls_token
            else (("cls_token",) if if_cls_token else ())
        ):
            self.register_parameter(name, nn.Parameter(0.02 * torch.randn(1, 1, embed_dim)))
        places = self.patch_embed.num_patches + self.num_tokens
        self.pos_embed = nn.Parameter(0.02 * torch.randn(1, places, embed_dim))
        self.pos_drop = nn.Dropout(0.0)
        self.head = nn.Linear(embed_dim, num_classes)
        self.drop_path = nn.Dropout(drop_path_rate) if drop_path_rate else nn.Identity()
        norm = RMSNorm if rms_norm else nn.LayerNorm
        rates = [0.0, *torch.linspace(0, drop_path_rate, depth).tolist()]
        mixer = {"if_divide_out": if_divide_out, "init_layer_scale": init_layer_scale}
        self.layers = nn.ModuleList(Block(embed_dim, norm, fused_add_norm, rates[i], **mixer) for i in range(depth))
        self.norm_f = norm(embed_dim, eps=1e-5)

    def _insert(self, x, random_position):
        """Put the class tokens in and say where they are."""
        batch, patches, _ = x.shape
        if not self.if_cls_token:
            return x, None
        if self.use_double_cls_token:
            ends = (self.cls_token_head.expand(batch, -1, -1), x, self.cls_token_tail.expand(batch, -1, -1))
            return torch.cat(ends, dim=1), [0, patches + 1]
        place = patches // 2 if self.use_middle_cls_token else 0
        if random_position and not self.use_middle_cls_token:
            place = random.randint(0, patches)
        cls = self.cls_token.expand(batch, -1, -1)
        return torch.cat([x[:, :place], cls, x[:, place:]], dim=1), place

    def forward_features(
        self, x, inference_params=None, if_random_cls_token_position=False, if_random_token_rank=False
    ):
        """(B, 3, H, W) to (B, D), or (B, L, D) for the pooling types that return all."""
        assert not if_random_token_rank
        x, place = self._insert(self.patch_embed(x), if_random_cls_token_position)
        hidden_states, residual = self.pos_drop(x + self.pos_embed), None
        for layer in self.layers:
            hidden_states, residual = layer(hidden_states, residual, inference_params=inference_params)
        hidden_states = self.norm_f(residual + self.drop_path(hidden_states)).to(hidden_states.dtype)
        if self.if_cls_token:
            picked = hidden_states[:, place]
            return picked.mean(dim=1) if isinstance(place, list) else picked
        if self.final_pool_type == "mean":
            return hidden_states.mean(dim=1)
        return hidden_states[:, -1] if self.final_pool_type == "none" else hidden_states

    def forward(
        self,
        x,
        return_features=False,
        inference_params=None,
        if_random_cls_token_position=False,
        if_random_token_rank=False,
    ):
        """(B, 3, H, W) to (B, classes)."""
        x = self.forward_features(x, inference_params, if_random_cls_token_position, if_random_token_rank)
        if return_features:
            return x
        x = self.head(x)
        return x.max(dim=1)[0] if self.final_pool_type == "max" else x
