"""Plots of few curves, whose intervals stand apart, with the ratio of every point."""

import itertools

import pytest

from mtrkit.vis.curves import Dense, Point, _apart, _together, draw_curves

figure = pytest.importorskip("matplotlib.figure", reason="plots need matplotlib")

DENSE = Dense("vim", 1.0, 0.8)
SMALLER = {"nano": Point(0.67, -0.03, -0.05, -0.01)}


def lines(count, costs=(0.8, 0.7, 0.6)):
    """Methods with the same costs, as where these are FLOPs."""
    ratios = ("0.2", "0.3", "0.4")
    return {
        f"method{n}": [
            Point(c, -0.01 * n, -0.01 * n - 0.02, -0.01 * n + 0.02, r) for c, r in zip(costs, ratios, strict=True)
        ]
        for n in range(count)
    }


def drawn(how, *given):
    found = figure.Figure(layout="constrained")
    how(found, *given, "GFLOPs")
    found.draw_without_rendering()
    return found


def places(axes):
    """Where each errorbar of a panel stands on the page, in pixels, by its name."""
    return {
        bars.get_label(): bars.lines[0].get_transform().transform(bars.lines[0].get_xydata())[:, 0]
        for bars in axes.containers
    }


def test_intervals_of_one_ratio_stand_side_by_side():
    (axes,) = drawn(_together, lines(4), SMALLER, DENSE).axes
    found = places(axes)
    assert set(found) == {"method0", "method1", "method2", "method3", "nano, dense"}
    for one, other in itertools.combinations([name for name in found if name.startswith("method")], 2):
        assert abs(found[one] - found[other]).min() > 4  # pixels; an interval's caps are 4 wide at 72 to the inch
    assert [text.get_text() for text in axes.texts] == ["ratio 0.2", "ratio 0.3", "ratio 0.4"]


def test_points_at_other_costs_stay_where_they_are():
    apart = lines(1) | {"other": lines(1, (0.9, 0.75, 0.5))["method0"]}
    (axes,) = drawn(_together, apart, {}, DENSE).axes
    for bars in axes.containers:
        costs = sorted(point.cost for point in apart[bars.get_label()])
        assert places(axes)[bars.get_label()] == pytest.approx(
            [axes.transData.transform((cost, 0))[0] for cost in costs]
        )
    assert [text.get_text() for text in axes.texts] == 2 * ["0.2", "0.3", "0.4"]
    assert "ratio" in axes.get_xlabel()


def test_many_methods_have_a_panel_each():
    many = drawn(_apart, lines(7), SMALLER | {"twin": Point(1.0, 0.0, -0.02, 0.02)}, DENSE)
    panels = [axes for axes in many.axes if axes.axison]
    assert [axes.get_title() for axes in panels] == [f"method{n}" for n in range(7)]
    for axes in panels:
        found = places(axes)
        assert set(found) == {axes.get_title(), "nano, dense", "twin, dense"}
        reference = axes.transData.transform((1.0, 0))[0]
        assert reference - found["twin, dense"][0] > 4  # beside the model that costs as much


def test_the_same_points_give_the_same_file(tmp_path):
    files = [tmp_path / "a.svg", tmp_path / "b.svg"]
    for file in files:
        draw_curves(lines(5), SMALLER, DENSE, "GFLOPs", [file], "title")
    assert files[0].read_bytes() == files[1].read_bytes()
    assert "80.0 %" in files[0].read_text()
