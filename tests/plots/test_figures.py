"""Figures show the numbers they were given, in colours read on both themes, and refuse what does not fit."""

import matplotlib
import numpy as np
import pytest
from matplotlib import pyplot
from matplotlib.colors import to_rgb

from minattn.plots import curves, heatmap, ratios, style
from minattn.plots.figures import COLOURS, GREY

WHITE, DARK = "#ffffff", "#121212"


def contrast(one, other):
    def luminance(colour):
        c = np.array(to_rgb(colour))
        linear = np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)
        return float(linear @ [0.2126, 0.7152, 0.0722])

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_text_and_lines_can_be_read_on_both_themes():
    for page in (WHITE, DARK):
        assert contrast(GREY, page) > 4
        for colour in COLOURS:
            assert contrast(colour, page) > 2.7


def test_style_is_transparent_and_leaves_no_trace():
    before = dict(matplotlib.rcParams)
    figure = curves({"a": [1, 2]}, xlabel="x", ylabel="y")
    assert dict(matplotlib.rcParams) == before
    assert figure.get_facecolor()[3] == 0 and figure.axes[0].get_facecolor()[3] == 0
    assert style()["text.color"] == GREY
    assert not pyplot.get_fignums()


def test_heatmap_draws_the_weights_with_one_scale_for_all_heads():
    weights = np.random.default_rng(0).random((2, 3, 5))
    figure = heatmap(weights)
    first, second, bar = figure.axes
    for head, axis in enumerate((first, second)):
        np.testing.assert_array_equal(axis.images[0].get_array(), weights[head])
        assert axis.images[0].get_clim() == (0.0, weights.max())
        assert axis.get_title() == f"head {head}"
        assert axis.get_xlabel() == "key j"
    assert first.get_ylabel() == "query i" and second.get_ylabel() == ""
    assert bar.get_ylabel() == "weight"


def test_heatmap_labels_and_numbers():
    weights = np.array([[1.0, 0.0], [0.25, 0.75], [0.5, np.nan]])
    axis = heatmap(weights, queries=["a", "b", "c"], keys=["x", "y"], limits=(0, 2), label="score").axes[0]
    assert [t.get_text() for t in axis.get_yticklabels()] == ["a", "b", "c"]
    assert [t.get_text() for t in axis.get_xticklabels()] == ["x", "y"]
    assert [t.get_text() for t in axis.texts] == ["1.00", "0.00", "0.25", "0.75", "0.50"]
    assert axis.images[0].get_clim() == (0, 2)
    assert axis.images[0].get_array().mask[2, 1] and axis.images[0].get_array().mask.sum() == 1
    assert [t.get_position() for t in axis.texts][3] == (1, 1)
    assert not heatmap(np.ones((9, 9))).axes[0].texts


def test_heatmap_writes_dark_on_light_and_light_on_dark():
    low, high = heatmap(np.array([[0.0, 1.0]])).axes[0].texts
    assert contrast(low.get_color(), matplotlib.colormaps["viridis"](0.0)) > 4.5
    assert contrast(high.get_color(), matplotlib.colormaps["viridis"](1.0)) > 4.5


def test_heatmap_with_negative_entries_keeps_them_on_the_scale():
    assert heatmap(np.array([[-2.0, 1.0]])).axes[0].images[0].get_clim() == (-2.0, 1.0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"weights": np.ones(3)}, r"weights must have shape \(N, M\) or \(H, N, M\), got \(3,\)"),
        ({"weights": np.ones((0, 3))}, r"weights must have shape"),
        ({"weights": np.ones((2, 3)), "queries": ["a"]}, "queries must hold 2 labels, got 1"),
        ({"weights": np.ones((2, 3)), "keys": ["a"]}, "keys must hold 3 labels, got 1"),
        ({"weights": np.ones((2, 2, 3)), "titles": ["a"]}, "titles must hold 2 labels, got 1"),
    ],
)
def test_heatmap_refuses_what_does_not_fit(arguments, message):
    with pytest.raises(ValueError, match=message):
        heatmap(**arguments)


def test_curves_are_told_apart_by_colour_and_by_dash():
    figure = curves({"a": [1, 2], "b": [3, 4]}, [10, 20], xlabel="step", ylabel="loss", title="t", log="y")
    (axis,) = figure.axes
    a, b = axis.lines
    assert a.get_ydata().tolist() == [1, 2] and b.get_ydata().tolist() == [3, 4]
    assert a.get_xdata().tolist() == [10, 20]
    assert (a.get_color(), b.get_color()) == COLOURS[:2] and a.get_linestyle() != b.get_linestyle()
    assert (axis.get_xlabel(), axis.get_ylabel(), axis.get_title()) == ("step", "loss", "t")
    assert (axis.get_xscale(), axis.get_yscale()) == ("linear", "log")
    assert [t.get_text() for t in axis.get_legend().get_texts()] == ["a", "b"]
    assert curves({"a": [5, 6, 7]}, xlabel="", ylabel="").axes[0].lines[0].get_xdata().tolist() == [0, 1, 2]


def test_curves_refuse_what_does_not_fit():
    with pytest.raises(ValueError, match="lines must name at least one curve"):
        curves({}, xlabel="", ylabel="")
    with pytest.raises(ValueError, match="log must be '', 'x', 'y' or 'xy', got 'z'"):
        curves({"a": [1]}, xlabel="", ylabel="", log="z")
    with pytest.raises(ValueError, match=r"lines\['a'\] must have the shape of x, \(3,\), got \(2,\)"):
        curves({"a": [1, 2]}, [1, 2, 3], xlabel="", ylabel="")


def test_ratios_start_at_one():
    (axis,) = ratios({"fast": 0.5, "slow": 4.0}, label="ours / theirs").axes
    assert [(bar.get_x(), bar.get_width()) for bar in axis.patches] == [(1, -0.5), (1, 3.0)]
    assert [t.get_text() for t in axis.texts] == ["0.50×", "4.00×"]
    assert [t.get_text() for t in axis.get_yticklabels()] == ["fast", "slow"]
    assert axis.get_xscale() == "log" and axis.yaxis_inverted()
    low, high = axis.get_xlim()
    assert low < 0.5 and high > 4


@pytest.mark.parametrize("bad", [{}, {"a": 0.0}, {"a": -1.0}, {"a": np.nan}, {"a": np.inf}])
def test_ratios_refuse_what_is_no_ratio(bad):
    with pytest.raises(ValueError, match="values must be positive and finite"):
        ratios(bad, label="")
