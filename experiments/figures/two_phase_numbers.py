"""The numbers of notebooks/02_two_phase.ipynb: a study opened, then functions of arrays."""

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict

from dual_precision.data import Images
from dual_precision.loading import load
from dual_precision.primitives.nested import encode
from dual_precision.structure import Example, Layer, structure_of
from dual_precision.tasks.classification import Classification
from dual_precision.training.checkpoint import Checkpoints
from dual_precision.training.initialize import FitWeightSteps, fit_weight_steps
from dual_precision.training.metrics import evaluate
from dual_precision.training.state import initial_variables
from experiments.study.runner import finished
from experiments.workdir import config_of_run

TreePath = tuple[str, ...]
Variables = Mapping[str, Any]
Leaves = dict[TreePath, np.ndarray]  # some leaves of a parameter tree: ("conv1", "kernel") -> array


def open_study(study: Path) -> dict[str, Any]:
    """The results of a study, complete or not.

    Raises:
      FileNotFoundError: there are none; the message has the command that makes some.
    """
    path = study / "results.json"
    if not path.exists():
        raise FileNotFoundError(
            f"no study in {study}: start `python -m experiments.study --preset=quick` (hours on two"
            " CPU cores; results appear while it runs), or a small one, `python -m"
            " experiments.study --preset=digits --seeds=1`, and set STUDY=runs/study-digits"
        )
    return json.loads(path.read_text())


def find_network(study: Path, results: Mapping[str, Any]) -> Path:
    """The workdir of the first pair's `two_phase joint`, else of any finished two_phase network.

    Raises:
      FileNotFoundError: none is finished; the message has the command that goes on.
    """
    pair, cells = results["pairs"][0], study / "cells"
    others = [p for p in sorted(cells.glob("two_phase-*")) if p.suffix != ".replaced"]
    for workdir in [cells / f"two_phase-joint-{pair['low']}-{pair['high']}-seed0", *others]:
        if finished(workdir) and Checkpoints(workdir).steps():
            return workdir
    raise FileNotFoundError(
        f"no finished two_phase network in {cells}: start `python -m experiments.study"
        f" --preset={results['preset']} --workdir={study}`, which goes on where the study stands"
    )


def stages(workdir: Path, model: nn.Module, example: Example) -> dict[str, Variables]:
    """Title -> variables: before phase 1, as its start prepares them, then after every phase.

    Phases whose end the workdir no longer holds are left out, and so is the start of a run that
    began with a trained network.

    Args:
      example: what the model takes, see `structure_of`.
    """
    config = config_of_run(workdir)
    phases = config.recipe.phases()
    found: dict[str, Variables] = {}
    if not config.init:
        start = initial_variables(model, example, config.seed)
        for event in phases[0].start:
            if isinstance(event, FitWeightSteps):
                structure = structure_of(model, example)
                start["params"] = fit_weight_steps(start["params"], structure, event.mode)
        found["before phase 1"] = start
    checkpoints = Checkpoints(workdir)
    for step in checkpoints.phase_ends():
        index = checkpoints.about(step)["progress"]["phase"]
        found[f"after phase {index + 1} ({phases[index].name})"] = load(workdir, step)[1]
    return found


def switching_layers(layers: Mapping[TreePath, Layer]) -> dict[TreePath, Layer]:
    """Layers whose weights the two modes read with different widths."""
    return {
        path: layer
        for path, layer in layers.items()
        if layer.table["low"].weights != layer.table["high"].weights
    }


def width(layer: Layer, mode: str) -> int:
    """Bits of the codes that a mode reads; all stored ones where it reads float latents."""
    bits = layer.table[mode].weights or layer.stored
    assert bits is not None, "every layer of a two_phase network is on the grid"
    return bits


def leaves(params: Mapping[str, Any], paths: Iterable[TreePath], *names: str) -> Leaves:
    """The named leaves ("kernel", ...) of the layers at `paths`."""
    flat = flatten_dict(params)
    return {(*path, name): np.asarray(flat[(*path, name)]) for path in paths for name in names}


def codes(params: Mapping[str, Any], layers: Mapping[TreePath, Layer], mode: str) -> np.ndarray:
    """The codes that a mode reads, of all weights of the layers, in one row."""
    found = []
    for path, layer in layers.items():
        kernel, step = leaves(params, [path], "kernel", "step").values()
        assert layer.stored is not None
        each = encode(jnp.asarray(kernel), jnp.asarray(step), width(layer, mode), layer.stored)
        found.append(np.ravel(each))
    return np.concatenate(found)


# Answers of the two modes.

VERDICTS = (
    "both right",
    "only low right",
    "only high right",
    "both wrong, same answer",
    "both wrong, two answers",
)


