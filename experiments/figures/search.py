"""The figures of a search: accuracy against cost with the front, and the fitness of its blocks."""

from typing import Any

import numpy as np
from matplotlib import pyplot as plt

from dual_precision.search.evolve import fitness_of, front_of
from dual_precision.search.state import SearchState
from experiments.figures.drawing import AUTO, COLOURS, GREY


def draw_front(state: SearchState) -> Any:
    """Every candidate, the uniform ones, and the front, on a logarithmic axis of cost."""
    figure, axes = plt.subplots(figsize=(6, 3.6), layout="constrained")
    found = state.evaluated
    axes.scatter([e.cost for e in found], [e.accuracy for e in found], s=9, c=GREY, alpha=0.6)
    uniform = [e for e in found if state.begun.is_uniform(e.candidate)]
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


def draw_fitness(state: SearchState) -> Any:
    """A cell for every block: its fitness, and how many candidates had it; empty where removed."""
    layers = state.space.layers
    blocks = fitness_of(state.space, state.evaluated)
    texts = sorted({text for _, text in blocks})
    fitness = np.full((len(texts), len(layers)), np.nan)
    figure, axes = plt.subplots(figsize=(7, 0.6 + 0.3 * len(texts)), layout="constrained")
    for (layer, text), (value, count) in blocks.items():
        row, column = texts.index(text), layers.index(layer)
        fitness[row, column] = value
        axes.text(column, row, f"{value:.2f}  ({count})", ha="center", va="center", fontsize=7)
    image = axes.imshow(fitness, cmap="YlGn", aspect="auto", alpha=0.7)
    names = [layer.replace("/", "/\n") for layer in layers]
    axes.set_xticks(range(len(layers)), names, fontsize=7)
    axes.set_yticks(range(len(texts)), texts)
    figure.colorbar(image, label="fitness (candidates)")
    return figure
