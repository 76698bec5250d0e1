"""How often low guesses the same next byte as high, and what each is worth; a minute.

    python -m experiments.lm agreement --workdir=runs/... [--split=validation] [--limit=65536]

Over the bytes that count in evaluation, see `NextByte.batches`. This is what a draft is worth: low
drafts for high, and what agrees is kept.
"""

import dataclasses
from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from dual_precision.tasks.language import NextByte
from dual_precision.tasks.task import Network
from dual_precision.training.compilation import compiler_options
from experiments.lm.trained import read_trained


@dataclasses.dataclass(frozen=True, eq=False)
class Agreement:
    """Shares of bytes that both modes guess alike.

    Attributes:
      overall: of the bytes that count.
      by_position: [context], of all bytes of windows that start anywhere; place p is the guess
        after p + 1 bytes of the window.
      count: bytes that count.
      bits: bits per byte of each of the modes, over these.
    """

    overall: float
    by_position: np.ndarray
    count: int
    bits: tuple[float, float]


def agreement_of(
    model: nn.Module,
    variables: Mapping[str, Any],
    task: NextByte,
    text: np.ndarray,
    modes: tuple[str, str] = ("low", "high"),
) -> Agreement:
    """Of two modes of a network on a text; each carries its own state where there is one."""
    network, rows = Network(model, task), task.evaluation_rows

    @partial(jax.jit, compiler_options=compiler_options())
    def compare(variables: Any, carries: Any, batch: Any) -> Any:
        guesses, after, bits = [], [], []
        for mode, carry in zip(modes, carries, strict=True):
            state: Any = {"batch_stats": {}, "carry": {mode: carry}}
            logits, state = network(variables["params"], state, batch, precision=mode)
            guesses.append(jnp.argmax(logits, axis=-1))
            bits.append(task.measures(logits, batch)["bits"])
            after.append(state["carry"][mode])
        return guesses[0] == guesses[1], jnp.stack(bits), after

    carries = [task.carry(rows) for _ in modes]
    agreed, seen, counted, total = np.zeros(task.context), 0, 0.0, 0.0
    paid = np.zeros(2)
    for batch, mask in task.batches(text, rows):
        same, bits, carries = compare(variables, carries, batch)
        paid += np.asarray(bits)[:, mask].sum(axis=1)
        same, weights = np.asarray(same)[mask], np.asarray(batch["counted"])[mask]
        agreed, seen = agreed + same.sum(axis=0), seen + len(same)
        counted, total = counted + float((same * weights).sum()), total + float(weights.sum())
    first, second = (paid / seen).tolist()
    return Agreement(counted / total, agreed / seen, round(total), (first, second))


def parts_of_window(context: int) -> list[tuple[int, int]]:
    """Positions [first, end), from one eighth to the last half; of a short window fewer.

    >>> parts_of_window(32), parts_of_window(5)
    ([(0, 4), (4, 8), (8, 16), (16, 32)], [(1, 2), (2, 4)])
    """
    eighth = context // 8
    parts = [(0, eighth), *((first, 2 * first) for first in (eighth, context // 4, context // 2))]
    return [(first, end) for first, end in parts if first < end]


def lines_by_position(by_position: np.ndarray) -> list[str]:
    """The agreement in each part of the window; a guess at place p has read p + 1 bytes of it.

    >>> lines_by_position(np.array([1.0, 0.0, 1.0, 1.0]))[0]
    'with    2 to    2 bytes of the window before: 0.00 %'
    """
    return [
        f"with {first + 1:4d} to {end:4d} bytes of the window before:"
        f" {100 * float(by_position[first:end].mean()):.2f} %"
        for first, end in parts_of_window(len(by_position))
    ]


def agreement_command(
    *,
    workdir: str,
    split: str,
    limit: int | None = None,
    data_dir: str | None = None,
    archive: str | None = None,
) -> None:
    """The sub-command `agreement`; its arguments are the flags.

    Raises:
      ValueError: a run that did not train both modes, or see `read_trained`.
    """
    trained = read_trained(workdir, data_dir, archive)
    if not {"low", "high"} <= {*trained.config.recipe.reported}:
        raise ValueError(
            f"{workdir} is a run of --mode={trained.config.mode}, which trains"
            f" {[*trained.config.recipe.reported]}: expected one that trains low and high"
        )
    part = trained.part(split, limit)
    found = agreement_of(trained.model, trained.variables, trained.task, part)
    print(
        f"low and high guess the same next byte {100 * found.overall:.2f} % of the time, over"
        f" {found.count:,} bytes of the {split} text of {trained.config.dataset}; low has"
        f" {found.bits[0]:.3f} bits per byte there, high {found.bits[1]:.3f}"
    )
    print("\n".join(lines_by_position(found.by_position)))
