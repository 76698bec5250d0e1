"""Figures of a cascade."""

import pytest
from matplotlib import pyplot as plt

from dual_precision.deploy.cascade.rule import Point
from experiments.figures.serving import draw_cascade


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def test_a_curve_is_drawn_alike_in_every_figure():
    """Whatever other curves stand before it: that of the command and that of the notebook."""
    points = [Point(1.0, 90.0, -1.0, 0.1, mirrored=0.0, escalated=0.1, cost=2.0, relative=0.2)]
    alone = {"low": (20.0, 89.0), "high": (100.0, 91.0)}

    def styles(*names):
        curves = dict.fromkeys(names, points)
        axes = draw_cascade(curves, alone, points[0], "validation").axes[0]
        drawn = {line.get_label(): line for line in axes.lines}
        return [(drawn[name].get_color(), drawn[name].get_linestyle()) for name in names]

    of_command = styles("auto", "auto without the mirrored look")
    of_notebook = styles("cascade", "without reuse", "without the mirrored look", "of another kind")
    assert of_command == [of_notebook[0], of_notebook[2]]
    assert len({*of_notebook}) == 4
