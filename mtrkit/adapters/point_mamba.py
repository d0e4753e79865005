"""PointMamba on point clouds: a stack on groups of points, each of which stands in the sequence twice.

The sequence has all groups in the order of one curve, then all in that of another. They are tokens like any other: what
follows the last block pools them.

Source: Liang et al., "PointMamba: A Simple State Space Model for Point Cloud Analysis", arXiv:2402.10739.
"""

from typing import Any

from torch import Tensor, nn

from mtrkit.adapters.base import Adapter, SpecialAt, register_adapter
from mtrkit.adapters.sizes import macs_inside
from mtrkit.adapters.stack import last, mismatch_of_layers, nowhere, stack_sizes
from mtrkit.scan import Signals, mixer_forward, mixer_parts
from mtrkit.schedule import MambaShape, ModelShape
from mtrkit.types import MixerCall

_POINTS = 1024  # of a cloud in the repository's configurations; the number of tokens does not depend on it


@register_adapter
class PointMambaAdapter(Adapter):
    """``PointMambaScan``, whose blocks add the mixer's output themselves and pass on one tensor."""

    name = "point_mamba"
    summary = "PointMambaScan of the LMD0311/PointMamba repository, on point clouds"
    marks = ("group_divider", "encoder", "pos_embed", "blocks", "cls_head_finetune", "OrderScale_gamma_1")
    single_stream = True
    directions = 1
    keeps_time = True
    call_argument = None
    own_code_reads = ("in_proj", "conv1d", "x_proj", "dt_proj", "out_proj")
    splits = True

    def mismatch(self, model: Any) -> str | None:
        missing = super().mismatch(model)
        if missing:
            return missing
        stack = model.blocks
        wrong = mismatch_of_layers(stack, ("mixer", "norm", "drop_path")) if hasattr(stack, "layers") else "no stack"
        return f"`blocks`: {wrong}" if wrong else None

    def refusal(self, model: Any) -> str | None:
        if not isinstance(getattr(model.blocks, "drop_out", nn.Identity()), nn.Identity):
            return (
                "it has a dropout between its blocks (drop_out > 0), which takes tensors alone; for inference build it "
                "with drop_out=0, or set model.blocks.drop_out = torch.nn.Identity()"
            )
        return None

    def blocks(self, model: Any) -> list[nn.Module]:
        return list(model.blocks.layers)

    def mixer(self, block: Any) -> nn.Module:
        return block.mixer

    def run_mixer(self, mixer: Any, hidden: Tensor, call: MixerCall) -> tuple[Tensor, Signals]:
        return mixer_forward(hidden, mixer_parts(mixer, ("",)), call.reads, call.gaps, call.runs)

    def split_block(self, block: Any, tokens: Tensor, call: MixerCall) -> tuple[Tensor, Tensor]:
        """What the block adds to its tokens, and these."""
        return block.drop_path(block.mixer(block.norm(tokens), call)), tokens

    def special_at(self, model: Any) -> SpecialAt:
        return last if model.use_cls_token else nowhere

    def shape(self, model: Any, input_size: tuple[int, ...]) -> ModelShape:
        del input_size
        special, groups = int(model.use_cls_token), model.num_group
        embedding = model.group_size * macs_inside(model.encoder, 1) + macs_inside(model.pos_embed, 0)
        return MambaShape(
            **stack_sizes(model.blocks),
            directions=1,
            tokens=2 * groups + special,
            special=special,
            patches=2 * groups,
            patch_macs=embedding // 2,
            head_macs=macs_inside(model.cls_head_finetune, 0),
        )

    def input_size(self, model: Any) -> tuple[int, ...]:
        del model
        return (_POINTS, 3)

    def mismatch_of_size(self, model: nn.Module, input_size: tuple[int, ...]) -> str | None:
        del model
        if len(input_size) == 2 and input_size[1] == 3:
            return None
        return "takes point clouds: give (points, 3)"
