"""Stand-ins for AuM, FastVim's Vim, PointMamba and Caduceus, by the names and shapes that they publish, in our words.

Their mixers are those of Vim and of language Mamba, whose stand-ins loop over tokens and share nothing with mtrkit.
"""

import torch
import torch.nn.functional as F
from torch import nn

from tests.standins import hustvl_vim, language, official


class FlexiPatchEmbed(nn.Module):
    """Patches of another size take the weights resampled."""

    def __init__(self, patch, dim):
        super().__init__()
        self.patch_size = self.strides = (patch, patch)
        self.proj = nn.Conv2d(1, dim, patch, patch)

    def forward(self, x, patch_size):
        """(B, 1, bins, frames) to (B, M, D)."""
        size = self.patch_size if patch_size is None else patch_size
        weight = F.interpolate(self.proj.weight, size=size)
        return F.conv2d(x, weight, self.proj.bias, stride=size).flatten(2).transpose(1, 2)


class FlexiPosEmbed(nn.Module):
    """One vector per place, the class tokens' first; other numbers of patches take them resampled."""

    def __init__(self, places, dim):
        super().__init__()
        self.pos_embed = nn.Parameter(0.02 * torch.randn(1, places, dim))

    def forward(self, x):
        """Add to (B, L, D)."""
        return x + F.interpolate(self.pos_embed.transpose(1, 2), size=x.shape[1]).transpose(1, 2)


