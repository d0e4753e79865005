"""UperNet over a Vim backbone, as Vim (arXiv:2401.09417) and DyVM (arXiv:2504.04787) segment ADE20K.

The heads are those of transformers (Xiao et al., arXiv:1807.10221), the backbone is mtrkit's, and files of
mmsegmentation load: :meth:`Segmentor.adapt_state_dict` knows their names.
"""

import re

import torch.nn.functional as F
from torch import Tensor, nn
from transformers import UperNetConfig
from transformers.models.upernet.modeling_upernet import UperNetFCNHead, UperNetHead

import mtrkit
from mtrkit.models.features import as_map
from mtrkit.models.fitting import Fit
from mtrkit.ops import columns_without, restore_stream
from mtrkit.types import ReducedStream

_BACKBONE = "backbone.model."
_NAMES = (  # of mmsegmentation and of Vim's code for it, and ours; names that are ours already stay
    (r"^backbone\.(fpn\d)\.", r"pyramid.\1."),
    (r"^backbone\.(?!model\.)", _BACKBONE),
    (r"\.conv_seg\.", ".classifier."),
    (r"\.bn\.", ".batch_norm."),
)


class Segmentor(nn.Module):
    """Backbone, pyramid and heads. A reduction of the backbone is applied to the whole.

    The maps are what the mixers of the chosen blocks give, not the sum that the next block sees: Vim's and DyVM's code
    trains so, and their files mean nothing otherwise. In a reduced model they are put back on the full grid.

    Args:
        name: Of the backbone, a model of ``mtrkit.create_model`` that has a class token ``"none"``.
        num_classes: Classes.
        size: Pixels a side of the images.
        blocks: Four, counted from 0, in order.
    """

    def __init__(self, name: str, num_classes: int, size: int, blocks: tuple[int, ...]) -> None:
        super().__init__()
        options = {"img_size": size, "class_token": "none"}
        self.backbone = mtrkit.create_model(name, features_only=True, out_indices=blocks, **options)
        channels = self.backbone.feature_info.channels()
        width = channels[0]
        config = UperNetConfig(hidden_size=width, num_labels=num_classes, auxiliary_channels=256)
        self.pyramid = pyramid(width)
        self.decode_head = UperNetHead(config, channels)
        self.auxiliary_head = UperNetFCNHead(config, channels)

    def maps(self, images: Tensor) -> list[Tensor]:
        """(B, 3, size, size) to four maps (B, D, rows, columns), from one to the next half the rows and columns."""
        model, found = self.backbone.model, []
        hidden, residual = model.pos_drop(model.patch_embed(images) + model.pos_embed), None
        for index, block in enumerate(model.layers):
            hidden, residual = block(hidden, residual)
            if index in self.backbone.out_indices:
                whole = restore_stream(hidden, residual)[0] if isinstance(residual, ReducedStream) else hidden
                found.append(as_map(whole, model.patch_embed.grid_size))
        return [scale(x) for scale, x in zip(self.pyramid.values(), found, strict=True)]

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Images (B, 3, size, size) to logits (B, classes, size, size).

        In training mode also to those of the auxiliary head, which helps there only.
        """
        maps = self.maps(images)
        heads = (self.decode_head, self.auxiliary_head) if self.training else (self.decode_head,)
        logits = tuple(resize(head(maps), images.shape[-2:]) for head in heads)
        return logits if self.training else logits[0]

    def adapt_state_dict(self, state: dict[str, Tensor], fit: Fit | None = None) -> dict[str, Tensor]:
        """A state dict of mmsegmentation or of this class under the names of this class; loading calls this.

        The norm after the blocks is left out, as no map goes through it. Positions are interpolated.

        Raises:
            CheckpointError: The backbone is of a family that is not Vim's.
        """
        renamed = {}
        for name, value in state.items():
            for theirs, ours in _NAMES:
                name = re.sub(theirs, ours, name)
            renamed[name] = value
        own = {name.removeprefix(_BACKBONE): v for name, v in renamed.items() if name.startswith(_BACKBONE)}
        own = self.backbone.model.adapt_state_dict({k: v for k, v in own.items() if not k.startswith("norm_f.")}, fit)
        rest = {name: value for name, value in renamed.items() if not name.startswith(_BACKBONE)}
        return rest | {_BACKBONE + name: value for name, value in own.items()}

    def start_from(self, name: str, checkpoint: str) -> None:
        """Take the backbone's weights from a classifier of the same ``name``, without its class token."""
        source, model = mtrkit.create_model(name, checkpoint), self.backbone.model
        state, own = source.state_dict(), model.state_dict()
        if source.class_index is not None:
            del state["cls_token"]
            state["pos_embed"] = columns_without(state["pos_embed"], (source.class_index,))
        state = model.adapt_state_dict(state)
        model.load_state_dict({key: state[key] for key in own})


def pyramid(width: int) -> nn.ModuleDict:
    """From four maps of one grid to four times, twice, once and half its rows and columns: strides 4 to 32 from 16."""

    def twice() -> nn.Module:
        return nn.ConvTranspose2d(width, width, kernel_size=2, stride=2)

    return nn.ModuleDict(
        {
            "fpn1": nn.Sequential(twice(), nn.BatchNorm2d(width), nn.GELU(), twice()),
            "fpn2": nn.Sequential(twice()),
            "fpn3": nn.Identity(),
            "fpn4": nn.MaxPool2d(2),
        }
    )


def resize(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear to (rows, columns), corners not aligned."""
    return F.interpolate(x, size=size, mode="bilinear", align_corners=False)
