"""Every method against its plain loop, behind several blocks, so that sizes add up and order matters."""

import pytest

from tests.methods import plain
from tests.methods.host import assert_same

RMEETO = [
    {},
    *({"metric": metric} for metric in ("features", "delta", "B", "C", "y")),
    *({"similarity": similarity} for similarity in ("l1", "l2")),
    *({"merge": merge} for merge in ("mean", "max", "min")),
    *({"kth": k} for k in (2, 3, 5)),
    {"grouping": "front_behind"},
    {"operation": "prune"},
    {"class_position": "floor"},
    {"order": "leave"},
    {"order": "leave", "class_position": "floor"},
    {"order": "leave", "operation": "prune", "metric": "C", "similarity": "l1", "kth": 2},
    {"merge": "max", "grouping": "front_behind", "class_position": "floor"},
]


def named(options):
    return ",".join(f"{name}={value}" for name, value in options.items()) or "default"


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("options", RMEETO, ids=named)
def test_rmeeto(options, seed):
    assert_same("rmeeto", plain.rmeeto, seed=seed, **options)


@pytest.mark.parametrize(("length", "classes"), [(24, (0,)), (25, (0,)), (27, (26,)), (24, ())])
@pytest.mark.parametrize("options", [{}, {"order": "leave"}], ids=named)
def test_rmeeto_wherever_the_class_token_stands(length, classes, options):
    assert_same("rmeeto", plain.rmeeto, length=length, classes=classes, **options)


@pytest.mark.parametrize("counts", [(1,) * 9, (12, 6, 3, 1), (11, 6, 3, 2)])
def test_rmeeto_with_few_and_with_all_sources(counts):
    assert_same("rmeeto", plain.rmeeto, counts=counts)
    assert_same("rmeeto", plain.rmeeto, counts=counts, class_position="floor")


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("options", [{}, {"order": "leave"}, {"metric": "delta"}], ids=named)
def test_tome(options, seed):
    assert_same("tome", plain.tome, seed=seed, **options)
    assert_same("tome", plain.tome, seed=seed, length=26, classes=(0, 9, 25), **options)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("options", [{}, {"order": "leave"}, {"clipped": False}], ids=named)
def test_pumer(options, seed):
    assert_same("pumer", plain.pumer, seed=seed, **options)


UTR = [
    {},
    *({"hidden": action} for action in ("merge", "prune")),
    *({"residual": action} for action in ("hybrid", "prune")),
    {"hidden": "prune", "residual": "prune"},
    {"average": "successive"},
    {"pruned": "most_similar"},
    {"pruned_share": 0.3},
    {"pruned_share": 0.7, "residual": "hybrid", "pruned": "most_similar", "average": "successive"},
    {"indicator": "X"},
]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("options", UTR, ids=named)
def test_utr(options, seed):
    assert_same("utr", plain.utr, seed=seed, **options)
    assert_same("utr", plain.utr, seed=seed, length=24, counts=(11, 6, 3), **options)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("options", [{}, {"class_position": "middle"}, {"indicator": "X"}], ids=named)
def test_hsa(options, seed):
    assert_same("hsa", plain.hsa, seed=seed, counts=(4, 6, 10), **options)


EVIT = [{}, {"metric": "X"}, {"fuse": True}, {"order": "leave"}, {"fuse": True, "order": "leave", "metric": "X"}]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("options", EVIT, ids=named)
def test_evit(options, seed):
    assert_same("evit", plain.evit, seed=seed, counts=(4, 6, 10), **options)
    assert_same("evit", plain.evit, seed=seed, counts=(4, 6, 10), classes=(0, 24), **options)


NEIGHBOR = [{}, {"across_special": True}, {"protect_class_neighbors": True}]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("options", NEIGHBOR, ids=named)
def test_neighbor(options, seed):
    assert_same("neighbor", plain.neighbor, seed=seed, **options)
    assert_same("neighbor", plain.neighbor, seed=seed, length=24, classes=(0, 7, 8), counts=(9, 2), **options)
    assert_same("runs", plain.runs, seed=seed, **options)
