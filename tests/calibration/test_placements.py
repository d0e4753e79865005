"""Which placements are tried, and which one wins."""

import pytest
import torch

from mtrkit.calibration.placements import placements, race, race_length


@pytest.mark.parametrize("depth", [4, 6, 12, 24, 48])
def test_placements_can_be_had_and_differ(depth):
    sets = placements(depth, depth - 1)
    assert len(sets) == len(set(sets)) > 2
    for layers in sets:
        assert list(layers) == sorted(set(layers)) and layers[0] >= 1 and layers[-1] <= min(depth - 1, 3 * depth // 4)


@pytest.mark.parametrize("count", [1, 2, 7, 30])
def test_the_best_wins_and_the_first_stays(count):
    placed = [None, *((index,) for index in range(1, count))]
    seen, winner = [], placed[count // 2]

    def measure(layers, start, stop):
        seen.append((layers, start, stop))
        return torch.full((stop - start,), 0.1 if layers == winner else 0.2)

    assert race(placed, 80, measure) == winner
    assert sum(stop - start for _, start, stop in seen) == race_length(placed, 80)
    for layers in (None, winner):  # all samples, each once
        assert [(start, stop) for name, start, stop in seen if name == layers] == [(0, 10), (10, 40), (40, 80)]


def test_a_placement_that_is_lucky_at_first_loses():
    def measure(layers, start, stop):
        lucky = torch.zeros(stop - start) if start == 0 else torch.ones(stop - start)
        return lucky if layers == (1,) else torch.full((stop - start,), 0.5)

    assert race([None, (1,)], 80, measure) is None
