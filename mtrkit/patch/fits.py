"""Whether a method with its options can work on the models of a family."""

from mtrkit.adapters import Adapter
from mtrkit.errors import OptionError, UnsupportedModelError
from mtrkit.methods import METHODS, Method, MethodConfig


def check_signals(method: str, reads: frozenset[str], adapter: Adapter) -> None:
    """Raise :class:`UnsupportedModelError` if the method reads what models of the family do not have."""
    missing = sorted(reads - adapter.signals)
    if missing:
        raise UnsupportedModelError(
            f"method {method!r} with these options reads {', '.join(missing)}, which models of {adapter.name!r} do "
            f"not have (they have: {', '.join(sorted(adapter.signals)) or 'features only'}); choose another option "
            f"or method, such as mtrkit.apply_reduction(model, {_working(adapter)!r})"
        )


def _working(adapter: Adapter) -> str:
    """A method that runs as it is on a family which lacks signals; ``"tome"`` and ``"rmeeto"`` read features only."""

    def runs(method: Method) -> bool:
        config = method.configure({}, adapter.attention_blocks)
        return config.reads <= adapter.signals and (config.lengths == "one" or adapter.keeps_time)

    return next(name for name in ("tome", *METHODS.names()) if runs(METHODS.get(name)))


def check_blocks(method: str, config: MethodConfig, adapter: Adapter) -> None:
    """Raise :class:`UnsupportedModelError` if the options need other blocks than the family has.

    :class:`OptionError` if they exclude each other.
    """
    if config.alignment != "carry" and adapter.call_argument is None:
        raise UnsupportedModelError(
            f"method {method!r} with these options needs gap-aware scans, which {adapter.name!r} models do not "
            "support; choose other options or another method"
        )
    if config.lengths != "one" and not adapter.keeps_time:
        raise UnsupportedModelError(
            f"lengths={config.lengths!r} needs blocks that count positions by convolution and scan, which mtrkit runs "
            f"for families of plain Mamba stacks and not for {adapter.name!r}; give lengths='one'"
        )
    if config.lengths != "one" and config.alignment != "carry":
        raise OptionError(
            f"lengths={config.lengths!r} keeps time by itself, so scans must not decay over gaps as well; leave out "
            "one of the two options"
        )
    asked = {f"place={config.place!r}": config.place, "proportional_attention": config.proportional_attention}
    needed = " and ".join(option for option, value in asked.items() if value not in ("after_block", False))
    if needed and not adapter.attention_blocks:
        raise UnsupportedModelError(
            f"method {method!r} with {needed} needs blocks of attention and MLP, which {adapter.name!r} models do not "
            "have; leave the option out"
        )
