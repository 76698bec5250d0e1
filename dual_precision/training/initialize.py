"""Events that set what is not learned: steps fitted to weights and to activations, normalisation.

Each is a value with the names that it needs; `phases.Event` says how it is called.
"""

import dataclasses
from collections.abc import Iterable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from dual_precision.layers import CALIBRATION
from dual_precision.precision import FLOAT_NAME, Asked, Modes
from dual_precision.primitives.quantizers import gaussian_weight_step, rescaled_step
from dual_precision.structure import Structure
from dual_precision.tasks.task import Batch, Network, Tree, arguments_of
from dual_precision.training.phases import Moment, Phase
from dual_precision.training.state import TrainState


@dataclasses.dataclass(frozen=True)
class FitWeightSteps:
    """The step of every kernel becomes the best for a normal variable and the width of `mode`."""

    mode: str

    def check(self, modes: Modes, phase: Phase) -> None:
        modes.check_name(self.mode)

    def __call__(self, state: TrainState, moment: Moment) -> TrainState:
        params = fit_weight_steps(state.params, moment.structure, self.mode)
        return dataclasses.replace(state, params=params)


@dataclasses.dataclass(frozen=True)
class CopyNorms:
    """`mode`, and whoever shares its normalisation, takes over the one of `source`, statistics
    included."""

    mode: str
    source: str

    def check(self, modes: Modes, phase: Phase) -> None:
        for name in (self.mode, self.source):
            modes.check_name(name)

    def __call__(self, state: TrainState, moment: Moment) -> TrainState:
        mode, source = map(moment.structure.modes.norm_of, (self.mode, self.source))
        params = copy_mode(state.params, mode, source)
        statistics = copy_mode(state.batch_stats, mode, source)
        return dataclasses.replace(state, params=params, batch_stats=statistics)


@dataclasses.dataclass(frozen=True)
class FitInputSteps:
    """The input steps of `mode`, layer after layer, least squares on one training batch."""

    mode: str

    def check(self, modes: Modes, phase: Phase) -> None:
        modes.check_name(self.mode)
        if self.mode == FLOAT_NAME:
            raise ValueError(f"phase {phase.name!r} fits input steps of 'float', which has none")

    def __call__(self, state: TrainState, moment: Moment) -> TrainState:
        batch = next(moment.batches(1))
        params = fit_input_steps(state, moment.network, moment.structure, self.mode, batch)
        return dataclasses.replace(state, params=params)


@dataclasses.dataclass(frozen=True)
class KeepRanges:
    """The input steps of `mode` become those that cover the ranges of `source`: what `source` had
    learned where it ran at the widths of `mode`."""

    mode: str
    source: str

    def check(self, modes: Modes, phase: Phase) -> None:
        for name in (self.mode, self.source):
            modes.check_name(name)

    def __call__(self, state: TrainState, moment: Moment) -> TrainState:
        flat = flatten_dict(state.params)
        for path, layer in moment.structure.layers.items():
            own, source = (layer.table[name].activations for name in (self.mode, self.source))
            step = flat.get((*path, "input_step", self.source))
            if own is not None and source is not None and step is not None:
                flat[*path, "input_step", self.mode] = jnp.copy(
                    rescaled_step(step, source, own, layer.signed)
                )
        return dataclasses.replace(state, params=unflatten_dict(flat))


@dataclasses.dataclass(frozen=True)
class EstimateNorms:
    """The normalisation statistics of `mode` become their mean over so many training batches,
    weights as they are. Running ranges of inputs, which min-max layers have, stay as they are.

    `count` counts calls of the train step: parts of a batch where gradients are accumulated.
    """

    mode: str
    count: int

    def check(self, modes: Modes, phase: Phase) -> None:
        modes.check_name(self.mode)
        if self.count < 1:
            raise ValueError(f"statistics of {self.count} batches: expected 1 or more")

    def __call__(self, state: TrainState, moment: Moment) -> TrainState:
        batches = moment.batches(self.count)
        statistics = estimate_norms(state, moment.network, moment.structure, self.mode, batches)
        return dataclasses.replace(state, batch_stats=statistics)


