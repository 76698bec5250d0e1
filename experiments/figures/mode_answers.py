"""What the two modes answer to the same images: who is right, where they differ, how sure they are.

For notebooks/02_two_phase.ipynb.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from experiments.figures.drawing import COLOURS, DASHES, GREY

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


def draw_verdicts(counts: Mapping[str, int]) -> Figure:
    """Who is right how often: a bar for each of VERDICTS."""
    figure, axes = plt.subplots(figsize=(7, 1.9), layout="constrained")
    total = sum(counts.values())
    shares = [100 * counts[name] / total for name in VERDICTS]
    bars = axes.barh(
        VERDICTS,
        shares,
        color=["#c3cad6", COLOURS["low"], COLOURS["high"], GREY, GREY],
        height=0.65,
    )
    labels = [
        f"{counts[name]:,} ({share:.1f} %)" for name, share in zip(VERDICTS, shares, strict=True)
    ]
    axes.bar_label(bars, labels, padding=4)
    axes.invert_yaxis()
    axes.tick_params(axis="y", length=0)
    axes.set(xlabel=f"of {total:,} validation images, %", xlim=(0, max(shares) * 1.2))
    return figure


def draw_disagreements(
    images: np.ndarray,
    labels: np.ndarray,
    probabilities: Mapping[str, np.ndarray],
    margins: np.ndarray,
    class_names: Sequence[str],
    columns: int = 6,
) -> Figure:
    """The images with both answers, how sure each is of its own, and the label; ✓ is right."""
    rows = -(-len(images) // columns)
    figure, grid = plt.subplots(
        rows, columns, figsize=(1.62 * columns, 2.35 * rows), layout="constrained", squeeze=False
    )
    for axes in grid.flat[len(images) :]:
        axes.set_visible(False)
    for i, axes in enumerate(grid.flat[: len(images)]):
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set(visible=True, color="#c3cad6", lw=0.6)
        axes.imshow(images[i].squeeze(), cmap="gray_r", interpolation="nearest")
        lines = [(f"label: {class_names[labels[i]]}", "k")]
        for mode in ("high", "low"):
            answer = probabilities[mode][i].argmax()
            tick = " ✓" if answer == labels[i] else ""
            share = f"{100 * probabilities[mode][i].max():.0f} %"
            lines.append((f"{mode}: {class_names[answer]}, {share}{tick}", COLOURS[mode]))
        lines.append((f"margin {margins[i]:.2f}", "#6c757d"))
        for height, (text, colour) in enumerate(lines):
            axes.annotate(
                text,
                (0, 1),
                (0, 3 + 10.5 * height),
                xycoords="axes fraction",
                textcoords="offset points",
                fontsize=8,
                color=colour,
            )
    return figure


def draw_reliability(modes: Mapping[str, Reliability]) -> Figure:
    """Accuracy over confidence, bin by bin, and below how many answers are in each."""
    figure, grid = plt.subplots(
        2,
        len(modes),
        figsize=(0.6 + 3.4 * len(modes), 4.3),
        height_ratios=(3, 1),
        sharex=True,
        sharey="row",
        layout="constrained",
    )
    for (upper, lower), (mode, found) in zip(grid.T, modes.items(), strict=True):
        width, centres = np.diff(found.edges), (found.edges[:-1] + found.edges[1:]) / 2
        upper.bar(centres, found.accuracy, 0.92 * width, color=COLOURS[mode], alpha=0.55)
        upper.plot([0, 1], [0, 1], color="k", lw=0.9, ls=DASHES)
        upper.plot(found.confidence, found.accuracy, "o", color=COLOURS[mode], ms=4)
        upper.set_title(f"{mode}: expected calibration error {100 * found.error:.1f} %")
        lower.bar(centres, 100 * found.count / found.count.sum(), 0.92 * width, color=GREY)
        lower.set(xlabel="confidence", xlim=(0, 1))
    grid[0, 0].set(ylabel="accuracy", ylim=(0, 1.02))
    grid[1, 0].set_ylabel("answers, %")
    return figure
