"""Every value of every option does something, to the right tokens; impossible ones are refused by name."""

import dataclasses
from typing import Literal, get_args, get_origin, get_type_hints

import pytest
import torch

import mtrkit
from mtrkit.adapters import find_adapter
from mtrkit.methods import METHODS
from mtrkit.patch import RECORD
from tests.helpers.families import FAMILIES
from tests.test_matrix import IMAGES, run

NUMBERS = {
    "importance_weight": (0.5,),
    "kth": (2, 7),
    "pruned_share": (0.0, 0.2, 1.0),
    "seed": (1, 2**32 - 1),
    "shuffle_ratio": (0.0, 0.5, 1.0),
}
WEIGHED = {
    (name, option) for name in ("tome", "rmeeto", "pumer", "neighbor", "runs") for option in ("indicator", "channels")
}

# What else must be set for an option to matter.
GIVEN = {
    **{key: {"importance_weight": 1.0} for key in WEIGHED},
    ("mtr", "average"): {"ratio": 0.45},  # so many leave that a target receives several
    ("mtr", "importance_weight"): {"operation": "hybrid"},
    ("mtr", "channels"): {"indicator": "X"},  # Δ is positive
    ("mtr", "metric"): {"indicator": "X"},
    ("utr", "average"): {"ratio": 0.45},
    ("utr", "metric"): {"indicator": "X"},
    ("rmeeto", "merge"): {"ratio": 0.45},
    ("rmeeto", "seed"): {"sources": "random"},
    ("rmeeto", "shuffle_ratio"): {"order": "shuffle"},
    ("hsa", "removed_delta"): {"state": "decay"},
    ("tome", "metric"): {"metric": "X"},  # on a ViT the default is another
    ("tome", "place"): {"metric": "keys", "place": "after_block"},  # keys: on a ViT, as nothing else has an MLP
    ("tome", "proportional_attention"): {"metric": "keys", "proportional_attention": False},
    ("neighbor", "across_special"): {"ratio": 0.45},
    ("runs", "across_special"): {"ratio": 0.45},
    ("runs", "metric"): {"lengths": "one"},  # keys are those of a ViT, which has no time to keep
    ("runs", "indicator"): {"importance_weight": 1.0, "lengths": "one"},
    ("random", "metric"): {"operation": "merge"},
    ("random", "similarity"): {"operation": "merge"},
}
OF_CLIPS = ("across_frames",)  # tested in test_lengths.py
NO_CHANGE = {("rmeeto", "similarity", "l2")}  # between unit vectors it ranks as cosine does


def every_option():
    """(method, option, value) for all values that are no default."""
    for method in METHODS:
        for field in (field for field in dataclasses.fields(method.config) if field.name not in OF_CLIPS):
            hint = get_type_hints(method.config)[field.name]
            values = get_args(hint) if get_origin(hint) is Literal else NUMBERS.get(field.name, (False, True))
            yield from ((method.name, field.name, value) for value in values if value != field.default)


def reads(method, options):
    """The signals that a method reads with these options."""
    return METHODS.get(method).configure({k: v for k, v in options.items() if k != "ratio"}).reads


def model_with(signals):
    """A small model whose blocks have these signals, or ``None``."""
    models = (FAMILIES[family]() for family in ("vim", "timm_vit"))
    return next((model for model in models if signals <= find_adapter(model).signals), None)


def reduced(model, method, options):
    """The model's answer with this reduction."""
    return run(mtrkit.apply_reduction(model, method, **{"ratio": 0.3} | options))


@pytest.mark.parametrize(("method", "name", "value"), list(every_option()))
def test_a_value_matters_and_keeps_the_promises(method, name, value):
    without = GIVEN.get((method, name), {})
    options = without | {name: value}
    model = model_with(reads(method, options) | reads(method, without))
    if model is None:  # the default is a signal of another kind of block
        without = without | {name: "X"}
        model = model_with(reads(method, options))
    other = reduced(model, method, without)
    out = reduced(model, method, options)
    info = mtrkit.reduction_info(model)
    assert info.options[name] == value
    assert torch.equal(out, other) == ((method, name, value) in NO_CHANGE)
    assert out.isfinite().all()
    with mtrkit.trace_reduction(model) as trace:
        assert torch.equal(run(model), out)
    assert int(trace.slot.max()) + 1 == info.tokens[-1]
    special = vars(model)[RECORD].special_at(info.num_tokens)
    for sample in range(len(IMAGES)):
        groups = trace.groups(sample)
        assert all([position] in groups for position in special), "a special token was merged or dropped"
    torch.testing.assert_close(run(model, IMAGES[:1]), out[:1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("method", "options", "says"),
    [
        ("rmeeto", {"kth": 0}, "kth must be an integer from 1"),
        ("rmeeto", {"kth": 1.5}, "1.5"),
        ("rmeeto", {"kth": True}, "True"),
        ("rmeeto", {"shuffle_ratio": 1.1}, "from 0 to 1, not 1.1"),
        ("rmeeto", {"shuffle_ratio": "half"}, "half"),
        ("rmeeto", {"seed": -1}, "seed must be an integer from 0"),
        ("rmeeto", {"grouping": "odd-even"}, "odd_even"),
        ("random", {"seed": 2**32}, "seed"),
        ("utr", {"pruned_share": float("nan")}, "nan"),
        ("utr", {"indicator": "delta"}, "'y', 'X'"),
        ("tome", {"importance_weight": -1}, "from 0 to inf, not -1"),
        ("tome", {"importance_weight": float("inf")}, "inf"),
        ("evit", {"fuse": 1}, "fuse is a switch"),
        ("evit", {"seed": 0}, "it has: lengths, indicator, metric, fuse, order"),
        ("pumer", {"order": "shuffle"}, "restore"),
    ],
)
def test_impossible_values_are_refused(method, options, says):
    with pytest.raises(mtrkit.OptionError, match=says):
        mtrkit.apply_reduction(FAMILIES["vim"](), method, **options)