def verdicts(low: np.ndarray, high: np.ndarray, labels: np.ndarray) -> dict[str, int]:
    """How many images fall under each of VERDICTS; `low` and `high` are answers [N]."""
    right_low, right_high, same = low == labels, high == labels, low == high
    wrong = ~right_low & ~right_high
    masks = (right_low & right_high, right_low & ~same, right_high & ~same, wrong & same)
    counts = [int(mask.sum()) for mask in (*masks, wrong & ~same)]
    return dict(zip(VERDICTS, counts, strict=True))


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities [N, classes] of logits [N, classes]."""
    return np.asarray(jax.nn.softmax(np.asarray(logits, np.float32), axis=-1))


def disagreements(low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Images on which the two modes answer differently, the firmest contradiction first.

    The margin of an image is by how much each mode prefers its own answer a to the other's b, on
    average: ((low_a - low_b) + (high_b - high_a)) / 2, in 0..1.

    Args:
      low, high: probabilities [N, classes].

    Returns:
      (indices, margins), the largest margin first.
    """
    ours, theirs = low.argmax(-1), high.argmax(-1)
    rows = np.flatnonzero(ours != theirs)
    a, b = ours[rows], theirs[rows]
    margins = (low[rows, a] - low[rows, b] + high[rows, b] - high[rows, a]) / 2
    order = np.argsort(-margins, kind="stable")
    return rows[order], margins[order]


@dataclasses.dataclass(frozen=True)
class Reliability:
    """Answers in bins of equal width by their confidence; nan where a bin is empty."""

    edges: np.ndarray  # [bins + 1], 0 to 1
    confidence: np.ndarray  # mean, [bins]
    accuracy: np.ndarray  # [bins]
    count: np.ndarray  # [bins]

    @property
    def error(self) -> float:
        """Expected calibration error: sum over bins of share * |accuracy - confidence|."""
        gaps = np.abs(self.accuracy - self.confidence)
        return float(np.nansum(gaps * self.count) / self.count.sum())


def reliability(probabilities: np.ndarray, labels: np.ndarray, bins: int = 10) -> Reliability:
    """Bins ((m - 1) / bins, m / bins]; Guo et al. 2017, arXiv 1706.04599.

    Args:
      probabilities: [N, classes]; labels: int [N].
    """
    confidence = probabilities.max(-1).astype(np.float64)
    right = probabilities.argmax(-1) == labels
    place = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    count = np.bincount(place, minlength=bins)
    filled = np.where(count, count, np.nan)
    means = [np.bincount(place, each, bins) / filled for each in (confidence, right)]
    return Reliability(np.linspace(0, 1, bins + 1), means[0], means[1], count)


# The loss along a line through the weights.


def random_direction(kernels: Leaves, seed: int) -> Leaves:
    """Normal noise, scaled so that every filter (output channel) has the norm of the kernel's own.

    Source: Li et al. 2018, "Visualizing the Loss Landscape of Neural Nets", arXiv 1712.09913.
    """
    generator = np.random.default_rng(seed)
    found = {}
    for path, kernel in kernels.items():
        noise = generator.standard_normal(kernel.shape)
        axes = tuple(range(kernel.ndim - 1))
        norms = [np.sqrt((x.astype(np.float64) ** 2).sum(axes)) for x in (kernel, noise)]
        found[path] = (noise * (norms[0] / norms[1])).astype(np.float32)
    return found


def crossings(
    kernel: np.ndarray, direction: np.ndarray, step: np.ndarray, bits: int, stored: int
) -> np.ndarray:
    """Every t at which a weight of kernel + t * direction changes its `bits`-wide code; sorted.

    Between two of them, of all kernels that move, a mode of that width computes the same numbers.
    """
    top = 2 ** (bits - 1)
    edges = np.arange(1 - top, top) * 2.0 ** (stored - bits)  # inner ones: the outer cells are open
    with np.errstate(divide="ignore", invalid="ignore"):
        at = (edges * step[:, None] - kernel[..., None]) / direction[..., None]
    return np.sort(at[np.isfinite(at)])


def stretches(
    params: Mapping[str, Any], layers: Mapping[TreePath, Layer], direction: Leaves, changes: int
) -> np.ndarray:
    """The intervals around t = 0 within which low's codes stay: edges [changes + 2], sorted.

    Args:
      layers: those that `direction` moves.
      changes: how many changes of a code, the nearest ones, the edges hold between their ends.
    """
    found = []
    for path, layer in layers.items():
        kernel, step = leaves(params, [path], "kernel", "step").values()
        assert layer.stored is not None
        bits = width(layer, "low")
        found.append(crossings(kernel, direction[(*path, "kernel")], step, bits, layer.stored))
    at = np.concatenate(found)
    at = at[np.argsort(np.abs(at))][: changes + 1]
    reach = np.abs(at[-1])
    return np.sort([-reach, *at[:-1], reach])


def losses_along(
    model: nn.Module,
    variables: Variables,
    direction: Leaves,
    places: Sequence[float] | np.ndarray,
    images: np.ndarray,
    labels: np.ndarray,
    precision: str,
) -> np.ndarray:
    """Mean cross entropy of a mode at parameters + t * direction, for each t of `places`."""
    task, split = Classification(images.shape[1:]), Images(images, labels)
    flat, losses = flatten_dict(variables["params"]), []
    for t in places:
        moved = {p: np.asarray(flat[p]) + np.float32(t) * each for p, each in direction.items()}
        there = {**variables, "params": unflatten_dict({**flat, **moved})}
        result = evaluate(
            model, there, split, task=task, precision=precision, batch_size=len(images)
        )
        losses.append(result["loss"])
    return np.array(losses)