class AudioMamba(hustvl_vim.VisionMamba):
    """AuM of kaistmm/Audio-Mamba-AuM: Vim on spectrograms (B, frames, bins), the class token perhaps at the end."""

    def __init__(self, spectrogram_size=(16, 32), use_end_cls_token=False, **options):
        super().__init__(depth=4, **options)
        self.spectrogram_size, self.use_end_cls_token = spectrogram_size, use_end_cls_token
        self.transpose_token_sequence = False
        self.patch_embed = FlexiPatchEmbed(4, self.embed_dim)
        del self.pos_embed  # a table there, a module here
        self.pos_embed = FlexiPosEmbed(spectrogram_size[0] * spectrogram_size[1] // 16 + 1, self.embed_dim)

    def _insert(self, x, random_position):
        if not self.use_end_cls_token:
            return super()._insert(x, random_position)
        return torch.cat([x, self.cls_token.expand(x.shape[0], -1, -1)], dim=1), x.shape[1]

    def forward(
        self,
        x,
        return_features=False,
        inference_params=None,
        if_random_cls_token_position=False,
        if_random_token_rank=False,
        patch_size=None,
        strides=None,
    ):
        """(B, frames, bins) to (B, classes)."""
        moves = (if_random_cls_token_position, if_random_token_rank)
        x = self.forward_features(x, inference_params, *moves, patch_size=patch_size, strides=strides)
        return x if return_features else self.head(x)

    def forward_features(
        self,
        x,
        inference_params=None,
        if_random_cls_token_position=False,
        if_random_token_rank=False,
        patch_size=None,
        strides=None,
    ):
        """(B, frames, bins) to (B, D)."""
        del inference_params, if_random_token_rank, strides
        patches = self.patch_embed(x[:, None].transpose(2, 3), patch_size)
        tokens, place = self._insert(patches, if_random_cls_token_position)
        return official._through(self, self.pos_drop(self.pos_embed(tokens)))[:, place]


class NormedMamba(hustvl_vim.MambaLayers):
    """The mixer of FastVim's Vim: the mean of the directions is normalised, then gated."""

    def forward(self, hidden_states, inference_params=None):
        """Both directions; the gate is taken out of the loops by dividing through it."""
        del inference_params
        x, z = self.in_proj(hidden_states).transpose(1, 2).chunk(2, dim=1)
        ones = torch.cat([x, torch.full_like(x, 20.0)], dim=1)  # a gate of SiLU(20), which is 20
        ahead = hustvl_vim.fused_no_out_proj(ones, self.conv1d, self.x_proj, self.dt_proj, self.A_log, self.D)
        layers = (self.conv1d_b, self.x_proj_b, self.dt_proj_b, self.A_b_log, self.D_b)
        total = ahead + hustvl_vim.fused_no_out_proj(ones.flip(-1), *layers).flip(-1)
        return self.out_proj(self.layernorm((total / 40).transpose(1, 2)) * F.silu(z.transpose(1, 2)))


class FastVimVim(hustvl_vim.VisionMamba):
    """``VisionMamba`` of ``models/vim.py`` in insitro/FastVim."""

    def __init__(self, use_norm_after_ssm=True, **options):
        super().__init__(depth=4, **options)
        self.token_size, self.num_patches = self.patch_embed.grid_size, self.patch_embed.num_patches
        for name in ("if_rope", "if_bidirectional", "flip_img_sequences_ratio", "use_double_cls_token"):
            delattr(self, name)
        for block in self.layers:
            mixer = block.mixer
            del mixer.bimamba_type, mixer.if_divide_out
            mixer.use_norm_after_ssm = use_norm_after_ssm
            mixer.__class__ = NormedMamba if use_norm_after_ssm else official.HalvingMamba
            if use_norm_after_ssm:
                mixer.layernorm = nn.LayerNorm(mixer.d_inner)
                nn.init.normal_(mixer.layernorm.bias)

    def forward_features(self, x, inference_params=None, out_indices=None):
        """(B, 3, H, W) to (B, D), or the outputs of some blocks."""
        del inference_params
        patches = self.patch_embed(x)
        place = patches.shape[1] // 2 if self.use_middle_cls_token else 0
        cls = self.cls_token.expand(x.shape[0], -1, -1)
        tokens = torch.cat([patches[:, :place], cls, patches[:, place:]], dim=1) + self.pos_embed
        assert out_indices is None
        return official._through(self, tokens)[:, place]

    def forward(self, x):
        """(B, 3, H, W) to (B, classes)."""
        return self.head(self.forward_features(x))


class PointGroups(nn.Module):
    """Every few points a centre, with the points next to it."""

    def forward(self, points):
        """(B, N, 3) to groups (B, 16, 4, 3) around centres (B, 16, 3)."""
        centres = points[:, :: points.shape[1] // 16][:, :16]
        near = torch.cdist(centres, points).topk(4, largest=False).indices
        groups = points.gather(1, near.flatten(1)[..., None].expand(-1, -1, 3)).unflatten(1, (16, 4))
        return groups - centres[:, :, None], centres


class PointEncoder(nn.Module):
    """Two pairs of pointwise convolutions, each followed by the maximum of a group."""

    def __init__(self, dim):
        super().__init__()
        self.first_conv = nn.Sequential(nn.Conv1d(3, 8, 1), nn.BatchNorm1d(8), nn.ReLU(), nn.Conv1d(8, 16, 1))
        self.second_conv = nn.Sequential(nn.Conv1d(32, 16, 1), nn.BatchNorm1d(16), nn.ReLU(), nn.Conv1d(16, dim, 1))

    def forward(self, groups):
        """(B, G, S, 3) to (B, G, D)."""
        found = self.first_conv(groups.flatten(0, 1).transpose(1, 2))
        whole = torch.cat([found.amax(2, keepdim=True).expand_as(found), found], dim=1)
        return self.second_conv(whole).amax(2).unflatten(0, groups.shape[:2])


class PointBlock(nn.Module):
    """Adds the mixer's output itself."""

    def __init__(self, dim, index):
        super().__init__()
        self.mixer, self.norm, self.drop_path = language.Mamba(dim, layer_idx=index), nn.LayerNorm(dim), nn.Identity()

    def forward(self, hidden_states, residual=None, inference_params=None):
        """(B, L, D) to (B, L, D)."""
        del residual
        mixed = self.mixer(self.norm(hidden_states), inference_params=inference_params)
        return hidden_states + self.drop_path(mixed)


class PointStack(nn.Module):
    """Its ``MixerModel``."""

    def __init__(self, dim, depth):
        super().__init__()
        self.layers = nn.ModuleList(PointBlock(dim, index) for index in range(depth))
        self.norm_f, self.drop_out = nn.LayerNorm(dim), nn.Identity()

    def forward(self, input_ids, pos, inference_params=None):
        """Tokens and positions (B, L, D) to (B, L, D)."""
        hidden_states = input_ids + pos
        for layer in self.layers:
            hidden_states = self.drop_out(layer(hidden_states, inference_params=inference_params))
        return self.norm_f(hidden_states)


class PointMambaScan(nn.Module):
    """PointMamba of LMD0311/PointMamba: all groups in one order, then in another."""

    def __init__(self, dim=32, depth=4, use_cls_token=False):
        super().__init__()
        self.trans_dim, self.depth, self.num_group, self.group_size = dim, depth, 16, 4
        self.group_divider, self.encoder = PointGroups(), PointEncoder(dim)
        self.use_cls_token = use_cls_token
        if use_cls_token:
            self.cls_token, self.cls_pos = (nn.Parameter(torch.randn(1, 1, dim)) for _ in range(2))
        self.pos_embed = nn.Sequential(nn.Linear(3, 8), nn.GELU(), nn.Linear(8, dim))
        self.blocks = PointStack(dim, depth)
        self.cls_head_finetune = nn.Sequential(nn.Linear(dim * (1 + use_cls_token), 8), nn.ReLU(), nn.Linear(8, 5))
        for number in (1, 2):
            self.register_parameter(f"OrderScale_gamma_{number}", nn.Parameter(1 + 0.1 * torch.randn(dim)))
            self.register_parameter(f"OrderScale_beta_{number}", nn.Parameter(0.1 * torch.randn(dim)))

    def forward(self, pts):
        """(B, N, 3) to (B, classes)."""
        groups, centres = self.group_divider(pts)
        found, places = self.encoder(groups), self.pos_embed(centres)
        tokens, positions = [], []
        for axis in (0, 1):  # two orders that are no curves
            order = centres[..., axis].argsort(dim=1)[..., None].expand_as(found)
            gamma, beta = (getattr(self, f"OrderScale_{name}_{axis + 1}") for name in ("gamma", "beta"))
            tokens.append(found.gather(1, order) * gamma + beta)
            positions.append(places.gather(1, order))
        if self.use_cls_token:
            tokens.append(self.cls_pos.expand(len(pts), -1, -1))
            positions.append(self.cls_token.expand(len(pts), -1, -1))
        x = self.blocks(torch.cat(tokens, dim=1), torch.cat(positions, dim=1))
        pooled = [x[:, -1], x.mean(1)] if self.use_cls_token else [x.mean(1)]
        return self.cls_head_finetune(torch.cat(pooled, dim=1))


class BiMambaWrapper(nn.Module):
    """Two mixers, perhaps with common outer projections."""

    def __init__(self, dim, tie=True, strategy="add"):
        super().__init__()
        self.bidirectional, self.bidirectional_strategy = True, strategy
        self.mamba_fwd, self.mamba_rev = language.Mamba(dim), language.Mamba(dim)
        if tie:
            self.mamba_rev.in_proj.weight = self.mamba_fwd.in_proj.weight
            self.mamba_rev.out_proj.weight = self.mamba_fwd.out_proj.weight

    def forward(self, hidden_states, inference_params=None):
        """(B, L, D) to (B, L, D)."""
        back = self.mamba_rev(hidden_states.flip(1), inference_params=inference_params).flip(1)
        return self.mamba_fwd(hidden_states, inference_params=inference_params) + back


class RCPSWrapper(nn.Module):
    """Runs on the first half of the channels, and on the second half turned around in tokens and channels."""

    def __init__(self, submodule):
        super().__init__()
        self.submodule = submodule

    def forward(self, x, **kwargs):
        """(B, L, 2D) to (B, L, 2D)."""
        strand, other = x.chunk(2, dim=-1)
        turned = self.submodule(other.flip(-2, -1), **kwargs).flip(-2, -1)
        return torch.cat([self.submodule(strand, **kwargs), turned], dim=-1)


class CaduceusMixerModel(nn.Module):
    """The stack of kuleshov-group/caduceus; with ``rcps`` of two strands, whose norms are one here."""

    def __init__(self, dim=32, depth=4, rcps=False, **mixer):
        super().__init__()
        self.fused_add_norm, self.rcps, self.residual_in_fp32 = True, rcps, True
        self.embeddings = nn.Module()
        self.embeddings.word_embeddings = nn.Embedding(12, dim)
        self.layers = nn.ModuleList(language.Block(dim, index, True) for index in range(depth))
        for block in self.layers:
            block.mixer = BiMambaWrapper(dim // 2 if rcps else dim, **mixer)
            block.mixer = RCPSWrapper(block.mixer) if rcps else block.mixer
        self.norm_f = hustvl_vim.RMSNorm(dim)

    def forward(self, input_ids, inputs_embeds=None, output_hidden_states=False):
        """Ids (B, L) to features (B, L, D), and those of every block if asked for."""
        hidden = self.embeddings.word_embeddings(input_ids) if inputs_embeds is None else inputs_embeds
        residual, seen = None, []
        for layer in self.layers:
            seen += [hidden] if output_hidden_states else []
            hidden, residual = layer(hidden, residual, inference_params=None)
        return self.norm_f(hidden + residual).to(hidden.dtype), seen
