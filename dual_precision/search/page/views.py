"""The four linked views and the controls: one set for each browser, all of one session.

(A) the graph, (B) blocks by fitness and how often they were sampled, (C) candidates in two
dimensions, (D) accuracy against cost with the front, and the loss of training. A and B share their
rows, C and D theirs, so that what is selected in one is selected in the other.
"""

from typing import Any

from bokeh.document import Document
from bokeh.layouts import column, row
from bokeh.models import BasicTicker, ColumnDataSource, LinearColorMapper
from bokeh.models.widgets import Button, Div, RadioButtonGroup, Select, TextInput, Toggle
from bokeh.plotting import figure
from bokeh.transform import linear_cmap

from dual_precision.search.edits import Edit
from dual_precision.search.page import shown
from dual_precision.search.page.server import Worker
from dual_precision.search.space import Block

_LOOK = 150  # milliseconds between two looks at the session
_PALETTE = "Viridis256"


def add_views(document: Document, worker: Worker) -> None:
    """What a browser that opens the page gets."""
    views = Views(worker, worker.new_analyst())
    document.title = "Search for widths"
    document.add_root(views.layout())
    document.add_periodic_callback(views.refresh, _LOOK)


class Views:
    """The views of one browser."""

    def __init__(self, worker: Worker, analyst: str) -> None:
        self.worker, self.session, self.analyst = worker, worker.session, analyst
        self._drawn: Any = None
        self._before = 0
        self._blocks: list[Block] = []
        self._candidates: list[Any] = []
        self.blocks, self.candidates = ColumnDataSource(), ColumnDataSource()
        self._colours = LinearColorMapper(palette=_PALETTE, nan_color="#d5d8de")
        self.front, self.paths = ColumnDataSource(), ColumnDataSource()
        self.losses = ColumnDataSource(name="losses")
        self.blocks.selected.on_change("indices", lambda attr, old, new: self._tell_blocks())
        self.candidates.selected.on_change("indices", lambda attr, old, new: self._mark())
        self.status, self.message = Div(name="status"), Div(name="message")
        self.properties, self.common = Div(name="properties"), Div(name="common")
        self.operation = RadioButtonGroup(labels=[*shown.SET_OPERATIONS], active=0, name="sets")
        self.operation.on_change("active", lambda attr, old, new: self._mark())
        self.pause = Toggle(label="pause", name="pause")
        self.pause.on_click(lambda on: self._do(self.session.pause, bool(on), self.analyst))
        self.text = TextInput(placeholder="w3a2", width=90, name="alternative")
        self.bound = TextInput(placeholder="BitOps", width=110, name="bound")
        options: list[Any] = ["preset", *shown.PRESETS]
        self.preset = Select(options=options, value="preset", name="preset")
        self.preset.on_change("value", lambda attr, old, new: self._apply_preset())
        self._update()

    # -- what happens ------------------------------------------------------------------------------

    def refresh(self) -> None:
        """Draws what is new; nothing where nothing is."""
        if self._drawn != self.worker.version:
            self._update()

    def _update(self) -> None:
        self._drawn, state = self.worker.version, self.session.state
        if len(state.before) != self._before:  # rows of candidates have other places now
            self._before, self.candidates.selected.indices = len(state.before), []
        self._blocks = shown.all_blocks(self._blocks, state)
        self._candidates = shown.shown_candidates(state)
        self.candidates.data = shown.candidate_columns(self._candidates)
        known = [one.accuracy for one in state.evaluated] or [0.0]
        self._colours.update(low=min(known), high=max(max(known), min(known) + 1e-9))
        self.front.data = shown.front_columns(state)
        self.paths.data = shown.path_columns(state, self._blocks)
        self.losses.data = {"step": [*range(1, len(state.losses) + 1)], "loss": [*state.losses]}
        self.pause.active, self.pause.label = state.paused, "go on" if state.paused else "pause"
        doing = "training" if self.worker.training else "searching"
        if state.paused or len(state.evaluated) >= self.worker.evaluations:
            doing = "paused" if state.paused else "done"
        self.status.text = (
            f"<b>{doing}</b>: {len(state.evaluated)} of {self.worker.evaluations} candidates,"
            f" {len(state.space.blocks)} blocks, {state.space.size:,} paths, {len(state.history)}"
            f" edits. You are {self.analyst}. Last: {state.last or 'begun'}"
        )
        if self.worker.trouble:
            self._say(self.worker.trouble)
        self._mark()

    def _mark(self) -> None:
        """Blocks that the selected candidates have in common are framed in the graph."""
        state, operation = self.session.state, shown.SET_OPERATIONS[self.operation.active or 0]
        picked = [self._candidates[i] for i in self.candidates.selected.indices]
        marked = shown.common_blocks(state.space, picked, operation)
        self.blocks.data = shown.block_columns(state, self._blocks, marked)
        lines = [
            f"{layer}: {' '.join(t for at, t in sorted(marked) if at == layer)}"
            for layer in state.space.layers
            if any(at == layer for at, _ in marked)
        ]
        told = "<br>".join(lines) or ("nothing" if picked else "brush candidates in C or D")
        self.common.text = f"<b>{operation} of {len(picked)}</b><br>{told}"
        self._tell_blocks()

    def _tell_blocks(self) -> None:
        rows = self.blocks.selected.indices[:8]
        lines = shown.block_lines(self.session.state, self.blocks.data, rows)
        self.properties.text = "<br>".join(lines) or "click a block in A or B"

    def _say(self, text: str) -> None:
        self.message.text = f"<span style='color:#b00020'>{text}</span>" if text else ""

    def _do(self, change: Any, *arguments: Any) -> None:
        """A change of the session, drawn at once; what cannot be is said."""
        try:
            change(*arguments)
            self._say("")
        except ValueError as error:
            self._say(str(error))
        self._update()

    def _chosen(self) -> list[Block]:
        return [self._blocks[i] for i in self.blocks.selected.indices]

    def _edit_chosen(self, kind: str) -> None:
        if not self._chosen():
            self._say("no block is selected: click one in A or B")
        for layer, text in self._chosen():
            self._do(self.session.edit, Edit(kind, layer, text), self.analyst)

    def _add_text(self) -> None:
        layers = dict.fromkeys(layer for layer, _ in self._chosen())
        if not layers:
            self._say("no block is selected: click one of the layer that gets the alternative")
        for layer in layers:
            edit = Edit("add", layer, self.text.value.strip())
            self._do(self.session.edit, edit, self.analyst)

    def _connect(self, kind: str) -> None:
        chosen = sorted(self._chosen(), key=lambda b: self.session.state.space.layers.index(b[0]))
        if len(chosen) != 2:
            self._say("select two blocks of neighbouring layers (shift and click)")
            return
        (layer, first), (_, second) = chosen
        self._do(self.session.edit, Edit(kind, layer, first, next=second), self.analyst)

    def _set_bound(self) -> None:
        text = self.bound.value.strip()
        try:
            most = float(text) if text else None
        except ValueError:
            self._say(f"a bound of {text!r}: expected a number of BitOps, or nothing for none")
            return
        self._do(self.session.edit, Edit("bound", most=most), self.analyst)

    def _apply_preset(self) -> None:
        name = self.preset.value
        if name in shown.PRESETS:
            for edit in shown.preset_edits(self.session.state, name):
                self._do(self.session.edit, edit, self.analyst)
            self.preset.value = "preset"

    # -- what is there -----------------------------------------------------------------------------

    def layout(self) -> Any:
        """All of it."""
        buttons = {
            "remove": lambda: self._edit_chosen("remove"),
            "add back": lambda: self._edit_chosen("add"),
            "keep alone": lambda: self._edit_chosen("keep"),
            "cut": lambda: self._connect("cut"),
            "join": lambda: self._connect("join"),
        }
        top = {
            "undo": lambda: self._do(self.session.undo, self.analyst),
            "train on": self.worker.ask_for_training,
        }
        more = {"add": self._add_text, "set bound": self._set_bound}
        bar = row(self.pause, *map(_button, top.items()), self.preset, self.bound)
        bar.children.append(_button(("set bound", more["set bound"])))
        pane = column(
            Div(text="<b>Block</b>"),
            self.properties,
            row(*map(_button, buttons.items())),
            row(self.text, _button(("add", more["add"]))),
            Div(text="<b>What selected candidates have in common</b>"),
            self.operation,
            self.common,
            width=420,
        )
        views = column(
            row(self._graph(), pane),
            row(self._block_scatter(), self._projection(), self._accuracies(), self._training()),
        )
        return column(self.status, self.message, bar, views, name="page")

    def _graph(self) -> Any:
        layers = self.session.state.space.layers
        plot = figure(
            title="A  graph: click a block",
            width=860,
            height=400,
            tools="tap,box_select,hover,reset",
            tooltips=[("", "@layer @alternative"), ("fitness", "@fitness{0.000}")],
            name="graph",
        )
        plot.multi_line("xs", "ys", source=self.paths, line_color="colour", line_alpha=0.5)
        plot.rect(
            "x",
            "y",
            width=0.62,
            height=0.82,
            source=self.blocks,
            fill_color=linear_cmap("fitness", _PALETTE, 0, 1),
            fill_alpha="alpha",
            line_color="mark",
            line_width=2,
            nonselection_fill_alpha=0.55,
            nonselection_line_alpha=1.0,
        )
        plot.text(
            "x", "y", text="alternative", source=self.blocks, text_align="center",
            text_baseline="middle", text_font_size="10px", text_color="white", text_alpha="alpha",
            nonselection_text_alpha=0.9,
        )  # fmt: skip
        plot.xaxis.ticker = [*range(len(layers))]
        names = [name.replace("/", "/\n") for name in layers]  # so that neighbours do not touch
        plot.xaxis.major_label_overrides = dict(enumerate(names))
        plot.yaxis.visible, plot.grid.visible = False, False
        return plot

    def _block_scatter(self) -> Any:
        plot = figure(
            title="B  blocks",
            x_axis_label="fitness",
            y_axis_label="times sampled",
            tools="tap,box_select,hover,reset",
            tooltips="@layer @alternative",
            **_SMALL,
            name="blocks",
        )
        colour = linear_cmap("fitness", _PALETTE, 0, 1)
        plot.scatter("fitness", "count", source=self.blocks, color=colour, alpha="alpha", size=8)
        return plot

    def _projection(self) -> Any:
        plot = figure(
            title="C  candidates: brush",
            tools="box_select,tap,hover,reset",
            tooltips=[("", "@text"), ("%", "@accuracy{0.00}")],
            **_SMALL,
            name="projection",
        )
        plot.scatter("px", "py", source=self.candidates, color=_by_accuracy(self._colours), size=7)
        return plot

    def _accuracies(self) -> Any:
        plot = figure(
            title="D  accuracy against cost",
            x_axis_label="BitOps",
            y_axis_label="%",
            tools="box_select,tap,hover,reset",
            tooltips=[("", "@text"), ("%", "@accuracy{0.00}")],
            **_SMALL,
            name="accuracies",
        )
        plot.scatter(
            "cost", "accuracy", source=self.candidates, size=6, color=_by_accuracy(self._colours)
        )
        plot.xaxis.ticker = BasicTicker(desired_num_ticks=3)  # 7.000e+7 is long
        plot.step("cost", "accuracy", source=self.front, mode="after", color="#d1495b")
        return plot

    def _training(self) -> Any:
        plot = figure(title="D  loss of training", x_axis_label="record", tools="", **_SMALL)
        plot.line("step", "loss", source=self.losses)
        plot.scatter("step", "loss", source=self.losses)
        return plot


_SMALL: dict[str, Any] = {"width": 320, "height": 300}


def _by_accuracy(colours: Any) -> Any:
    return {"field": "accuracy", "transform": colours}


def _button(named: tuple[str, Any]) -> Any:
    label, act = named
    button = Button(label=label, name=label, width=max(80, 10 * len(label)))
    button.on_click(lambda: act())
    return button
