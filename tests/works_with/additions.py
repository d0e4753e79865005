"""What people put on the layers of a model, and plain weights that do the same.

Each is a function that changes a model in place and returns what is called from then on. ``FACTOR`` scales what
passes, so that an addition that is ignored shows.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

from mtrkit.errors import UnsupportedModelError
from tests.works_with.families import Family

FACTOR = 1.25

Put = Callable[[Family, Any], Any]


class Addition(NamedTuple):
    """One row of the table.

    Attributes:
        title: As readers see it.
        put: Puts it on.
        same: Gives a fresh model of the same weights plain layers that compute the same; ``None`` if the model's
            layers, called one by one under the reference backend, are what to compare with.
        trains: Whether gradients are compared too.
        method: The reduction, if not the family's: one that chooses by position does not turn where int8 rounds.
        tolerance: Of outputs and gradients, relative to their size.
        visible: Whether it changes the output.
        of_convs: Whether it is put on convolutions only.
    """

    title: str
    put: Put
    same: Put | None = None
    trains: bool = True
    method: str | None = None
    tolerance: float = 2e-3
    visible: bool = True
    of_convs: bool = False


class Scaled(nn.Linear):
    """A subclass that computes something else than its weight says."""

    def forward(self, x):
        """Times FACTOR."""
        return FACTOR * super().forward(x)


class Wrapped(nn.Module):
    """A module around a layer that passes attributes on, as adapters do."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def __getattr__(self, name):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.inner, name)

    def forward(self, *args, **kwargs):
        """Times FACTOR."""
        return self.inner(*args, **kwargs) * FACTOR


class Times(nn.Module):
    """A parametrization."""

    def forward(self, weight):
        """Times FACTOR."""
        return FACTOR * weight


def each(family: Family, model: Any, names: tuple[str, ...] | None = None) -> Iterator[tuple[Any, str, Any]]:
    """(mixer, name, layer) of every linear layer, or of those named."""
    for mixer in family.mixers(model):
        for name in family.linears if names is None else names:
            yield mixer, name, getattr(mixer, name)


def on_layers(change: Callable[[Any], Any], what: str = "linears") -> Put:
    """Put ``change`` on every linear layer, every convolution or every mixer."""

    def put(family: Family, model: Any) -> Any:
        convs = (family.conv,) if family.conv else ()
        names = {"linears": family.linears, "convs": convs, "out": family.linears[-1:]}
        parts = family.mixers(model) if what == "mixers" else [layer for *_, layer in each(family, model, names[what])]
        for part in parts:
            change(part)
        return model

    return put


@torch.no_grad()
def scale(layer: Any) -> None:
    """Weight and bias times FACTOR."""
    for parameter in layer.parameters():
        parameter.mul_(FACTOR)


@torch.no_grad()
def scale_weight(layer: Any) -> None:
    """The weight alone."""
    layer.weight.mul_(FACTOR)


def unchanged(family: Family, model: Any) -> Any:
    """What changes no number."""
    return model


def lora(*names: str) -> Put:
    """Adapters of the real peft on some layers."""

    def put(family: Family, model: Any) -> Any:
        peft = pytest.importorskip("peft")
        here = [name for name in names or family.linears if name in (*family.linears, family.conv)]
        if family.name == "hf_mamba":  # peft itself refuses these two for this model
            here = [name for name in here if name not in ("out_proj", "conv1d")]
        if not here:
            raise UnsupportedModelError("peft itself refuses convolutions and output projections of this model")
        torch.manual_seed(1)
        options = {"rank_pattern": {"conv1d": 64}} if "conv1d" in here else {"r": 4}
        return peft.get_peft_model(
            model,
            peft.LoraConfig(
                target_modules=[f"{family.mixer}.{name}" for name in here], init_lora_weights=False, **options
            ),
        )

    return put


def merged_lora(family: Family, model: Any) -> Any:
    """The same adapters, merged into the weights."""
    return lora()(family, model).merge_and_unload()


def subclass(layer: Any) -> None:
    layer.__class__ = Scaled


def wrap(family: Family, model: Any) -> Any:
    for mixer, name, layer in each(family, model):
        setattr(mixer, name, Wrapped(layer))
    return model


def hook(layer: Any) -> None:
    layer.register_forward_hook(lambda module, args, output: output * FACTOR)


def pre_hook(layer: Any) -> None:
    layer.register_forward_pre_hook(lambda module, args: (args[0] * FACTOR, *args[1:]))


def hook_blocks(family: Family, model: Any) -> Any:
    """A hook on every block that scales what the mixer adds."""

    def scaled(module, args, output):
        return (output[0] * FACTOR, *output[1:])

    for block in family.blocks(model):
        block.register_forward_hook(scaled)
    return model


def backward_hook(layer: Any) -> None:
    """One that only looks, and has to be called."""
    layer.register_full_backward_hook(lambda module, given, found: SEEN.append(type(module).__name__))


SEEN: list[str] = []


def bias(layer: Any) -> None:
    if layer.bias is None:
        torch.manual_seed(layer.in_features)
        layer.bias = nn.Parameter(0.2 * torch.randn(layer.out_features))


