"""Stand-ins for the `VisionMamba` of OpenGVLab/VideoMamba and of wangf3014/Mamba-Reg, as their users have them.

Their mixers and blocks are copies of Vim's with another switch, so these are made of those in
``tests/standins/hustvl_vim.py``: same form, same traps, our words.
"""

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from tests.standins import hustvl_vim


def _blocks(depth, dim, halved, switch, kind=hustvl_vim.Block):
    """Vim's blocks under another switch; the halving has no attribute of its own here."""
    blocks = nn.ModuleList(kind(dim, hustvl_vim.RMSNorm, True, 0.0) for _ in range(depth))
    for block in blocks:
        sum_as(block.mixer, HalvingMamba if halved else SummingMamba)
        del block.mixer.bimamba_type
        setattr(block.mixer, switch, True)
    return blocks


def sum_as(mixer, kind):
    """Make a mixer of Vim one that sums its directions in one way, with no attribute that says so."""
    mixer.__class__ = kind
    del mixer.if_divide_out


class CheckpointedBlock(hustvl_vim.Block):
    """VideoMamba's block, which may compute its mixer again in the backward pass."""

    def forward(self, hidden_states, residual=None, inference_params=None, use_checkpoint=False):
        """As Vim's, but for the last argument."""
        if not use_checkpoint:
            return super().forward(hidden_states, residual, inference_params)
        hidden_states, residual = self.add_and_norm(hidden_states, residual)
        return checkpoint(self.mixer, hidden_states, inference_params, use_reentrant=True), residual


class SummingMamba(hustvl_vim.MambaLayers):
    """VideoMamba's mixer: the plain sum of the directions, and an argument that nothing uses."""

    def forward(self, hidden_states, inference_params=None, T=1):
        """Both directions; on the slow path, silently, only the forward one."""
        del T
        return _run(self, hidden_states, inference_params, halved=False)


class HalvingMamba(hustvl_vim.MambaLayers):
    """Mamba-Reg's mixer: the sum is always halved."""

    def forward(self, hidden_states, inference_params=None):
        """Both directions; on the slow path, silently, only the forward one."""
        return _run(self, hidden_states, inference_params, halved=True)


def _run(mixer, hidden_states, inference_params, halved):
    xz = mixer.in_proj(hidden_states).transpose(1, 2)
    scan = hustvl_vim.fused_no_out_proj
    out = scan(xz, mixer.conv1d, mixer.x_proj, mixer.dt_proj, mixer.A_log, mixer.D)
    if mixer.use_fast_path and inference_params is None:
        back = scan(xz.flip(-1), mixer.conv1d_b, mixer.x_proj_b, mixer.dt_proj_b, mixer.A_b_log, mixer.D_b)
        out = out + back.flip(-1)
        out = out / 2 if halved else out
    return mixer.out_proj(out.transpose(1, 2))


def _through(model, hidden_states, num_checkpointed=0):
    residual = None
    for index, layer in enumerate(model.layers):
        again = {"use_checkpoint": True} if index < num_checkpointed else {}
        hidden_states, residual = layer(hidden_states, residual, inference_params=None, **again)
    return model.norm_f(residual + model.drop_path(hidden_states)).to(hidden_states.dtype)


