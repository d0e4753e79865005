"""Which blocks reduce."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtrkit.errors import OptionError
from mtrkit.schedule import EveryNth, Placement, default_layers, resolve_layers


def test_the_papers_sets():
    assert default_layers(24) == (5, 10, 15)
    assert EveryNth(2).layers(24) == tuple(range(2, 24, 2))
    assert EveryNth(2, start=1).layers(24) == tuple(range(1, 24, 2))


@given(depth=st.integers(1, 200))
def test_default_layers_fit_any_depth(depth):
    layers = default_layers(depth)
    assert resolve_layers(layers, depth) == layers
    assert len(layers) == min(3, depth - 1)


def test_whatever_names_blocks_is_resolved():
    class Last:
        def layers(self, depth):
            return (depth - 1,)

    assert isinstance(Last(), Placement)
    assert resolve_layers(Last(), 12) == (11,)
    assert resolve_layers(None, 24) == (5, 10, 15)
    assert resolve_layers([15, 5, 10], 24) == (5, 10, 15)
    assert resolve_layers(EveryNth(8), 24) == (8, 16)
    assert resolve_layers([], 24) == ()


@pytest.mark.parametrize("layers", [[0], [24], [-1], [5.0], [True], ["5"], [5, 5], "5", 5])
def test_impossible_layers_are_refused(layers):
    with pytest.raises(OptionError, match="layers"):
        resolve_layers(layers, 24)


def test_the_message_names_the_range_and_what_was_outside():
    with pytest.raises(OptionError, match=r"names \[24\].*from 1 to 23"):
        resolve_layers([5, 24], 24)


@pytest.mark.parametrize(("n", "start"), [(0, None), (2, 0), (1.5, None), (2, True)])
def test_impossible_distances_are_refused(n, start):
    with pytest.raises(OptionError, match="EveryNth"):
        EveryNth(n, start)
