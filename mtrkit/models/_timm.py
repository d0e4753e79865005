"""Make our models known to ``timm.create_model``, as soon as somebody imports timm."""

from dataclasses import replace
from typing import Any

from torch import nn

from mtrkit.importing import when_imported
from mtrkit.models.layers import LayerNorm, PatchEmbed, RMSNorm
from mtrkit.models.registry import MODELS, Builder
from mtrkit.models.variants import default_cfgs  # timm reads them from the module of the function that it registers
from mtrkit.models.vim import Block
from mtrkit.ops import stream_tokens


def register_with_timm() -> None:
    """Register our models now, or when timm is imported: that takes seconds, and mtrkit does not need it."""
    when_imported("timm.models", _register)


def _register(models: Any) -> None:
    """Register every model of ours whose name ``timm.models`` does not have."""
    for name in default_cfgs:
        if not models.is_model(name):
            models.register_model(_entry_point(name, MODELS.get(name)))
    _trace_around()


def _trace_around() -> None:
    """Have timm's tools for torch.fx take our parts as they are: what they do depends on shapes, which fx has not."""
    from timm.models import register_notrace_function, register_notrace_module

    for part in (PatchEmbed, Block, RMSNorm, LayerNorm):
        register_notrace_module(part)
    register_notrace_function(stream_tokens)


def _entry_point(name: str, builder: Builder) -> Builder:
    """A function in timm's form: weights by ``pretrained``, ``features_only`` and the like done by timm."""

    def create(pretrained: bool = False, **options: Any) -> nn.Module:
        from timm.models import build_model_with_cfg, resolve_pretrained_cfg

        given = options.pop("pretrained_cfg", None), options.pop("pretrained_cfg_overlay", None)
        cfg = resolve_pretrained_cfg(name, *given)
        size = cfg.input_size or ()
        if len(size) == 4:  # a clip: timm takes sizes of images only
            cfg, options = replace(cfg, input_size=(size[0], *size[2:])), {"num_frames": size[1]} | options
        options |= {"pretrained_cfg": cfg, "feature_cfg": {"out_indices": 3, "feature_cls": "getter"}}
        model = build_model_with_cfg(builder, name, pretrained, **options)
        if len(size) == 4:
            _tell_size(model, size)
        return model

    create.__name__, create.__doc__ = name, builder.__doc__
    return create


def _tell_size(model: nn.Module, size: tuple[int, ...]) -> None:
    """Put the size of clips into the cfg of a model, or of a backbone and the model in it."""
    modules: tuple[Any, ...] = (model, *model.children())
    for module in modules:
        if hasattr(module, "pretrained_cfg"):
            module.pretrained_cfg["input_size"] = size
