"""Which module of a model is reduced, by which adapter, or in one sentence why none is."""

from torch import nn

from mtrkit.adapters.base import ADAPTERS, Adapter
from mtrkit.adapters.unsupported import known_refusal
from mtrkit.errors import InputError, UnsupportedModelError
from mtrkit.schedule import ModelShape

Host = tuple[nn.Module, Adapter]


def find_host(model: nn.Module) -> Host:
    """The model itself, or the one model inside it that can be reduced, with its adapter.

    Raises:
        UnsupportedModelError: There is none, with the reason, or there are several.
    """
    if not isinstance(model, nn.Module):
        raise UnsupportedModelError(f"expected a torch.nn.Module, not {type(model).__name__}")
    hosts = _hosts(model)
    if not hosts:
        raise UnsupportedModelError(_why_none_fits(model))
    refusals = {host: adapter.refusal(host) for host, adapter in hosts}
    able = [(host, adapter) for host, adapter in hosts if refusals[host] is None]
    if not able:
        host, adapter = hosts[0]
        raise UnsupportedModelError(f"{type(host).__name__} ({adapter.name}) cannot be reduced: {refusals[host]}")
    if len(able) > 1:
        names = ", ".join(type(host).__name__ for host, _ in able)
        raise UnsupportedModelError(
            f"{type(model).__name__} holds {len(able)} models that can be reduced ({names}); pass the one you mean"
        )
    return able[0]


def find_adapter(model: nn.Module) -> Adapter:
    """The adapter of the model itself.

    Raises:
        UnsupportedModelError: None fits, with the reason or with what the nearest one missed.
    """
    adapter = _fitting(model)
    if adapter is None:
        raise UnsupportedModelError(_why_none_fits(model))
    return adapter


def shape_of(model: nn.Module, host: nn.Module, adapter: Adapter, input_size: tuple[int, ...]) -> ModelShape:
    """Sizes of the host for inputs of this size, and of the head that ``model`` may have on top of it.

    Raises:
        InputError: The host takes no such input.
    """
    mismatch = adapter.mismatch_of_size(host, tuple(input_size))
    if mismatch is not None:
        raise InputError(f"input_size={tuple(input_size)} does not fit {type(host).__name__}, which {mismatch}")
    return adapter.shape_within(model, adapter.shape(host, tuple(input_size)))


def _fitting(module: nn.Module) -> Adapter | None:
    return next((adapter for adapter in ADAPTERS if adapter.mismatch(module) is None), None)


def _hosts(model: nn.Module) -> list[Host]:
    """Every model of a known family inside, itself included.

    A compiled module passes attributes on and so looks like the model it wraps: of two that have the same
    blocks the inner one is the model.
    """
    hosts: dict[int, Host] = {}
    for module in model.modules():
        adapter = _fitting(module)
        if adapter is not None:
            hosts[id(adapter.blocks(module)[0])] = (module, adapter)
    return list(hosts.values())


def _why_none_fits(model: nn.Module) -> str:
    """The reason that is known for the model's family, or the one thing that the nearest adapter misses."""
    return (
        known_refusal(model)
        or _hidden_by_peft(model)
        or (
            f"{type(model).__name__} fits no adapter{_nearest_miss(model)}. Pass a supported model, see "
            "mtrkit.list_adapters(), or describe the family with mtrkit.register_adapter"
        )
    )


def _hidden_by_peft(model: nn.Module) -> str | None:
    """That peft has put a module around a whole mixer, as for ``target_parameters`` which no layer holds."""
    wrappers = ((name, module) for name, module in model.named_modules() if type(module).__name__ == "ParamWrapper")
    name = next((name for name, wrapper in wrappers if hasattr(getattr(wrapper, "base_layer", None), "in_proj")), None)
    return name and (
        f"`{name}` of a {type(model).__name__} is a ParamWrapper of peft (target_parameters), which hides the mixer "
        "inside of it; merge it into the weights with model.merge_and_unload(), or give peft target_modules instead"
    )


def _nearest_miss(model: nn.Module) -> str:
    """The adapter that misses the smallest share of what tells its family, and what it misses first."""
    pairs = [(module, adapter) for module in model.modules() for adapter in ADAPTERS if adapter.marks]
    module, adapter = max(pairs, key=lambda pair: _nearness(*pair))
    if not _nearness(module, adapter):
        known = f"`{adapter.marks[0]}` of {adapter.name}"
        return f": it has none of the parts by which a family is known, such as the {known}"
    inside = "" if module is model else f" for the {type(module).__name__} inside"
    return f"; the nearest{inside} is {adapter.name}: {adapter.mismatch(module)}"


def _nearness(module: nn.Module, adapter: Adapter) -> float:
    """The share of the adapter's marks; with all of them there is one thing more that does not fit."""
    found = sum(hasattr(module, mark) for mark in adapter.marks)
    return found / (len(adapter.marks) + (found == len(adapter.marks)))
