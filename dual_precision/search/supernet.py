"""A trained network of many widths, which says how accurate each of its candidates is."""

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from dual_precision.precision import Widths, parse
from dual_precision.search.alternatives import SKIP
from dual_precision.search.space import Candidate, Space
from dual_precision.structure import Structure, structure_of
from dual_precision.tasks.task import Batch, Network, Task, Tree
from dual_precision.training.compilation import compiler_options
from dual_precision.training.initialize import seen_from_zeros, with_statistics
from dual_precision.training.metrics import evaluate


class Supernet:
    """Evaluates candidates with the weights that all of them share.

    Widths are values: one trace of the evaluation, and one of the calibration, for all candidates.

    Args:
      calibration: a batch of training examples. The statistics of normalisation become those of
        each candidate on it; None keeps those that training left, a mean over all paths.
    """

    def __init__(
        self,
        model: nn.Module,
        variables: Mapping[str, Tree],
        task: Task,
        validation: Any,
        calibration: Batch | None,
        batch_size: int = 500,
    ) -> None:
        self.network = Network(model, task)
        self.variables = dict(variables)
        self._validation, self._batch_size = validation, batch_size
        self._calibration = calibration

    @cached_property
    def structure(self) -> Structure:
        """Of the network."""
        return structure_of(self.network.model, self.network.task.example)

    def accuracy(self, space: Space, candidate: Candidate) -> float:
        """On the validation split, in percent."""
        asked = widths_of(space, candidate)
        variables = self.calibrated(asked)
        model, task = self.network.model, self.network.task
        found = evaluate(
            model,
            variables,
            self._validation,
            task=task,
            precision=asked,
            batch_size=self._batch_size,
        )
        return 100 * task.score(found)

    def calibrated(self, asked: Widths) -> dict[str, Tree]:
        """The variables, the statistics of normalisation those of a candidate."""
        if self._calibration is None:
            return self.variables
        statistics = self._statistics(self.variables, self._calibration, asked)
        return {**self.variables, "batch_stats": statistics}

    @cached_property
    def _statistics(self) -> Any:
        """(variables, batch, widths) -> batch_stats; one trace."""
        network, structure = self.network, self.structure

        def statistics(variables: Tree, batch: Batch, asked: Widths) -> Tree:
            own = variables["batch_stats"]
            state = {"batch_stats": own, "carry": {}}
            seen = seen_from_zeros(network, variables["params"], state, batch, asked)
            return with_statistics(own, seen, structure, asked)

        return jax.jit(statistics, compiler_options=compiler_options())


def widths_of(space: Space, candidate: Candidate) -> Widths:
    """What the network is asked for, for a candidate to run."""
    # What is left out has some width as well: one trace for all.
    texts = ("w1a1" if text == SKIP else text for text in candidate)
    pairs = [(name, parse(text)) for name, text in zip(space.layers, texts, strict=True)]
    weights = {name: jnp.int32(p.weight_bits) for name, p in pairs}
    activations = {name: jnp.int32(p.activations) for name, p in pairs if p.activations}
    skipped = space.skipped(candidate)
    kept = {block: jnp.int32(block not in skipped) for block in space.skippable}
    return Widths(space.mode, weights, activations, kept=kept or None)
