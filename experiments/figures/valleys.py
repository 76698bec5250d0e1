"""How wide the valley is that a network ended in: the loss around its weights.

For experiments/methods/valleys.py and notebooks/04_cyclic_and_bsq.ipynb.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from flax import linen as nn
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from dual_precision.structure import LayerPath
from experiments.figures.drawing import DARK, RECIPES
from experiments.figures.layer_weights import leaves
from experiments.figures.loss_landscape import losses_along, random_direction

_OTHERS = (DARK, "#e09f3e", "#6a994e", "#9c6644")  # kinds beside RECIPES, in turn; of no mode


def losses_around(
    model: nn.Module,
    variables: Mapping[str, Any],
    layers: Sequence[LayerPath],
    places: Sequence[float] | np.ndarray,
    images: np.ndarray,
    labels: np.ndarray,
    directions: int,
    precision: str = "high",
) -> np.ndarray:
    """Mean cross entropy at weights + t * direction, for each of some random directions.

    Every filter of a direction has the norm of the filter that it moves, so that t is a share of
    the weights and networks of other scales compare; see `loss_landscape.random_direction`.

    Returns:
      float [directions, places].
    """
    kernels = leaves(variables["params"], layers, "kernel")
    return np.stack(
        [
            losses_along(
                model, variables, random_direction(kernels, seed), places, images, labels, precision
            )
            for seed in range(directions)
        ]
    )


def sharpness(losses: np.ndarray, places: Sequence[float] | np.ndarray, radius: float) -> float:
    """The mean rise of the loss at distance `radius` from the weights, both ways, all directions.

        mean over directions d and signs of L(w +- radius * d) - L(w)

    Args:
      losses: as `losses_around`; places: must hold -radius, 0 and radius.

    >>> sharpness(np.array([[3.0, 1.0, 5.0]]), [-0.5, 0.0, 0.5], 0.5)
    3.0
    """
    where = np.asarray(places)
    ends = [int(np.argmin(np.abs(where - t))) for t in (-radius, radius)]
    (middle,) = np.flatnonzero(where == 0)
    return float(np.mean(losses[:, ends] - losses[:, [middle]]))


def draw_valleys(
    places: Sequence[float] | np.ndarray, losses: Mapping[str, Sequence[np.ndarray]]
) -> Figure:
    """Mean loss around networks of several kinds; a thin line for each network.

    Args:
      losses: name of a kind -> [directions, places] of every network of it.

    Raises:
      ValueError: more kinds than there are colours.
    """
    others = [name for name in losses if name not in RECIPES]
    if len(others) > len(_OTHERS):
        raise ValueError(
            f"{len(others)} kinds of networks beside {[*RECIPES]}: expected at most {len(_OTHERS)}"
        )
    colours = RECIPES | dict(zip(others, _OTHERS, strict=False))
    figure, axes = plt.subplots(figsize=(4.6, 3.2), layout="constrained")
    for name, networks in losses.items():
        colour = colours[name]
        means = [np.mean(own, axis=0) for own in networks]
        for mean in means:
            axes.plot(places, mean, color=colour, lw=0.7, alpha=0.5)
        axes.plot(places, np.mean(means, axis=0), color=colour, lw=1.8, label=name)
    axes.set(xlabel="t, in norms of the filters", ylabel="loss")
    axes.set_yscale("log")
    # Losses of a valley differ less than tenfold: plain numbers in between, no powers of ten.
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.legend(loc="upper center")  # the valley leaves it free
    axes.grid(alpha=0.25)
    return figure
