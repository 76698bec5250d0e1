"""What a search leaves: the front, one map of widths within a cost, and a figure."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dual_precision.search.evolve import Evaluated, best_within, front_of
from dual_precision.search.space import Candidate, Space
from dual_precision.search.state import SearchState
from experiments.figures.drawing import pyplot_for_files, save_figure
from experiments.figures.tables import markdown_table
from experiments.workdir import write_whole

_COLUMNS = (
    ("cost", "BitOps/image", "{:.3e}"),
    ("accuracy", "validation %", "{:.2f}"),
    ("uniform", "best uniform of this cost or less %", "{:.2f}"),
    ("candidate", "widths", "{}"),
)


def front_rows(state: SearchState) -> list[dict[str, Any]]:
    """The front, cheapest first, beside the best candidate with one width for all layers.

    Which have one is told by the space as it began: an edit of the layer that reads pixels leaves
    the network in w2a2 what it is.
    """
    uniform = front_of([one for one in state.evaluated if state.begun.is_uniform(one.candidate)])
    rows = []
    for one in front_of(state.evaluated):
        same = best_within(uniform, one.cost)
        rows.append(
            {
                "cost": one.cost,
                "accuracy": one.accuracy,
                "uniform": same.accuracy if same else None,
                "candidate": " ".join(one.candidate),
            }
        )
    return rows


def candidate_of(
    space: Space, widths: Mapping[str, Mapping[str, str]], path: Candidate
) -> Candidate:
    """The path of a map of widths.

    Args:
      path: what a layer has that the map does not name. Training with --widths leaves such a layer
        the widths of its mode, so these belong here, see `Opened.own_path`.

    Raises:
      ValueError: a layer, a mode or a width that the space does not have.
    """
    for layer, own in widths.items():
        if layer not in space.layers or space.mode not in own:
            raise ValueError(
                f"--widths: layer {layer!r} with {dict(own)}: expected widths of mode"
                f" {space.mode!r} of some of {list(space.layers)}"
            )
        index = space.layers.index(layer)
        path = (*path[:index], own[space.mode], *path[index + 1 :])
    lists = zip(space.alternatives, path, strict=True)
    each = tuple(tuple(dict.fromkeys((*known, text))) for known, text in lists)
    dataclasses.replace(space, alternatives=each)  # raises where it is no width of that layer
    return path


def beside(state: SearchState, given: Evaluated) -> str:
    """A line: a map that was given, and the best candidate that costs no more."""
    best = best_within(front_of(state.evaluated), given.cost)
    rest = "nothing that costs no more" if best is None else f"{best.accuracy:.2f} % the best"
    return (
        f"the map of --widths: {given.accuracy:.2f} %, {given.cost:.3e} BitOps,"
        f" {' '.join(given.candidate)}; beside it {rest}"
    )


def leave_search(state: SearchState, folder: Path, bound: float) -> Path:
    """Writes front.json, front.png and widths.json.

    The map in widths.json is the most accurate one of at most `bound` BitOps that is a path of the
    space as the edits have left it: what an analyst has removed, or bounded, is not in it. The
    front is that of all that was evaluated.

    Raises:
      ValueError: nothing that was evaluated is in the space as it is and as cheap.
    """
    rows = front_rows(state)
    bound = bound if state.space.most is None else min(bound, state.space.most)
    inside = [one for one in state.evaluated if state.space.contains(one.candidate)]
    best = best_within(front_of(inside), bound)
    if best is None:
        raise ValueError(
            f"of {len(state.evaluated)} candidates {len(inside)} are in the space as it is now, and"
            f" none of these takes {bound:,.0f} BitOps or less: evaluate more, or give a larger"
            " bound"
        )
    write_whole(folder / "front.json", json.dumps({"rows": rows}, indent=1) + "\n")
    widths = state.space.widths(best.candidate)
    write_whole(folder / "widths.json", json.dumps(widths, indent=1) + "\n")
    pyplot_for_files()  # before a figure is made
    from experiments.figures.search import draw_front

    save_figure(draw_front(state), folder / "front.png")
    print(f"\n{markdown_table(rows, _COLUMNS, left=('candidate',))}\n")
    print(
        f"{len(state.evaluated)} candidates; the best of at most {bound:.3e} BitOps has"
        f" {best.accuracy:.2f} % and {best.cost:.3e} BitOps: {folder / 'widths.json'}"
    )
    if skipped := state.space.skipped(best.candidate):
        print(f'it leaves out blocks: --set skipped="{" ".join(skipped)}"')
    return folder / "widths.json"