def fit_weight_steps(params: Tree, structure: Structure, mode: str) -> Tree:
    """The parameters with every weight step fitted; see FitWeightSteps."""
    flat = flatten_dict(params)
    for path in [p for p in flat if p[-1] == "step"]:
        layer = structure.layers[path[:-1]]
        bits, stored = layer.table[mode].weights, layer.stored
        if bits is not None and stored is not None:
            flat[path] = gaussian_weight_step(flat[(*path[:-1], "kernel")], bits, stored)
    return unflatten_dict(flat)


def copy_mode(tree: Tree, mode: str, source: str) -> Tree:
    """Normalisation values of `source` for `mode`; input steps, which depend on widths, stay."""
    flat = flatten_dict(tree)
    for path in flat:
        if mode in path and "input_step" not in path:
            from_path = tuple(source if key == mode else key for key in path)
            if from_path in flat:  # a mode of float inputs has no range to give
                flat[path] = jnp.copy(flat[from_path])  # one buffer each: the step donates them
    return unflatten_dict(flat)


def fit_input_steps(
    state: TrainState, network: Network, structure: Structure, mode: str, batch: Batch
) -> Tree:
    """The parameters with the input steps of `mode` fitted to a batch; see FitInputSteps.

    Raises:
      ValueError: a layer that takes its inputs for non-negative gets negative ones.
    """
    arguments = arguments_of(batch, state.carry.get(mode, ()))

    @jax.jit
    def measure(variables: Tree, *arguments: Tree) -> Tree:
        collections = [CALIBRATION, "batch_stats"]
        _, updates = network.model.apply(
            variables, *arguments, precision=mode, train=True, mutable=collections
        )
        return updates.get(CALIBRATION, {})

    found = flatten_dict(measure(state.variables, *arguments))
    for path, least in found.items():
        layer = structure.layers.get(path[:-2])
        if path[-2] == "least" and layer and not layer.signed and float(np.min(least)) < 0:
            raise ValueError(
                f"layer {'/'.join(path[:-2])!r} takes inputs of 0 or more and gets"
                f" {float(np.min(least)):.3g}: expected a rectifier before it, or signed=True"
            )
    fitted = {path: step for path, step in found.items() if path[-2] == "input_step"}
    return unflatten_dict({**flatten_dict(state.params), **fitted})


def estimate_norms(
    state: TrainState,
    network: Network,
    structure: Structure,
    mode: str,
    batches: Iterable[Batch],
) -> Tree:
    """batch_stats whose mean and variance of `mode` are the averages of those of `batches`."""

    @jax.jit
    def once(params: Tree, statistics: Tree, carry: Tree, batch: Batch) -> Tree:
        moving = {"batch_stats": statistics, "carry": carry}
        return seen_from_zeros(network, params, moving, batch, mode)

    found = [once(state.params, state.batch_stats, state.carry, batch) for batch in batches]
    mean = jax.tree.map(lambda *own: sum(own) / np.float32(len(own)), *found)
    return with_statistics(state.batch_stats, mean, structure, mode)


def seen_from_zeros(
    network: Network, params: Tree, state: Mapping[str, Tree], batch: Batch, asked: Asked
) -> Tree:
    """batch_stats after one training call on a batch, whatever they were before.

    Args:
      state: "batch_stats" and "carry", as a step has them.
    """
    zeros = jax.tree.map(jnp.zeros_like, state["batch_stats"])
    moving = {**state, "batch_stats": zeros}
    found: Tree = network(params, moving, batch, precision=asked, train=True)[1]["batch_stats"]
    return found


def with_statistics(batch_stats: Tree, seen: Tree, structure: Structure, asked: Asked) -> Tree:
    """batch_stats whose mean and variance of a mode are those that a call from zeros has seen.

    From zeros a running average of c calls in one forward pass becomes (1 - momentum^c) times what
    they have: their average, the last one counting most, as it does in training.

    Args:
      seen: see `seen_from_zeros`.
      asked: the mode, or a call that names it.
    """
    flat, found = flatten_dict(dict(batch_stats)), flatten_dict(seen)
    name = structure.modes.norm_of(asked)
    for path, norm in structure.norms.items():
        share = np.float32(1 - norm.momentum ** structure.norm_calls[path])
        for leaf in [leaf for leaf in flat if leaf[: len(path) + 1] == (*path, name)]:
            flat[leaf] = found[leaf] / share
    return unflatten_dict(flat)
