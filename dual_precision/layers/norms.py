"""Normalisation with values of its own in every mode."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from dual_precision.layers.facts import Norm, gain_and_offset
from dual_precision.layers.quantized import check_present
from dual_precision.precision import Asked, Modes
from dual_precision.primitives.attention import rms_normalize, rms_normalize_by_row
from dual_precision.primitives.normalization import normalize_batch, scale_and_shift


class SwitchableBatchNorm(nn.Module):
    """Batch normalisation with its own scale, bias, mean and variance in every mode.

    The statistics of the mode that the call names are used, or updated when `train`; those of
    the other modes are left as they are (Yu et al. 2019, arXiv 1812.08928, for widths). Modes may
    share one normalisation, see `Modes.norms`.
    """

    modes: Modes
    momentum: float = 0.9
    epsilon: float = 1e-5

    def facts(self, x: jax.Array, y: jax.Array) -> Norm | None:
        """What it is at inference; None of a class with a call of its own, which may be anything.

        Such a class is deployed as it stands, or says its own facts.
        """
        del x, y
        if type(self).__call__ is not SwitchableBatchNorm.__call__:
            return None
        return Norm(float(self.epsilon), float(self.momentum))

    @nn.compact
    def __call__(self, x: jax.Array, *, precision: Asked, train: bool = False) -> jax.Array:
        mode = self.modes.norm_of(precision)
        channels = x.shape[-1]
        names = tuple(dict.fromkeys(self.modes.norm_of(name) for name in self.modes.names))
        if not self.is_initializing():
            names = tuple(name for name in names if self.has_variable("params", name))
            check_present(mode, names)
        affine, statistics = {}, {}
        for name in names:
            affine[name] = self.param(name, _initial_affine, channels)
            statistics[name] = self.variable("batch_stats", name, _initial_statistics, channels)
        own, running = affine[mode], statistics[mode]
        if not train:
            return scale_and_shift(
                x, *gain_and_offset(**own, **running.value, epsilon=self.epsilon)
            )
        y, mean, var = normalize_batch(x, own["scale"], own["bias"], self.epsilon)
        if not self.is_initializing():
            running.value = {
                "mean": self.momentum * running.value["mean"] + (1 - self.momentum) * mean,
                "var": self.momentum * running.value["var"] + (1 - self.momentum) * var,
            }
        return y


class SwitchableRMSNorm(nn.Module):
    """x / rms(x) * scale over the last axis, with its own scale in every mode; no statistics.

    Attributes:
      epsilon: added to the mean square.
    """

    modes: Modes
    epsilon: float = 1e-5

    @nn.compact
    def __call__(
        self, x: jax.Array, *, precision: Asked, train: bool = False, by_row: bool = False
    ) -> jax.Array:
        """x [..., channels]; `by_row`: the bits of a row do not depend on the number of rows."""
        del train
        mode = self.modes.norm_of(precision)
        names = tuple(dict.fromkeys(self.modes.norm_of(name) for name in self.modes.names))
        if not self.is_initializing():
            names = tuple(name for name in names if self.has_variable("params", name))
            check_present(mode, names)
        scales = {name: self.param(name, _initial_scale, x.shape[-1]) for name in names}
        scale = scales[mode]["scale"]
        if not by_row:
            return rms_normalize(x, scale, self.epsilon)
        rows = x.reshape(-1, x.shape[-1])
        return rms_normalize_by_row(rows, scale, self.epsilon).reshape(x.shape)


def _initial_scale(_: jax.Array, channels: int) -> dict[str, jax.Array]:
    return {"scale": jnp.ones(channels, jnp.float32)}


def _initial_affine(_: jax.Array, channels: int) -> dict[str, jax.Array]:
    return {
        "scale": jnp.ones(channels, jnp.float32),
        "bias": jnp.zeros(channels, jnp.float32),
    }


def _initial_statistics(channels: int) -> dict[str, jax.Array]:
    return {"mean": jnp.zeros(channels, jnp.float32), "var": jnp.ones(channels, jnp.float32)}
