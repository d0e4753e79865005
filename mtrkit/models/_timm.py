"""Make our models known to ``timm.create_model``, if timm is there."""

import logging
from typing import Any

from torch import nn

from mtrkit.models.registry import MODELS, Builder
from mtrkit.models.variants import default_cfgs  # noqa: F401  (timm reads them from the module of the function it registers)

_logger = logging.getLogger(__name__)


def register_with_timm() -> bool:
    """Register every model whose name timm does not have; say whether timm could be imported."""
    try:
        from timm.models import is_model, register_model
    except ImportError:
        return False
    except Exception as error:  # such as a torchvision that does not fit torch: no reason for us to fail
        _logger.warning("timm cannot be imported, which mtrkit does not need: %r", error)
        return False
    for name in MODELS.names():
        if not is_model(name):
            register_model(_entry_point(name, MODELS.get(name)))
    return True


def _entry_point(name: str, builder: Builder) -> Builder:
    """A function in timm's form: weights by ``pretrained``, ``features_only`` and the like done by timm."""

    def create(pretrained: bool = False, **options: Any) -> nn.Module:
        from timm.models import build_model_with_cfg

        features = {"out_indices": 3, "feature_cls": "getter"}
        return build_model_with_cfg(builder, name, pretrained, feature_cfg=features, **options)

    create.__name__, create.__doc__ = name, builder.__doc__
    return create
