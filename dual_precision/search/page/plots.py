"""The figures of the page, each drawn from sources that the views keep up to date."""

from collections.abc import Sequence
from typing import Any

from bokeh.models import BasicTicker, ColumnDataSource, LinearColorMapper
from bokeh.plotting import figure
from bokeh.transform import linear_cmap

PALETTE = "Viridis256"
GRAPH_HEIGHT = 400
_SMALL: dict[str, Any] = {"width": 320, "height": 300}


def draw_graph(layers: Sequence[str], paths: ColumnDataSource, blocks: ColumnDataSource) -> Any:
    """A: a column of blocks for every layer, the front and what is cut as lines."""
    plot = figure(
        title="A  alternatives of each layer, by fitness: click a block",
        width=860,
        height=GRAPH_HEIGHT,
        tools="tap,box_select,hover,reset",
        tooltips=[("", "@layer @alternative"), ("fitness", "@fitness{0.000}")],
        name="graph",
    )
    plot.multi_line("xs", "ys", source=paths, line_color="colour", line_alpha=0.5)
    rows = plot.rect(
        "x",
        "y",
        width=0.62,
        height=0.82,
        source=blocks,
        fill_color=linear_cmap("fitness", PALETTE, 0, 1),
        fill_alpha="alpha",
        line_color="mark",
        line_width=2,
        nonselection_fill_alpha="pale",
        nonselection_line_alpha=1.0,
    )
    plot.text(
        "x", "y", text="alternative", source=blocks, text_align="center",
        text_baseline="middle", text_font_size="10px", text_color="ink",
        nonselection_text_alpha=0.9,
    )  # fmt: skip
    plot.hover.renderers = [rows]  # a line has no fitness
    plot.xaxis.ticker = [*range(len(layers))]
    names = [name.replace("/", "/\n") for name in layers]  # so that neighbours do not touch
    plot.xaxis.major_label_overrides = dict(enumerate(names))
    plot.yaxis.visible, plot.grid.visible = False, False
    return plot


def draw_blocks(blocks: ColumnDataSource) -> Any:
    """B: blocks by fitness and by how often they were sampled."""
    plot = figure(
        title="B  blocks: click or draw a rectangle",
        x_axis_label="fitness",
        y_axis_label="times sampled",
        tools="tap,box_select,hover,reset",
        tooltips="@layer @alternative",
        **_SMALL,
        name="blocks",
    )
    colour = linear_cmap("fitness", PALETTE, 0, 1)
    plot.scatter("fitness", "count", source=blocks, color=colour, alpha="alpha", size=8)
    return plot


def draw_projection(candidates: ColumnDataSource, colours: LinearColorMapper) -> Any:
    """C: candidates in two dimensions."""
    plot = figure(
        title="C  candidates: draw a rectangle",
        tools="box_select,tap,hover,reset",
        tooltips=[("", "@text"), ("%", "@accuracy{0.00}")],
        **_SMALL,
        name="projection",
    )
    plot.scatter("px", "py", source=candidates, color=_by_accuracy(colours), size="size")
    return plot


def draw_accuracies(
    candidates: ColumnDataSource, front: ColumnDataSource, colours: LinearColorMapper
) -> Any:
    """D: accuracy against BitOps, with the front."""
    plot = figure(
        title="D  accuracy against cost",
        x_axis_label="BitOps",
        y_axis_label="validation accuracy, %",
        tools="box_select,tap,hover,reset",
        tooltips=[("", "@text"), ("%", "@accuracy{0.00}")],
        **_SMALL,
        name="accuracies",
    )
    points = plot.scatter(
        "cost", "accuracy", source=candidates, size=6, color=_by_accuracy(colours)
    )
    plot.hover.renderers = [points]
    plot.xaxis.ticker = BasicTicker(desired_num_ticks=3)  # 7.000e+7 is long
    plot.step("cost", "accuracy", source=front, mode="after", color="#d1495b")
    return plot


def draw_losses(losses: ColumnDataSource) -> Any:
    """D: the loss of training, a point for every record."""
    plot = figure(title="D  loss of training", x_axis_label="record of the log", tools="", **_SMALL)
    plot.line("step", "loss", source=losses)
    plot.scatter("step", "loss", source=losses)
    return plot


def _by_accuracy(colours: LinearColorMapper) -> Any:
    return {"field": "accuracy", "transform": colours}
