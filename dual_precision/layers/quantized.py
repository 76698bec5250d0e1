"""Layers whose precision is an argument of the call; nothing in them remembers a mode.

Every layer declares the parameters of all its modes whatever the call names, so that one `init`
gives the tree that every mode uses. What belongs to one mode alone stands under that mode's name
in the tree (`norm/low/scale`, `conv1/input_step/high`); everything else is shared.
"""

from collections.abc import Callable, Collection
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from dual_precision.precision import Modes, stored_bits
from dual_precision.primitives.convolution import conv2d
from dual_precision.primitives.normalization import normalize_batch, per_channel, scale_and_shift
from dual_precision.primitives.quantizers import (
    activation_step,
    gaussian_weight_step,
    quantize_activations,
    quantize_weights,
)

# The collection that, when mutable, has every layer fit its input step to the batch at hand.
CALIBRATION = "calibration"

Initializer = Callable[..., Any]
_kernel_init = nn.initializers.he_normal()
_dense_init = nn.initializers.lecun_normal()


class QuantizedLayer(nn.Module):
    """What Dense and Conv share: one latent kernel, a step per channel, an input step per mode."""

    features: int
    modes: Modes

    def kernel_shape(self, inputs: int) -> tuple[int, ...]:
        """Shape of the kernel for so many input channels, outputs last."""
        raise NotImplementedError

    def _kernel(self, name: str, init: Initializer, inputs: int) -> jax.Array:
        """The kernel as the mode sees it: latent in float, on the nested grid otherwise."""
        self.modes.check_name(name)
        self._check_inputs(inputs)
        kernel = self.param("kernel", init, self.kernel_shape(inputs), jnp.float32)
        table = self.modes.at(self.path)
        stored = stored_bits(table)
        if stored is None:
            return kernel
        narrowest = min(p.weights for p in table.values() if p.weights)
        step = self.param("step", lambda _: gaussian_weight_step(kernel, narrowest, stored))
        bits = table[name].weights
        return kernel if bits is None else quantize_weights(kernel, step, bits, stored)

    def _check_inputs(self, inputs: int) -> None:
        if not self.has_variable("params", "kernel"):
            return
        expected: int = self.get_variable("params", "kernel").shape[-2]
        if inputs != expected:
            raise ValueError(
                f"layer {'/'.join(self.path)!r} got {inputs} channels: expected {expected};"
                " give images of the size and channels that the model was made for"
            )

    def _input(self, name: str, x: jax.Array) -> jax.Array:
        """The input as the mode sees it: as it is in float, unsigned codes times a step else."""
        table = self.modes.at(self.path)
        widths = {mode: p.activations for mode, p in table.items() if p.activations}
        if not widths:
            return x
        steps = self.param("input_step", _initial_input_steps, widths)
        if name not in widths:
            return x
        _check_present(name, steps)
        step = steps[name]
        if self.is_mutable_collection(CALIBRATION) and not self.is_initializing():
            step = activation_step(x, widths[name])
            self.sow(CALIBRATION, "input_step", {name: step}, reduce_fn=lambda _, new: new)
        return quantize_activations(x, step, widths[name])


def _check_present(name: str, present: Collection[str]) -> None:
    """Variables may hold some modes alone, as those that are read of a packed file do."""
    if name not in present:
        raise ValueError(
            f"these variables hold no values of precision {name!r}: expected one of"
            f" {list(present)}; load more of the packed file, or a checkpoint"
        )


def _initial_input_steps(_: jax.Array, widths: dict[str, int]) -> dict[str, jax.Array]:
    """LSQ's first guess, 2 E|x| / sqrt(top), for a rectified standard normal (E|x| = 0.4)."""
    return {mode: jnp.float32(0.8 / (2**bits - 1) ** 0.5) for mode, bits in widths.items()}


class Dense(QuantizedLayer):
    """y = quantize(x) @ quantize(kernel) + bias; x [..., in] -> [..., features]."""

    use_bias: bool = True

    def kernel_shape(self, inputs: int) -> tuple[int, ...]:
        return (inputs, self.features)

    @nn.compact
    def __call__(self, x: jax.Array, *, precision: str) -> jax.Array:
        kernel = self._kernel(precision, _dense_init, x.shape[-1])
        y = self._input(precision, x) @ kernel
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
            y = y + per_channel(bias, y.ndim)
        return y


class Conv(QuantizedLayer):
    """Two-dimensional convolution without bias, zero padding; x [N, H, W, in] -> [N, h, w, out].

    The padding is symmetric, (kernel - 1) / 2 on every side, as in the published CIFAR networks
    (XLA's "SAME" pads strided convolutions on one side only).
    """

    kernel_size: int = 3
    stride: int = 1

    def kernel_shape(self, inputs: int) -> tuple[int, ...]:
        return (self.kernel_size, self.kernel_size, inputs, self.features)

    @nn.compact
    def __call__(self, x: jax.Array, *, precision: str) -> jax.Array:
        kernel = self._kernel(precision, _kernel_init, x.shape[-1])
        return conv2d(self._input(precision, x), kernel, self.stride)


class SwitchableBatchNorm(nn.Module):
    """Batch normalisation with its own scale, bias, mean and variance in every mode.

    The statistics of the mode that the call names are used, or updated when `train`; those of
    the other modes are left as they are (Yu et al. 2019, arXiv 1812.08928, for widths).
    """

    modes: Modes
    momentum: float = 0.9
    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, x: jax.Array, *, precision: str, train: bool = False) -> jax.Array:
        self.modes.check_name(precision)
        channels = x.shape[-1]
        names = self.modes.names
        if not self.is_initializing():
            names = tuple(name for name in names if self.has_variable("params", name))
            _check_present(precision, names)
        affine, statistics = {}, {}
        for name in names:
            affine[name] = self.param(name, _initial_affine, channels)
            statistics[name] = self.variable("batch_stats", name, _initial_statistics, channels)
        own, running = affine[precision], statistics[precision]
        if not train:
            gain = own["scale"] * jax.lax.rsqrt(running.value["var"] + self.epsilon)
            return scale_and_shift(x, gain, own["bias"] - running.value["mean"] * gain)
        y, mean, var = normalize_batch(x, own["scale"], own["bias"], self.epsilon)
        if not self.is_initializing():
            running.value = {
                "mean": self.momentum * running.value["mean"] + (1 - self.momentum) * mean,
                "var": self.momentum * running.value["var"] + (1 - self.momentum) * var,
            }
        return y


def _initial_affine(_: jax.Array, channels: int) -> dict[str, jax.Array]:
    return {"scale": jnp.ones(channels), "bias": jnp.zeros(channels)}


def _initial_statistics(channels: int) -> dict[str, jax.Array]:
    return {"mean": jnp.zeros(channels), "var": jnp.ones(channels)}
