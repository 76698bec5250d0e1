"""Bit-level sparsity: the bits of weights are trained, and those that nobody needs are dropped.

A layer whose weights are float in the mode that is trained gets leaves of bits beside its kernel,
see trained_bits.py. The loss computes with them. The kernel is written from them at the end of
every epoch, for whoever evaluates.

Source: Yang et al. 2021, "BSQ: Exploring Bit-Level Sparsity for Mixed-Precision Neural Network
Quantization", arXiv 2102.10462. Of its published code the quirks are left out: only bits are kept
in [0, 2], and neither they nor steps decay.
"""

import dataclasses
import logging
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import optax
from flax.traverse_util import flatten_dict, unflatten_dict

from dual_precision.precision import FLOAT_NAME, Modes
from dual_precision.primitives.nested import check_bits
from dual_precision.primitives.signed_bits import (
    LARGEST_BIT,
    MOST_BITS,
    SignedBits,
    adjusted,
    group_norms,
    to_signed_bits,
)
from dual_precision.structure import LayerPath, Structure
from dual_precision.tasks.task import Batch, Network, State, Tree
from dual_precision.training.methods.modes import trained_at
from dual_precision.training.methods.trained_bits import (
    BITS,
    bits_found,
    bits_of,
    mean_bits,
    mean_over,
    with_bits,
)
from dual_precision.training.state import Measured, TrainState

if TYPE_CHECKING:
    from dual_precision.training.phases import Moment, Optimizer, Phase, Schedule

log = logging.getLogger(__name__)


def _check_mode(mode: str, modes: Modes, phase: "Phase") -> None:
    modes.check_name(mode)
    if mode == FLOAT_NAME or modes.default[mode].weights is not None:
        raise ValueError(
            f"phase {phase.name!r} trains the bits of layers whose weights are float in {mode!r},"
            f" which is {modes.default.get(mode, mode)}: expected one such as w32a4"
        )


@dataclasses.dataclass(frozen=True)
class ToBits:
    """An event: the float weights of `mode` become `count` bits each, in one layer after another.

    Bits that are not needed are dropped at once, as an adjustment would.

    Raises:
      ValueError: every layer has codes of its own in `mode`, so that there is no bit to train.
    """

    mode: str
    count: int = MOST_BITS

    def check(self, modes: Modes, phase: "Phase") -> None:
        _check_mode(self.mode, modes, phase)
        check_bits(self.count, MOST_BITS)

    def __call__(self, state: TrainState, moment: "Moment") -> TrainState:
        found = {}
        for path, layer in moment.structure.layers.items():
            if layer.table[self.mode].weights is None:
                kernel = flatten_dict(state.params)[*path, "kernel"]
                found[path] = adjusted(to_signed_bits(kernel, self.count))
        if not found:
            raise ValueError(
                f"no layer has float weights in {self.mode!r}, whose bits would be trained: the"
                " network keeps the widths of some, as of the first and the last, and"
                f" {moment.structure.modes.to_json()['layers']} gives others theirs; expected a"
                " layer that has none, or another recipe, which trains with these"
            )
        return dataclasses.replace(state, params=with_bits(state.params, found), opt_state=None)


@dataclasses.dataclass(frozen=True)
class Adjust:
    """An event: bits become exact again, and those that are 0 in a whole layer are dropped.

    What the network computes stays, bit for bit. Momentum begins anew, for the bits are others;
    schedules go on.

    Attributes:
      after: it happens after so many epochs of the phase; () is whenever it is asked to.
    """

    after: tuple[int, ...] = ()

    def __call__(self, state: TrainState, moment: "Moment") -> TrainState:
        if self.after and moment.epoch not in self.after:
            return state
        adjusted_bits = {path: adjusted(own) for path, own in bits_of(state.params).items()}
        params = with_bits(state.params, adjusted_bits)
        found = bits_found(params)
        log.info(
            "epoch %d: %.2f bits per weight, layer by layer %s",
            moment.epoch,
            mean_bits(found, moment.structure.layers),
            " ".join(str(bits) for bits in found.values()),
        )
        return dataclasses.replace(state, params=params, opt_state=None)