def old_weight_norm(layer: Any) -> None:
    nn.utils.weight_norm(layer)
    with torch.no_grad():
        layer.weight_g.mul_(FACTOR)


def new_weight_norm(layer: Any) -> None:
    parametrizations.weight_norm(layer)
    with torch.no_grad():
        layer.parametrizations.weight.original0.mul_(FACTOR)


def parametrized(layer: Any) -> None:
    parametrize.register_parametrization(layer, "weight", Times())


def pruned(layer: Any) -> None:
    prune.l1_unstructured(layer, "weight", amount=0.3)


def cut(layer: Any) -> None:
    prune.l1_unstructured(layer, "weight", amount=0.3)
    prune.remove(layer, "weight")


def two_tensor(layer: Any) -> None:
    two = pytest.importorskip("torch.testing._internal.two_tensor").TwoTensor
    layer.weight = nn.Parameter(two(layer.weight.data, layer.weight.data.clone()))


def torchao_int8(config: str) -> Put:
    def put(family: Family, model: Any) -> Any:
        quantization = pytest.importorskip("torchao.quantization")
        quantization.quantize_(model, getattr(quantization, config)())
        return model

    return put


def dequantized(family: Family, model: Any) -> Any:
    """The weights as int8 holds them, in plain tensors."""
    model = torchao_int8("Int8WeightOnlyConfig")(family, model)
    for module in model.modules():
        if isinstance(module, nn.Linear):
            module.weight = nn.Parameter(module.weight.dequantize())
    return model


def quantize_dynamic(family: Family, model: Any) -> Any:
    return torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8, inplace=True)


def replace_forward(part: Any) -> None:
    """A function around the instance's ``forward``, as many packages put it there."""
    part.forward = partial(_times, part.forward)


def _times(forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    return forward(*args, **kwargs) * FACTOR


def offload(family: Family, model: Any) -> Any:
    accelerate = pytest.importorskip("accelerate")
    return accelerate.cpu_offload(model, execution_device=torch.device("cpu"))


def align(family: Family, model: Any) -> Any:
    hooks = pytest.importorskip("accelerate.hooks")
    for part in (*family.blocks(model), *family.mixers(model), *family.layers(model)):
        hooks.add_hook_to_module(part, hooks.AlignDevicesHook(io_same_device=True))
    return model


INT8: dict[str, Any] = {"trains": False, "method": "random", "visible": False}
ROUNDED: dict[str, Any] = INT8 | {"tolerance": 0.5}  # inputs are rounded to int8 as well, which multiplies what differs
CONV: dict[str, Any] = {"of_convs": True}
ADDITIONS = {
    "lora": Addition("LoRA (peft) on projections", lora(), merged_lora),
    "lora_conv": Addition("LoRA (peft) on convolutions", lora("conv1d"), **CONV),
    "subclass": Addition("a subclass of `nn.Linear`", on_layers(subclass), on_layers(scale)),
    "wrapper": Addition("a module around `nn.Linear`", wrap, on_layers(scale)),
    "forward_hook": Addition("forward hooks on projections", on_layers(hook), on_layers(scale)),
    "pre_hook": Addition("forward pre-hooks on projections", on_layers(pre_hook), on_layers(scale_weight)),
    "conv_hook": Addition(
        "forward hooks on convolutions", on_layers(hook, "convs"), on_layers(scale, "convs"), of_convs=True
    ),
    "mixer_hook": Addition("forward hooks on mixers", on_layers(hook, "mixers"), on_layers(scale, "out")),
    "backward_hook": Addition("full backward hooks on projections", on_layers(backward_hook), unchanged, visible=False),
    "mixer_backward_hook": Addition(
        "full backward hooks on mixers", on_layers(backward_hook, "mixers"), unchanged, visible=False
    ),
    "bias": Addition("a bias where there was none", on_layers(bias), visible=False),
    "weight_norm": Addition("`weight_norm`, by hooks", on_layers(old_weight_norm), on_layers(scale_weight)),
    "weight_norm_new": Addition("`weight_norm`, parametrized", on_layers(new_weight_norm), on_layers(scale_weight)),
    "parametrize": Addition("`parametrize`", on_layers(parametrized), on_layers(scale_weight)),
    "prune": Addition("`prune`", on_layers(pruned), on_layers(cut)),
    "two_tensor": Addition(
        "weights of a tensor subclass", on_layers(two_tensor), unchanged, trains=False, visible=False
    ),
    "torchao_int8": Addition("torchao int8, weights only", torchao_int8("Int8WeightOnlyConfig"), dequantized, **INT8),
    "torchao_dynamic": Addition(
        "torchao int8, dynamic", torchao_int8("Int8DynamicActivationInt8WeightConfig"), **ROUNDED
    ),
    "quantize_dynamic": Addition("`quantize_dynamic`", quantize_dynamic, **INT8),
    "layer_forward": Addition("`forward` of projections replaced", on_layers(replace_forward), on_layers(scale)),
    "mixer_forward": Addition(
        "`forward` of mixers replaced", on_layers(replace_forward, "mixers"), on_layers(scale, "out")
    ),
    "align": Addition("accelerate's hooks", align, unchanged, visible=False),
    "offload": Addition("accelerate's CPU offload", offload, unchanged, trains=False, visible=False),
}
