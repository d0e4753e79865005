"""Stand-ins for forks of hustvl/Vim, by the attributes they publish: those that are reduced run, the others only look.

Vim4Path, of AtlasAnalyticsLab/Vim4Path, embeds a class token twice. Famba-V, R-MeeTo and DyVM reduce by themselves.
"""

import torch
from torch import nn

from tests.standins import hustvl_vim, official


class EarlyVim(hustvl_vim.VisionMamba):
    """Vim as it was first published: the class token in front, directions summed, and no switch for either."""

    def __init__(self, **options):
        super().__init__(**options)
        for name in ("use_double_cls_token", "use_middle_cls_token", "flip_img_sequences_ratio", "if_bidirectional"):
            delattr(self, name)
        for block in self.layers:
            official.sum_as(block.mixer, official.SummingMamba)

    def _insert(self, x, random_position):
        del random_position
        return torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], dim=1), 0


class Vim4Path(hustvl_vim.VisionMamba):
    """A class token before the patches, with positions; then the one that is read, where Vim has it, without."""

    def __init__(self, **options):
        super().__init__(**options)
        self.if_abs_pos_embed = True
        for block in self.layers:
            official.sum_as(block.mixer, official.HalvingMamba)
            block.mixer.if_devide_out = True

    def prepare_tokens(self, x):
        """(B, 3, H, W) to (B, 1 + M, D)."""
        cls = self.cls_token.expand(x.shape[0], -1, -1)
        return self.pos_drop(torch.cat([cls, self.patch_embed(x)], dim=1) + self.pos_embed)

    def get_intermediate_layers(self, x, n_last_block):
        """The normalised outputs of the last blocks' mixers."""
        return self.forward_features(x, return_intermediate_output=True)[-n_last_block:]

    def forward_features(
        self,
        x,
        inference_params=None,
        if_random_cls_token_position=False,
        if_random_token_rank=False,
        return_intermediate_output=False,
    ):
        """(B, 3, H, W) to (B, D), or the output of every block."""
        assert not if_random_token_rank
        hidden_states, place = self._insert(self.prepare_tokens(x), if_random_cls_token_position)
        residual, seen = None, []
        for layer in self.layers:
            hidden_states, residual = layer(hidden_states, residual, inference_params=inference_params)
            seen.append(self.norm_f(hidden_states))
        if return_intermediate_output:
            return seen
        return self.norm_f(residual + self.drop_path(hidden_states)).to(hidden_states.dtype)[:, place]

    def forward(self, x, inference_params=None, if_random_cls_token_position=False, if_random_token_rank=False):
        """(B, 3, H, W) to (B, classes)."""
        return self.head(self.forward_features(x, inference_params, if_random_cls_token_position, if_random_token_rank))


class FambaV(hustvl_vim.VisionMamba):
    """Its head reads the first token, although the class token stands in the middle."""

    def __init__(self, fusion_strategy="lower", **options):
        super().__init__(**options)
        self.fusion_strategy, self.fusion_layer, self.fusion_token, self.bi_merge = fusion_strategy, 3, 7, False

    def _insert(self, x, random_position):
        return super()._insert(x, random_position)[0], 0


def r_meeto():
    """Blocks that merge, and return more than two values."""
    model = hustvl_vim.VisionMamba()
    for index, block in enumerate(model.layers):
        block.merge, block.if_merge, block.metric = nn.Module(), index % 2 == 0, "X"
    return model


def dyvm():
    """Predictors between the blocks, which return three values."""
    model = hustvl_vim.VisionMamba()
    model.pruning_loc, model.token_ratio = [2, 4], [0.7, 0.49]
    model.score_predictors = nn.ModuleList([nn.Linear(32, 2), nn.Linear(32, 2)])
    return model
