"""The four linked views and the controls: one set for each browser, all of one session.

(A) the graph, (B) blocks by fitness and how often they were sampled, (C) candidates in two
dimensions, (D) accuracy against cost with the front, and the loss of training. A and B share their
rows, C and D theirs, so that what is selected in one is selected in the other.
"""

import html
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from bokeh.document import Document
from bokeh.layouts import column, row
from bokeh.models import ColumnDataSource, LinearColorMapper
from bokeh.models.widgets import Button, Div, RadioButtonGroup, Select, TextInput, Toggle

from dual_precision.search.edits import Edit
from dual_precision.search.page import plots, shown
from dual_precision.search.page.server import Worker
from dual_precision.search.space import Block, Candidate

_LOOK = 150  # milliseconds between two looks at the session
_ON_TRAINING = (
    "“train on” trains the shared weights with the alternatives that are left; cuts and the bound"
    " are for the search alone. Candidates are evaluated anew after it."
)
_ON_BLOCKS = (
    "“cut” and “join” take two blocks of neighbouring layers (shift and click); “add” takes a width"
    " such as w3a2 for the layer of the selected block."
)
_ON_SETS = "union: one or more have them; intersection: all have them; complement: none has them"


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
        # Of what this analyst has done; trouble of the search stands beside it.
        self._said: tuple[str, ...] = ()
        self._blocks: list[Block] = []
        self._candidates: list[Any] = []
        self._picked: set[Candidate] = set()  # rows of candidates move, the candidates do not
        self.blocks, self.candidates = ColumnDataSource(), ColumnDataSource()
        self._colours = LinearColorMapper(palette=plots.PALETTE, nan_color="#d5d8de")
        self.front, self.paths = ColumnDataSource(), ColumnDataSource()
        self.losses = ColumnDataSource(name="losses")
        self.blocks.selected.on_change("indices", lambda attr, old, new: self._tell_blocks())
        self.candidates.selected.on_change("indices", lambda attr, old, new: self._pick())
        self.status = Div(name="status", width=700)
        self.message = Div(name="message", width=600)
        self.properties, self.common = Div(name="properties"), Div(name="common")
        self.operation = RadioButtonGroup(labels=[*shown.SET_OPERATIONS], active=0, name="sets")
        self.operation.on_change("active", lambda attr, old, new: self._mark())
        self.pause = Toggle(label="pause", name="pause")
        self.pause.on_click(lambda on: self._set_pause(bool(on)))
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
        self._blocks = shown.all_blocks(self._blocks, state)
        self._candidates = shown.shown_candidates(state)
        rows = [i for i, one in enumerate(self._candidates) if one.candidate in self._picked]
        self.candidates.data = shown.candidate_columns(self._candidates)
        self.candidates.selected.indices = rows  # which picks what is left of those before
        known = [one.accuracy for one in state.evaluated] or [0.0]
        self._colours.update(low=min(known), high=max(max(known), min(known) + 1e-9))
        self.front.data = shown.front_columns(state)
        self.paths.data = shown.path_columns(state, self._blocks)
        self.losses.data = {"step": [*range(1, len(state.losses) + 1)], "loss": [*state.losses]}
        self.pause.active, self.pause.label = state.paused, "go on" if state.paused else "pause"
        doing = "searching"
        if self.worker.training:  # a search that is paused, or done, is trained on as well
            doing = "training"
        elif state.paused or self.worker.halted:
            doing = "paused"
        elif len(state.evaluated) >= self.worker.evaluations:
            doing = "done"
        elif self.worker.exhausted:
            doing = "no new candidate is found in this space: edit it to go on"
            if state.space.size == 1:
                doing = "one network is left, and it is evaluated"
        most = "none" if state.space.most is None else f"{state.space.most:,.0f} BitOps"
        self.status.text = (
            f"<b>{doing}</b>: {len(state.evaluated)} of {self.worker.evaluations} candidates"
            f" evaluated. Space: {len(state.space.blocks)} blocks, {state.space.size:,} paths,"
            f" bound {most}, {len(state.history)} edits.<br>You are {self.analyst}. What happened"
            f" last: {_as_html(state.last or 'the search began')}"
        )
        self._tell()
        self._mark()

    def _pick(self) -> None:
        # A browser may select rows of a table that has become shorter meanwhile.
        rows = [i for i in self.candidates.selected.indices if i < len(self._candidates)]
        self._picked = {self._candidates[i].candidate for i in rows}
        self._mark()

    def _mark(self) -> None:
        """Blocks that the selected candidates have in common are framed in the graph."""
        state, operation = self.session.state, shown.SET_OPERATIONS[self.operation.active or 0]
        picked = [one for one in self._candidates if one.candidate in self._picked]
        marked = shown.common_blocks(state.space, picked, operation)
        self.blocks.data = shown.block_columns(state, self._blocks, marked)
        lines = [
            f"{layer}: {' '.join(t for at, t in sorted(marked) if at == layer)}"
            for layer in state.space.layers
            if any(at == layer for at, _ in marked)
        ]
        told = "<br>".join(lines) or ("nothing" if picked else "draw a rectangle in C or D")
        self.common.text = f"<b>{operation} of {len(picked)}</b><br>{told}"
        self._tell_blocks()

    def _tell_blocks(self) -> None:
        rows = self.blocks.selected.indices[:8]
        lines = shown.block_lines(self.session.state, self.blocks.data, rows)
        self.properties.text = "<br>".join(lines) or "click a block in A or B"

    def _say(self, *texts: str) -> None:
        self._said = texts
        self._tell()

    def _tell(self) -> None:
        each = filter(None, dict.fromkeys([*self._said, self.worker.trouble]))
        told = "<br>".join(map(_as_html, each))
        self.message.text = f"<span style='color:#b00020'>{told}</span>" if told else ""

    def _do(self, *changes: Callable[[], None]) -> None:
        """Changes of the session, drawn at once; of all that cannot be, each reason is said once.

        One that cannot be does not keep the next ones from being made.
        """
        reasons: dict[str, None] = {}
        for change in changes:
            try:
                change()
            except (ValueError, OSError) as error:  # OSError: the log cannot be written
                reasons[str(error)] = None
        self._say(*reasons)
        self._update()

    def _edit(self, edits: Sequence[Edit]) -> None:
        self._do(*(partial(self.session.edit, edit, self.analyst) for edit in edits))

    def _set_pause(self, on: bool) -> None:
        # Bokeh calls this also when `_update` shows what another analyst did: nothing to do then.
        if on != self.session.state.paused:
            self._do(partial(self.session.pause, on, self.analyst))

    def _chosen(self) -> list[Block]:
        return [self._blocks[i] for i in self.blocks.selected.indices]

    def _edit_chosen(self, kind: str) -> None:
        if not self._chosen():
            self._say("no block is selected: click one in A or B")
            return
        self._edit([Edit(kind, layer, text) for layer, text in self._chosen()])

    def _add_text(self) -> None:
        layers = dict.fromkeys(layer for layer, _ in self._chosen())
        if not layers:
            self._say("no block is selected: click one of the layer that gets the alternative")
            return
        self._edit([Edit("add", layer, self.text.value.strip()) for layer in layers])

    def _connect(self, kind: str) -> None:
        layers = self.session.state.space.layers
        chosen = sorted(self._chosen(), key=lambda block: layers.index(block[0]))
        places = [layers.index(layer) for layer, _ in chosen]
        if len(chosen) != 2 or places[1] != places[0] + 1:
            names = ", ".join(f"{layer} {text}" for layer, text in chosen) or "nothing"
            self._say(
                f"{names} selected, to {kind}: expected two blocks of neighbouring layers; click"
                " one, then the other with shift"
            )
            return
        (layer, first), (_, second) = chosen
        self._edit([Edit(kind, layer, first, next=second)])

    def _set_bound(self) -> None:
        text = self.bound.value.strip()
        try:
            most = float(text) if text else None
        except ValueError:
            self._say(f"a bound of {text!r}: expected a number of BitOps, or nothing for none")
            return
        self._edit([Edit("bound", most=most)])

    def _apply_preset(self) -> None:
        name = self.preset.value
        if name in shown.PRESETS:
            self._edit(shown.preset_edits(self.session.state, name))
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
            "undo": lambda: self._do(partial(self.session.undo, self.analyst)),
            "train on": self.worker.ask_for_training,
        }
        more = {"add": self._add_text, "set bound": self._set_bound}
        bar = row(self.pause, *map(_button, top.items()), self.preset, self.bound)
        bar.children.append(_button(("set bound", more["set bound"])))
        bar.children.append(Div(text=_ON_TRAINING, width=560))
        pane = column(
            Div(text="<b>Selected blocks</b>"),
            self.properties,
            row(*map(_button, buttons.items())),
            Div(text=_ON_BLOCKS, width=410),
            row(self.text, _button(("add", more["add"]))),
            Div(text=f"<b>Blocks of selected candidates</b><br>{_ON_SETS}", width=410),
            self.operation,
            self.common,
            width=455,
            height=plots.GRAPH_HEIGHT,
            # What is selected may be long: it must not move the views below while one draws there.
            styles={"overflow-x": "hidden", "overflow-y": "auto"},
        )
        layers = self.session.state.space.layers
        views = column(
            row(plots.draw_graph(layers, self.paths, self.blocks), pane),
            row(
                plots.draw_blocks(self.blocks),
                plots.draw_projection(self.candidates, self._colours),
                plots.draw_accuracies(self.candidates, self.front, self._colours),
                plots.draw_losses(self.losses),
            ),
        )
        return column(row(self.status, self.message), bar, views, name="page")


def _as_html(text: str) -> str:
    """Errors say such as w<bits>, which is no tag."""
    return html.escape(text, quote=False)


def _button(named: tuple[str, Any]) -> Any:
    label, act = named
    button = Button(label=label, name=label, width=max(70, 10 * len(label)))
    button.on_click(lambda: act())
    return button
