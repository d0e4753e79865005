"""Models by name, with weights if wanted."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from torch import nn

from mtrkit.errors import OptionError
from mtrkit.models.features import FeatureMaps
from mtrkit.models.loading import load_checkpoint
from mtrkit.models.names import Ema
from mtrkit.models.registry import MODELS
from mtrkit.models.releases import find_checkpoint

M = TypeVar("M", bound=nn.Module)


def create_model(
    name: str,
    checkpoint: str | Path | None = None,
    *,
    ema: Ema = "auto",
    new_head: bool = False,
    initial: bool = False,
    origin: str | None = None,
    pos_grid: tuple[int, int] | None = None,
    features_only: bool = False,
    out_indices: int | Sequence[int] | None = None,
    **options: Any,
) -> nn.Module:
    """Build a model, with random weights or with those of a checkpoint.

    Args:
        name: One of :func:`list_models`.
        checkpoint: A local ``.pth``, ``.pt`` or ``.safetensors`` file; ``"pretrained"`` for the weights that
            are bundled or officially published for this model; a repository of the official releases, such
            as ``"hustvl/Vim-tiny-midclstok"``; or any ``"hf:org/repo/file"``. Default: random weights.
        ema: Whether to take the averaged weights, see :func:`mtrkit.models.load_state_dict`.
        new_head: Whether the checkpoint may have another number of classes; the head is random then.
        initial: Whether the checkpoint may be of another model, as training only begins with it.
        origin: The model that the checkpoint is of, if it does not say it; see :func:`mtrkit.models.load_checkpoint`.
        pos_grid: Rows and columns of its position table, if it is not a square.
        features_only: Whether to return a backbone instead, whose output is a list of feature maps; see
            :class:`mtrkit.models.FeatureMaps`.
        out_indices: The blocks after which its maps are taken. Default: the last three.
        **options: Changes to the variant, such as ``num_classes``, ``img_size`` or ``drop_path_rate``; see
            :class:`mtrkit.models.VisionMamba`.

    Returns:
        The model, in eval mode if it has a checkpoint, otherwise in training mode as torch modules are.

    Warns:
        CheckpointWarning: The checkpoint was adapted, or something was assumed that it does not say.

    Raises:
        UnknownNameError: No such model.
        OptionError: No such option, or a value out of range.
        CheckpointError: The checkpoint is not there, unreadable, unsafe, or of another model.

    >>> model = create_model("vim_micro_patch4_stride2_32", "pretrained")
    >>> model.num_classes, model.training
    (10, False)
    """
    if out_indices is not None and not features_only:
        raise OptionError(f"out_indices={out_indices!r} chooses feature maps; give features_only=True with it")
    # The head of a backbone goes away, so the file may have another.
    how = {
        "ema": ema,
        "new_head": new_head or features_only,
        "initial": initial,
        "origin": origin,
        "pos_grid": pos_grid,
    }
    model = _build(name, checkpoint, how, options)
    if not features_only:
        return model
    return FeatureMaps(model, 3 if out_indices is None else out_indices).train(model.training)


def _build(name: str, checkpoint: str | Path | None, how: dict[str, Any], options: dict[str, Any]) -> nn.Module:
    model = MODELS.get(name)(**options)  # before anything is fetched, as options can be wrong
    return model if checkpoint is None else load_weights(model, checkpoint, name, **how)


def load_weights(model: M, checkpoint: str | Path, name: str, **how: Any) -> M:
    """Find weights, fetching them if need be, and load them.

    Args:
        model: Gets them, in place, and goes into eval mode.
        checkpoint: As for :func:`create_model`.
        name: Of the model, which chooses among published weights.
        **how: As for :func:`mtrkit.models.load_checkpoint`.

    Returns:
        The same model.
    """
    load_checkpoint(model, find_checkpoint(checkpoint, name), **how)
    return model.eval()
