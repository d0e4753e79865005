"""Vim: Vision Mamba, a plain stack of two-direction Mamba blocks on image patches.

Parameters have the names and shapes of the official release, so its state dicts load strictly.

Source: Zhu et al., "Vision Mamba: Efficient Visual Representation Learning with Bidirectional State Space
Model", arXiv:2401.09417.
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mtrkit.errors import CheckpointError, OptionError
from mtrkit.models.features import as_map, pick_blocks
from mtrkit.models.fitting import Fit, fit_weights
from mtrkit.models.layers import DropPath, PatchEmbed, RMSNorm, Size, init_weights, norm_layer
from mtrkit.models.loading import family_of, load_checkpoint
from mtrkit.models.mixer import MambaMixer
from mtrkit.models.positions import ClassToken, insert_at, resize_positions
from mtrkit.models.positions import class_index as index_of_class
from mtrkit.models.stretch import Stretches
from mtrkit.ops import check_stream, columns, columns_without, nothing_dropped, stream_tokens, take
from mtrkit.scan import BlockWeights, MixerWeights, fused, mixer_parts
from mtrkit.scan.fastpath import are_plain, can_mix, known_forward, no_tracing, plain_tensors
from mtrkit.types import MixerCall, ReducedStream

Pool = Literal["token", "avg", ""]


@known_forward
class Block(nn.Module):
    """Add, then norm, then mixer: the mixer's output is added to the residual by the next block."""

    def __init__(self, dim: int, drop_path: float = 0.0, rms_norm: bool = True, **mixer: Any) -> None:
        super().__init__()
        self.mixer = MambaMixer(dim, **mixer)
        self.norm = norm_layer(dim, rms_norm)
        self.drop_path = DropPath(drop_path)

    def forward(
        self, hidden_states: Tensor, residual: Tensor | None = None, call: MixerCall | None = None
    ) -> tuple[Tensor, Tensor]:
        """Add ``hidden_states`` (B, L, D) to ``residual`` and run the mixer on the sum; ``call`` is for the mixer.

        Returns:
            The mixer's output, and the sum in at least float32 without that output.
        """
        if residual is None:
            residual = hidden_states.to(torch.promote_types(hidden_states.dtype, torch.float32))
            normed = self.norm(residual)
        else:
            together = self._norm_and_mixer(hidden_states, residual, call)
            if together is not None:
                return together
            normed, residual = self._norm(self.drop_path(hidden_states), residual)
        normed = normed.to(hidden_states.dtype)
        out = self.mixer(normed) if call is None else self.mixer(normed, call)
        return out, residual

    def _norm(self, hidden_states: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        """The norm of the sum, and the sum; another class of norm takes the sum alone."""
        if isinstance(self.norm, RMSNorm):
            return self.norm(hidden_states, residual)
        residual = residual + hidden_states
        return self.norm(residual), residual

    def _norm_and_mixer(
        self, hidden_states: Tensor, residual: Tensor, call: MixerCall | None
    ) -> tuple[Tensor, Tensor] | None:
        """Norm and mixer as one call; ``None`` if something has to see what is between them."""
        if residual.dtype is not torch.float32 or not no_tracing(hidden_states):
            return None
        if call is not None and (call.gaps is not None or call.gating is not None):
            return None
        weights = self.weights()
        if weights is None or not can_mix(weights.mixer, hidden_states):
            return None
        if call is None:
            return fused.run_block(hidden_states, residual, weights)[:2]
        out, residual, call.signals = fused.run_block(hidden_states, residual, weights, call.reads, call.runs)
        return out, residual

    def weights(self) -> BlockWeights | None:
        """What decides what the block does, if nothing in it has hooks or does more; otherwise ``None``."""
        modules: Any = self._modules  # attributes of modules are slow to look up, which a small batch would notice
        norm, mixer = modules["norm"], modules["mixer"]
        drop_path = modules["drop_path"]
        if self.training or drop_path.training or type(norm) is not RMSNorm:
            return None
        weight = norm.weight
        if not are_plain((norm, mixer, drop_path)) or not plain_tensors((weight,)):
            return None
        parts = mixer_parts(mixer, halve=mixer.halve)
        return BlockWeights(weight, norm.eps, parts) if isinstance(parts, MixerWeights) else None


class VisionMamba(nn.Module):
    """Vim, with the methods of timm's models.

    Args:
        img_size: Height and width of the images; others raise until :meth:`set_input_size`.
        patch_size: Height and width of a patch.
        stride: Step between patches, smaller for overlapping ones. Default: the patch size.
        in_chans: Channels of the images.
        num_classes: Outputs of the head; 0 for none.
        global_pool: What the head sees: ``"token"`` the class token, ``"avg"`` the mean over the patches,
            ``""`` every token. Default: ``"token"`` where there is one, otherwise ``"avg"``.
        embed_dim: Width D of the tokens.
        depth: Number of blocks.
        d_state: State size N of the scan per channel.
        d_conv: Width of the mixer's convolution.
        expand: Inner width of the mixer as a multiple of D.
        class_token: Where the class token stands among the M patches: ``"middle"`` (index M // 2),
            ``"front"``, or ``"none"`` for no such token.
        halve: Whether the sum of the two scan directions is halved, as the released weights want it.
        rms_norm: Whether the norms are RMSNorm, as in the released models, or LayerNorm, as the official code has it
            under ``rms_norm=False``.
        drop_rate: Dropout after the position embedding.
        drop_path_rate: Stochastic depth. As in the official code the rate grows from 0 to this value over
            the stack, one block late: blocks 0 and 1 have none, the full rate is that of the last sum.
        embed_layer: Builds the patch embedding from img_size, patch_size, stride, in_chans and embed_dim, and takes
            ``dynamic_img_size`` by name.
        dynamic_img_size: Whether images of every size are taken, as in timm: the positions are interpolated in each
            pass, the parameters stay. Default: other sizes are refused.

    Raises:
        OptionError: A value out of range, or ``global_pool="token"`` without a class token.
    """

    global_pool: Pool
    num_registers = 0  # special tokens beside the class token

    def __init__(
        self,
        img_size: Size = 224,
        patch_size: Size = 16,
        stride: Size | None = None,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: Pool | None = None,
        embed_dim: int = 192,
        depth: int = 24,
        d_state: int = 16,
        d_conv: int = 4,
        expand: int = 2,
        class_token: ClassToken = "middle",
        halve: bool = True,
        rms_norm: bool = True,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        embed_layer: Callable[..., PatchEmbed] = PatchEmbed,
        dynamic_img_size: bool = False,
    ) -> None:
        super().__init__()
        _check_choice("class_token", class_token, get_args(ClassToken))
        self.num_features = self.embed_dim = embed_dim
        self.class_token: ClassToken = class_token
        self.rms_norm = rms_norm
        self.grad_checkpointing = False
        self.pretrained_cfg: dict[str, Any] = {}
        sizes = (img_size, patch_size, stride, in_chans, embed_dim)
        self.patch_embed = embed_layer(*sizes, dynamic_img_size=dynamic_img_size)
        self.num_class_tokens = 0 if class_token == "none" else 1
        if class_token != "none":
            self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        places = math.prod(self.patch_embed.grid_size) + self.num_class_tokens
        self.pos_embed = nn.Parameter(torch.zeros(1, places, embed_dim))
        self.pos_drop = nn.Dropout(drop_rate)
        options = {"d_state": d_state, "d_conv": d_conv, "expand": expand, "halve": halve, "rms_norm": rms_norm}
        self.layers = _stack(embed_dim, depth, drop_path_rate, **options)
        self._stretches = Stretches()
        step = self.patch_embed.stride[0]
        self.feature_info = [{"num_chs": embed_dim, "reduction": step, "module": f"layers.{i}"} for i in range(depth)]
        self.drop_path = DropPath(drop_path_rate)
        self.norm_f = norm_layer(embed_dim, rms_norm)
        self._init_weights()
        pool: Pool = "token" if self.num_class_tokens + self.num_registers else "avg"
        self.reset_classifier(num_classes, pool if global_pool is None else global_pool)

    @torch.no_grad()
    def _init_weights(self) -> None:
        """What the parts do not set themselves."""
        projection = self.patch_embed.proj
        init_weights(projection, std=projection.weight[0].numel() ** -0.5)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        if self.num_class_tokens:
            nn.init.trunc_normal_(self.cls_token, std=0.02)

    @property
    def in_chans(self) -> int:
        """Channels of the images."""
        return self.patch_embed.in_chans

    @property
    def default_cfg(self) -> dict[str, Any]:
        """``pretrained_cfg`` under the name that timm's older tools read."""
        return self.pretrained_cfg

    @default_cfg.setter
    def default_cfg(self, cfg: dict[str, Any]) -> None:
        self.pretrained_cfg = cfg

    @property
    def class_index(self) -> int | None:
        """Index of the class token in the sequence of an image of the built size; ``None`` without one."""
        return index_of_class(self.class_token, self.patch_embed.num_patches)

    def special_positions(self, num_tokens: int) -> tuple[int, ...]:
        """Indices, in order, of the tokens that are no patches in a sequence of L = ``num_tokens``, at any size."""
        index = index_of_class(self.class_token, num_tokens - 1)
        return () if index is None else (index,)

    def _embed(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the tokens (B, L, D), class token and positions included."""
        tokens = self.patch_embed(x)
        index = index_of_class(self.class_token, tokens.shape[1])
        if index is not None:
            tokens = insert_at(tokens, self.cls_token.expand(tokens.shape[0], -1, -1), index)
        return self.pos_drop(tokens + self._positions(x))

    def _positions(self, x: Tensor) -> Tensor:
        """The position table for images of the size of x (B, C, ..., H, W)."""
        if not self.patch_embed.dynamic_img_size:
            return self.pos_embed
        grid = self.patch_embed.grid_of(*x.shape[-2:])
        return resize_positions(self.pos_embed, self.patch_embed.grid_size, grid, self.class_token)

    def _map_shape(self, x: Tensor) -> tuple[int, ...]:
        """Rows and columns of the patches of x."""
        return self.patch_embed.grid_of(*x.shape[-2:])

    def _run(self, block: nn.Module, hidden: Tensor, residual: Any) -> tuple[Tensor, Any]:
        """One block; ``residual`` is passed on unseen, as a token reduction puts more than a tensor there."""
        if self.grad_checkpointing and torch.is_grad_enabled():
            return checkpoint(block, hidden, residual, use_reentrant=False)
        return block(hidden, residual)

    def _finish(self, hidden: Tensor, residual: Any, num_tokens: int) -> Tensor:
        """The last sum, normalised: (B, L, D) for the L tokens that entered the first block."""
        hidden, norm = self.drop_path(hidden), self.norm_f
        each_alone = type(norm) is RMSNorm and are_plain((norm,))  # and not something that looks at all tokens
        if isinstance(residual, ReducedStream) and nothing_dropped(residual.stages) and each_alone:
            check_stream(hidden, residual)
            # The few tokens that are left first, then where they stand for others.
            return take(norm(hidden, residual.residual)[0], residual.slot).to(hidden.dtype)
        return norm(stream_tokens(hidden, residual, num_tokens)).to(hidden.dtype)

    def forward_features(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) to all normalised tokens (B, L, D), the class token at :attr:`class_index`."""
        hidden = self._embed(x)
        num_tokens = hidden.shape[1]
        hidden, residual = self._stretches.run(self.layers, hidden, None, self._run)
        return self._finish(hidden, residual, num_tokens)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Pool the tokens of :meth:`forward_features` and classify.

        Args:
            x: (B, L, D).
            pre_logits: Whether to return the pooled features (B, D) instead of the logits.
        """
        x = self._pool(x)
        return x if pre_logits else self.head(x)

    def _pool(self, tokens: Tensor) -> Tensor:
        """What the head sees."""
        if self.global_pool == "token":
            return tokens[:, index_of_class(self.class_token, tokens.shape[1] - 1)]
        if self.global_pool == "avg":
            return self._apart(tokens)[0].mean(dim=1)
        return tokens

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) to logits (B, num_classes)."""
        return self.forward_head(self.forward_features(x))

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        return_prefix_tokens: bool = False,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: Literal["NCHW", "NLC"] = "NCHW",
        intermediates_only: bool = False,
    ) -> Any:
        """The patch features after chosen blocks, on the full grid even where the model is reduced.

        Args:
            x: Images (B, C, H, W).
            indices: The last so many blocks, or these blocks (negative from the end). Default: all.
            return_prefix_tokens: Whether each entry becomes ``(patches, class token (B, 1, D))``.
            norm: Whether the final norm is applied to each.
            stop_early: Whether to leave out the blocks after the last chosen one.
            output_fmt: ``"NCHW"``: (B, D, rows, columns); ``"NLC"``: (B, M, D).
            intermediates_only: Whether to return the list alone.

        Returns:
            ``(tokens, intermediates)``, ``tokens`` as from :meth:`forward_features`, or the list alone.

        Raises:
            OptionError: An index out of range or an unknown format.
        """
        _check_choice("output_fmt", output_fmt, ("NCHW", "NLC"))
        wanted = pick_blocks(indices, len(self.layers))
        hidden, residual = self._embed(x), None
        num_tokens, grid, found = hidden.shape[1], self._map_shape(x), []
        for i, block in enumerate(self.layers):
            hidden, residual = self._run(block, hidden, residual)
            if i in wanted:
                tokens = stream_tokens(hidden, residual)
                tokens = self.norm_f(tokens) if norm else tokens
                found.append(self._shaped(tokens, None if output_fmt == "NLC" else grid, return_prefix_tokens))
            if stop_early and i == max(wanted):
                break
        return found if intermediates_only else (self._finish(hidden, residual, num_tokens), found)

    def _apart(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """(B, L, D) to the patches (B, M, D) and the special tokens (B, S, D)."""
        index = index_of_class(self.class_token, tokens.shape[1] - 1)
        places = () if index is None else (index,)
        return columns_without(tokens, places), columns(tokens, places)

    def _shaped(self, tokens: Tensor, grid: tuple[int, ...] | None, with_class: bool) -> Any:
        """The patches, as a map of that grid if it is given, and the special tokens."""
        patches, special = self._apart(tokens)
        patches = patches if grid is None else as_map(patches, grid)
        return (patches, special) if with_class and special.shape[1] else patches

    def prune_intermediate_layers(
        self, indices: int | Sequence[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Remove what :meth:`forward_intermediates` does not need for ``indices``; return those resolved."""
        wanted = pick_blocks(indices, len(self.layers))
        self.layers, self._stretches = self.layers[: max(wanted) + 1], Stretches()
        if prune_norm:
            self.norm_f = nn.Identity()
        if prune_head:
            self.reset_classifier(0, "")
        return wanted

    def reset_classifier(self, num_classes: int, global_pool: Pool | None = None) -> None:
        """Put a new head in place, or none for 0 classes; ``global_pool`` stays unless it is given.

        Raises:
            OptionError: ``global_pool`` is not a way of pooling.
        """
        pool = self.global_pool if global_pool is None else global_pool
        _check_choice("global_pool", pool, get_args(Pool))
        if pool == "token" and not self.num_class_tokens + self.num_registers:
            raise OptionError('global_pool="token" needs a class token; choose "avg" or class_token="middle"')
        self.num_classes, self.global_pool = num_classes, pool
        like = self.pos_embed
        self.head: nn.Module = nn.Identity()
        if num_classes > 0:
            head = nn.Linear(self.head_hidden_size, num_classes, device=like.device, dtype=like.dtype)
            init_weights(head, std=0.02)
            self.head = head

    @property
    def head_hidden_size(self) -> int:
        """Channels that the head reads: those of ``forward_head(..., pre_logits=True)``."""
        return self.embed_dim

    def get_classifier(self) -> nn.Module:
        """The head."""
        return self.head

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each block in the backward pass instead of keeping its activations."""
        self.grad_checkpointing = enable

    def set_input_size(self, img_size: Size) -> None:
        """Take images of another height and width from now on; positions are interpolated.

        ``pos_embed`` becomes another parameter if its shape changes: make optimizers afterwards.
        """
        old, table = self.patch_embed.grid_size, self.pos_embed
        self.patch_embed.set_input_size(img_size)
        new = self.patch_embed.grid_size
        if new != old:
            resized = resize_positions(table.detach(), old, new, self.class_token)
            self.pos_embed = nn.Parameter(resized, requires_grad=table.requires_grad)

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that weight decay would harm: embeddings, decay rates and skips."""
        leaves = {"pos_embed", "pos_embed_cls", "cls_token", "A_log", "A_b_log", "D", "D_b"}
        return {name for name, _ in self.named_parameters() if name.rpartition(".")[2] in leaves}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Patterns by which timm groups parameters into layers, for layer-wise learning rates."""
        blocks = r"^layers\.(\d+)" if coarse else [(r"^layers\.(\d+)", None), (r"^norm_f", (99999,))]
        return {"stem": r"^cls_token|pos_embed|patch_embed", "blocks": blocks}

    def load_pretrained(self, path: str | Path, prefix: str = "") -> None:
        """Load published weights; timm calls this. The head stays random if the number of classes differs."""
        del prefix
        load_checkpoint(self, path, new_head=True)

    def adapt_state_dict(self, state: dict[str, Tensor], fit: Fit | None = None) -> dict[str, Tensor]:
        """Fit weights to this model, and refuse those of others; see docs/checkpoints.md.

        Args:
            state: By the names of this model's parameters.
            fit: How, with what the file says, and the list that takes the notes on what was done. Default: as for a
                training to begin with.

        Raises:
            CheckpointError: The weights are of a family that this class does not implement, or of another model.
        """
        family = family_of(state)
        if family is not None:
            raise CheckpointError(f"the weights are of {family}")
        return fit_weights(state, self, Fit(initial=True, new_head=True) if fit is None else fit)


def _stack(dim: int, depth: int, drop_path_rate: float, **options: Any) -> nn.ModuleList:
    """The blocks; each one's output starts small, so that the sum over the depth does not grow with it."""
    blocks = [Block(dim, drop_path_rate * max(i - 1, 0) / max(depth - 1, 1), **options) for i in range(depth)]
    for block in blocks:
        block.mixer.out_proj.weight.data.div_(depth**0.5)
    return nn.ModuleList(blocks)


def _check_choice(option: str, value: object, known: tuple[str, ...]) -> None:
    if value not in known:
        raise OptionError(f"{option}={value!r}; choose one of {', '.join(map(repr, known))}")