class VideoMamba(nn.Module):
    """The image model, or with ``num_frames`` the video model."""

    def __init__(
        self,
        img_size=32,
        patch_size=4,
        depth=6,
        embed_dim=32,
        num_classes=10,
        num_frames=None,
        use_checkpoint=False,
        checkpoint_num=0,
    ):
        super().__init__()
        self.use_checkpoint, self.checkpoint_num = use_checkpoint, checkpoint_num
        self.d_model = self.num_features = self.embed_dim = embed_dim
        self.patch_embed = hustvl_vim.PatchEmbed(img_size, patch_size, patch_size, embed_dim)
        if num_frames is not None:
            kernel = (1, patch_size, patch_size)
            self.patch_embed.proj = nn.Conv3d(3, embed_dim, kernel, kernel)
            self.patch_embed.tubelet_size = 1
            self.temporal_pos_embedding = nn.Parameter(torch.randn(1, num_frames, embed_dim))
        self.cls_token = nn.Parameter(0.02 * torch.randn(1, 1, embed_dim))
        self.pos_embed = nn.Parameter(0.02 * torch.randn(1, self.patch_embed.num_patches + 1, embed_dim))
        self.pos_drop, self.drop_path = nn.Dropout(0.0), nn.Identity()
        self.layers = _blocks(depth, embed_dim, halved=False, switch="bimamba", kind=CheckpointedBlock)
        self.norm_f, self.head = hustvl_vim.RMSNorm(embed_dim), nn.Linear(embed_dim, num_classes)

    def forward_features(self, x, inference_params=None):
        """Images or clips to (B, D): the token at index 0."""
        del inference_params
        cls = self.cls_token.expand(x.shape[0], -1, -1) + self.pos_embed[:, :1]
        patches = self.patch_embed.proj(x).flatten(-2).movedim(1, -1)  # (B, M, D) or (B, T, M, D)
        patches = patches + self.pos_embed[:, 1:].unsqueeze(1) if x.dim() == 5 else patches + self.pos_embed[:, 1:]
        if x.dim() == 5:
            patches = (patches + self.temporal_pos_embedding[:, :, None]).flatten(1, 2)
        tokens = self.pos_drop(torch.cat([cls, patches], dim=1))
        return _through(self, tokens, self.checkpoint_num if self.use_checkpoint else 0)[:, 0]

    def forward(self, x, inference_params=None):
        """To (B, classes)."""
        return self.head(self.forward_features(x, inference_params))


class MambaReg(nn.Module):
    """Registers between groups of patches, all of them read by the head."""

    def __init__(
        self, img_size=32, patch_size=4, depth=6, embed_dim=32, num_classes=10, num_cls_tokens=3, cls_reduce=1
    ):
        super().__init__()
        self.d_model = self.num_features = self.embed_dim = embed_dim
        self.num_cls_tokens, self.cls_reduce = num_cls_tokens, cls_reduce
        self.patch_embed = hustvl_vim.PatchEmbed(img_size, patch_size, patch_size, embed_dim)
        patches = self.patch_embed.num_patches
        self.cls_token = nn.Parameter(0.02 * torch.randn(1, num_cls_tokens, embed_dim))
        self.pos_embed_cls = nn.Parameter(0.02 * torch.randn(1, num_cls_tokens, embed_dim))
        self.pos_embed = nn.Parameter(0.02 * torch.randn(1, patches, embed_dim))
        group = patches // (num_cls_tokens + 1)
        self.cls_positions = torch.tensor([group + k * (group + 1) for k in range(num_cls_tokens)])
        order = torch.full((patches + num_cls_tokens,), -1)
        order[self.cls_positions] = torch.arange(num_cls_tokens) + patches
        order[order < 0] = torch.arange(patches)
        self.token_idx = order  # a plain tensor, as in the original: neither buffer nor parameter
        self.pos_drop, self.drop_path = nn.Dropout(0.0), nn.Identity()
        self.layers = _blocks(depth, embed_dim, halved=True, switch="biscan")
        self.norm_f = hustvl_vim.RMSNorm(embed_dim)
        if cls_reduce > 1:
            self.neck = nn.Linear(embed_dim, embed_dim // cls_reduce, bias=False)
            self.norm_neck = hustvl_vim.RMSNorm(num_cls_tokens * embed_dim // cls_reduce)
        self.head = nn.Linear(num_cls_tokens * embed_dim // cls_reduce, num_classes)

    def forward_features(self, x, inference_params=None):
        """Images to the registers, flattened."""
        del inference_params
        patches = self.patch_embed(x) + self.pos_embed
        registers = self.cls_token.expand(x.shape[0], -1, -1) + self.pos_embed_cls
        tokens = torch.cat([patches, registers], dim=1)[:, self.token_idx]
        found = _through(self, self.pos_drop(tokens))[:, self.cls_positions]
        if self.cls_reduce > 1:
            return self.norm_neck(self.neck(found).flatten(1))
        return found.flatten(1)

    def forward(self, x, return_features=False, inference_params=None):
        """To (B, classes)."""
        x = self.forward_features(x, inference_params)
        return x if return_features else self.head(x)