@dataclasses.dataclass(frozen=True)
class WriteKernels:
    """An event: kernels become what their bits stand for."""

    def __call__(self, state: TrainState, moment: "Moment") -> TrainState:
        del moment
        found = bits_of(state.params)
        return dataclasses.replace(state, params=with_bits(state.params, found))


@dataclasses.dataclass(frozen=True)
class BitLoss:
    """The loss of `mode` with the weights that the bits stand for, and a price on every bit.

        loss = task loss + alpha * sum_l (weights_l * n_l / all weights) * sum_b |bits_l,b|

    n_l is the number of bits of layer l at present; |bits_l,b| is the norm of bit b of all of its
    weights, positive and negative parts together (equation 5 of the paper).
    """

    mode: str
    alpha: float

    def check(self, modes: Modes, phase: "Phase") -> None:
        """Raises ValueError where the mode has codes already, or alpha rewards bits."""
        _check_mode(self.mode, modes, phase)
        if not 0 <= self.alpha < math.inf:
            raise ValueError(f"alpha={self.alpha}: expected a finite number, 0 or more")

    def __call__(
        self,
        network: Network,
        params: Tree,
        state: State,
        batch: Batch,
        key: jax.Array,
        values: Mapping[str, jax.Array],
    ) -> tuple[jax.Array, tuple[State, Measured]]:
        del values
        bits = bits_of(params)
        weighted, price = with_bits(params, bits), price_of(bits)
        loss, (state, metrics) = trained_at(self.mode, network, weighted, state, batch, key)
        metrics |= {"price": price, "trained_bits_per_weight": jnp.float32(_trained_bits(bits))}
        return loss + self.alpha * price, (state, metrics)


def _trained_bits(bits: Mapping[LayerPath, SignedBits]) -> float:
    """Mean of n_l over weights, see `BitLoss`: 1, not 0, in a layer that has become zeros."""
    return mean_over({path: own.positive.shape[0] for path, own in bits.items()}, _sizes(bits))


def _sizes(bits: Mapping[LayerPath, SignedBits]) -> dict[LayerPath, int]:
    return {path: math.prod(own.positive.shape[1:]) for path, own in bits.items()}


def price_of(bits: Mapping[LayerPath, SignedBits]) -> jax.Array:
    """What alpha is multiplied by, see `BitLoss`; shape ()."""
    sizes = _sizes(bits)
    whole, price = sum(sizes.values()), jnp.float32(0)
    for path, own in bits.items():
        share = sizes[path] * own.positive.shape[0] / whole
        price = price + share * group_norms(own)
    return price


@dataclasses.dataclass(frozen=True)
class BitOptimizer:
    """Any optimizer, whose updates leave no bit below 0 or above 2."""

    inner: "Optimizer"

    def check(self, modes: Modes, phase: "Phase") -> None:
        if check := getattr(self.inner, "check", None):
            check(modes, phase)

    def __call__(
        self,
        structure: Structure,
        precisions: Sequence[str],
        schedules: "Mapping[str, Schedule]",
    ) -> optax.GradientTransformation:
        return optax.chain(self.inner(structure, precisions, schedules), keep_bits_in_range())


def keep_bits_in_range() -> optax.GradientTransformation:
    """Trims updates so that bits stay in 0 to LARGEST_BIT; it follows the learning rate."""

    def update(updates: Tree, state: Any, params: Tree | None = None) -> tuple[Tree, Any]:
        if params is None:
            raise ValueError("keep_bits_in_range needs the parameters: update(g, state, params)")
        flat, now = flatten_dict(updates), flatten_dict(params)
        for path in flat:
            if path[-2:] in ((BITS, "positive"), (BITS, "negative")):
                flat[path] = jnp.clip(now[path] + flat[path], 0.0, LARGEST_BIT) - now[path]
        return unflatten_dict(flat), state

    return optax.GradientTransformation(lambda _: optax.EmptyState(), update)
