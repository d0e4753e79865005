"""A stand-in of the NVlabs/MambaVision model: the same layout and attribute names, written from the paper's formulas.

Source: Hatamizadeh and Kautz, "MambaVision", arXiv:2407.08083.
"""

import torch
import torch.nn.functional as F
from torch import nn

from mtrkit.scan import selective_scan


class Mixer(nn.Module):
    """One causal scan of half of the channels, beside a convolution of the other half."""

    def __init__(self, dim, d_state=8):
        super().__init__()
        half, rank = dim // 2, -(-dim // 16)
        self.in_proj, self.out_proj = nn.Linear(dim, dim, bias=False), nn.Linear(dim, dim, bias=False)
        self.x_proj, self.dt_proj = nn.Linear(half, rank + 2 * d_state, bias=False), nn.Linear(rank, half)
        self.A_log = nn.Parameter(torch.arange(1.0, d_state + 1).log().repeat(half, 1))
        self.D = nn.Parameter(torch.ones(half))
        self.conv1d_x = nn.Conv1d(half, half, 3, padding="same", groups=half, bias=False)
        self.conv1d_z = nn.Conv1d(half, half, 3, padding="same", groups=half, bias=False)

    def forward(self, hidden_states):
        x, z = self.in_proj(hidden_states).transpose(1, 2).chunk(2, dim=1)
        x, z = F.silu(self.conv1d_x(x)), F.silu(self.conv1d_z(z))
        rank, state = self.dt_proj.in_features, self.A_log.shape[1]
        delta, b, c = self.x_proj(x.transpose(1, 2)).split((rank, state, state), dim=-1)
        delta = self.dt_proj(delta).transpose(1, 2)
        decay, bias = -self.A_log.exp(), self.dt_proj.bias
        y = selective_scan(x, delta, decay, b.transpose(1, 2), c.transpose(1, 2), self.D, None, bias, True)
        return self.out_proj(torch.cat([y, z], dim=1).transpose(1, 2))


class Attention(nn.Module):
    def __init__(self, dim, num_heads=2):
        super().__init__()
        self.num_heads, self.qkv, self.proj = num_heads, nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(self, x):
        batch, length, dim = x.shape
        q, k, v = self.qkv(x).reshape(batch, length, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, length, dim))


class Block(nn.Module):
    def __init__(self, dim, attends):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.mixer = Attention(dim) if attends else Mixer(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))
        self.gamma_1 = self.gamma_2 = 1

    def forward(self, x):
        x = x + self.gamma_1 * self.mixer(self.norm1(x))
        return x + self.gamma_2 * self.mlp(self.norm2(x))


class ConvBlock(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(dim, dim, 3, padding=1), nn.Conv2d(dim, dim, 3, padding=1)

    def forward(self, x):
        return x + self.conv2(F.gelu(self.conv1(x)))


class Level(nn.Module):
    """A stage: blocks on the map, or on its windows; then half of the resolution."""

    def __init__(self, dim, depth, window_size, conv, downsample):
        super().__init__()
        self.window_size, self.transformer_block = window_size, not conv
        blocks = [ConvBlock(dim) if conv else Block(dim, 2 * i >= depth) for i in range(depth)]
        self.blocks = nn.ModuleList(blocks)
        self.downsample = nn.Sequential(nn.Conv2d(dim, 2 * dim, 3, 2, 1, bias=False)) if downsample else None

    def forward(self, x):
        if self.transformer_block:
            x = self.on_windows(x)
        else:
            for block in self.blocks:
                x = block(x)
        return x if self.downsample is None else self.downsample(x)

    def on_windows(self, x):
        size, (batch, dim, height, width) = self.window_size, x.shape
        x = F.pad(x, (0, -width % size, 0, -height % size))
        rows, columns = x.shape[2] // size, x.shape[3] // size
        x = x.reshape(batch, dim, rows, size, columns, size).permute(0, 2, 4, 3, 5, 1).reshape(-1, size * size, dim)
        for block in self.blocks:
            x = block(x)
        x = x.reshape(batch, rows, columns, size, size, dim).permute(0, 5, 1, 3, 2, 4)
        return x.reshape(batch, dim, rows * size, columns * size)[:, :, :height, :width]


class PatchEmbed(nn.Module):
    def __init__(self, in_dim, dim):
        super().__init__()
        first, second = nn.Conv2d(3, in_dim, 3, 2, 1, bias=False), nn.Conv2d(in_dim, dim, 3, 2, 1, bias=False)
        self.conv_down = nn.Sequential(first, nn.ReLU(), second, nn.ReLU())

    def forward(self, x):
        return self.conv_down(x)


class MambaVision(nn.Module):
    """(B, 3, H, W) to (B, classes)."""

    def __init__(self, dim=8, in_dim=4, depths=(1, 1, 6, 2), window_size=(8, 8, 8, 4), num_classes=10):
        super().__init__()
        self.pretrained_cfg = {"input_size": (3, 128, 128)}
        self.patch_embed = PatchEmbed(in_dim, dim)
        self.levels = nn.ModuleList(
            Level(dim * 2**i, depth, window_size[i], conv=i < 2, downsample=i < 3) for i, depth in enumerate(depths)
        )
        self.norm, self.avgpool = nn.BatchNorm2d(8 * dim), nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(8 * dim, num_classes)

    def forward(self, x):
        x = self.patch_embed(x)
        for level in self.levels:
            x = level(x)
        return self.head(self.avgpool(self.norm(x)).flatten(1))
