"""The figure of a search: accuracy against cost, and the front."""

from typing import Any

from matplotlib import pyplot as plt

from dual_precision.search.evolve import front_of
from dual_precision.search.state import State
from experiments.figures.drawing import AUTO, COLOURS, GREY


def draw_front(state: State) -> Any:
    """Every candidate, the uniform ones, and the front, on a logarithmic axis of cost."""
    figure, axes = plt.subplots(figsize=(6, 3.6), layout="constrained")
    found = state.evaluated
    axes.scatter([e.cost for e in found], [e.accuracy for e in found], s=9, c=GREY, alpha=0.6)
    uniform = [e for e in found if len(set(e.candidate)) == 1]
    label = "one width for all layers"
    x, y = [e.cost for e in uniform], [e.accuracy for e in uniform]
    axes.scatter(x, y, s=18, c=COLOURS["low"], marker="s", label=label)
    front = front_of(found)
    x, y = [e.cost for e in front], [e.accuracy for e in front]
    axes.step(x, y, where="post", c=AUTO, label=f"front of {len(found)}")
    axes.set_xscale("log")
    axes.set_xlabel("BitOps per image")
    axes.set_ylabel(f"validation accuracy in {state.space.mode}, %")
    axes.legend(loc="lower right")
    return figure
