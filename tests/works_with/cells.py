"""One cell of the table: put something on a model of a family, in every order, and compare with plain weights."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import mtrkit
from mtrkit.errors import MtrkitError
from mtrkit.scan import mixer as mixer_module
from tests.works_with.additions import Addition
from tests.works_with.families import Family

Found = tuple[Tensor, dict[str, Tensor]]
RIGHT, REFUSED, ABSENT = "right", "refused", "–"
FAILS_DENSE = "fails in the class's own code, dense too"


def outcome(family: Family, addition: Addition) -> str:
    """What the cell says: ``right``, ``refused``, or both with when.

    Anything else fails: an error that is not mtrkit's, a wrong number, an addition that is ignored.
    """
    if addition.of_convs and family.conv is None:
        return ABSENT
    for train in (False, True)[: 1 + addition.trains]:
        if family.ours:
            check(family, addition, False, True, train)
        elif not _runs_dense(family, addition, train):
            return FAILS_DENSE
    return _together(_tried(family, addition, first) for first in (True, False))


def _runs_dense(family: Family, addition: Addition, train: bool) -> bool:
    """Whether the family's own code runs at all with the addition; what it computes then is its own affair."""
    try:
        model = addition.put(family, family.fresh()).train(train)
        logits = family.answer(model)
        if logits.requires_grad and train:
            logits.sum().backward()
    except (RuntimeError, TypeError, AttributeError):
        return False
    return True


def _tried(family: Family, addition: Addition, put_first: bool) -> str:
    found = set()
    for train in (False, True)[: 1 + addition.trains]:
        try:
            check(family, addition, True, put_first, train)
            found.add(RIGHT)
        except MtrkitError as error:
            assert len(str(error)) > 60, f"the refusal says too little: {error}"
            found.add(REFUSED)
    assert len(found) == 1, "inference and training differ"
    return found.pop()


def _together(found: Any) -> str:
    before, after = found
    return before if before == after else f"{after}; {before} if it is there before patching"


def check(family: Family, addition: Addition, reduced: bool, put_first: bool, train: bool) -> None:
    """Compare output, and gradients in training, with those of plain weights that do the same."""
    model = family.fresh()
    plain, bare = copy.deepcopy(model), copy.deepcopy(model)
    reduce = (lambda m: family.reduce(m, addition.method)) if reduced else (lambda m: m)
    model = addition.put(family, model) if put_first else reduce(model)
    model = (reduce(model) or model) if put_first else addition.put(family, model)
    found = run(family, model, train)
    if addition.same is None:
        wanted = run_by_layers(family, model, train)
    else:
        plain = addition.same(family, plain)
        wanted = run(family, reduce(plain), train)
    assert_close(found, wanted, addition.tolerance)
    if addition.visible:
        before = run(family, reduce(bare), train)[0]
        assert error(found[0], before) > 10 * addition.tolerance, "the addition is ignored"


def run(family: Family, model: Any, train: bool) -> Found:
    """Logits, and the gradients of all parameters outside of the mixers, which have passed through all of these."""
    model.train(train)
    if train:
        for parameter in model.parameters():
            parameter.requires_grad_()
    else:
        with torch.no_grad():
            return family.answer(model), {}
    model.zero_grad()
    logits = family.answer(model)
    logits.square().mean().backward()
    lost = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert not lost, f"no gradient reaches {lost}"
    outside = {name.removeprefix("base_model.model."): p.grad for name, p in model.named_parameters()}
    return logits.detach(), {name: grad for name, grad in outside.items() if f".{family.mixer}." not in name}


def run_by_layers(family: Family, model: Any, train: bool) -> Found:
    """The same with every layer called as a module, and plain torch below."""
    with pytest.MonkeyPatch.context() as patch, mtrkit.scan.use_scan_backend("reference"):
        patch.setattr(mixer_module, "are_plain", lambda layers: False)
        return run(family, model, train)


def assert_close(found: Found, wanted: Found, tolerance: float) -> None:
    """Equal within a bound relative to the size; gradients by name."""
    assert error(found[0], wanted[0]) < tolerance
    assert found[1].keys() == wanted[1].keys()
    for name, grad in wanted[1].items():
        assert error(found[1][name], grad) < 10 * tolerance, name


def error(found: Tensor, wanted: Tensor) -> float:
    """Norm of the difference over the norm of what is wanted."""
    return float((found - wanted).norm() / wanted.norm())


Cell = Callable[[Family], str]
