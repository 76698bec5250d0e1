"""The recurrent half of an LSTM: one matrix that is called for every byte, its input signed."""

import math
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn

from dual_precision.layers.facts import Layer
from dual_precision.layers.quantized import ROUNDING, Initializer, QuantizedLayer
from dual_precision.precision import Asked, Resolved
from dual_precision.primitives.gradients import quantize_gradient, refuse_gradient
from dual_precision.primitives.recurrence import Carry, run_gates

_OF_A_CALL = ("__call__", "product")  # what its forms on planes know, and derived classes may not


class Recurrence(QuantizedLayer):
    """(gates [N, T, 4H], (c, h)) -> (h [N, T, H], (c, h)); gates are products with inputs.

        i, f, g, o = gates_t + quantize(h) @ quantize(kernel) + bias
        c = sigmoid(f) * c + sigmoid(i) * tanh(g);   h = sigmoid(o) * tanh(c)

    The order of the gates is that of `nn.OptimizedLSTMCell`; the bias of the forget gate starts
    at 1. |h| < 1, of either sign: the layer is signed.

    Attributes:
      features: H; the kernel is [H, 4H].
    """

    signed: bool = True
    use_bias: bool = True

    kernel_init: ClassVar[Initializer] = staticmethod(nn.initializers.orthogonal())

    def kernel_shape(self, inputs: int) -> tuple[int, ...]:
        del inputs
        return (self.features, 4 * self.features)

    def product(self, x: jax.Array, kernel: jax.Array) -> jax.Array:
        return x @ kernel

    def check_call(self, x: jax.Array) -> None:
        super().check_call(x)
        if not self.signed:
            raise ValueError(
                f"{self._named} has signed=False: expected True, as h has either sign; a class of"
                " another quantizer comes behind: class Mine(Recurrence, Quantizer)"
            )
        if x.ndim != 3 or x.shape[-1] != 4 * self.features:
            raise ValueError(
                f"{self._named} got {list(x.shape)}: expected [N, T, {4 * self.features}], four"
                f" gates of {self.features} features"
            )

    @nn.compact
    def __call__(  # type: ignore[override]
        self, gates: jax.Array, carry: Carry, *, precision: Asked
    ) -> tuple[jax.Array, Carry]:
        self.check_call(gates)
        asked = self.modes.resolve(self.path, precision)
        kernel = self._kernel(self.features)
        grid = self.grid_of_weights(asked, kernel)
        bias = self.param("bias", _forget_one, 4 * self.features)
        seen = carry[1]
        if self.fits_inputs():
            # The grid of h is fitted to what h is without it.
            free, _ = run_gates(
                gates + bias[None, None], carry, lambda h, _: self.product(h, kernel)
            )
            seen = free.reshape(-1, self.features)
        inputs = self.grid_of_inputs(asked, seen)
        weights = kernel if grid is None else self.weights_on(kernel, grid)
        given, back = self._gradient_of(asked, gates.shape[1])

        def product(h: jax.Array, key: Any) -> jax.Array:
            h = h if inputs is None else self.inputs_on(h, inputs)
            return back(self.product(h, weights), key)

        return run_gates(gates + bias[None, None], carry, product, given)

    def facts(self, x: jax.Array, y: Any) -> Layer:
        """A call for every byte."""
        length, kernel, own = x.shape[1], self.kernel_shape(self.features), type(self)
        return Layer(
            table=self.modes.at(self.path),
            kernel=kernel,
            macs=length * math.prod(kernel),
            inputs=length * self.features,
            stored=self.stored_bits(),
            nested=self._nested,
            signed=True,
            recurrent=all(getattr(own, name) is getattr(Recurrence, name) for name in _OF_A_CALL),
            calls=length,
        )

    def _gradient_of(self, asked: Resolved, length: int) -> tuple[Any, Any]:
        """What `_output` does, for every byte: keys, and (y, key) -> y."""
        if asked.gradients is None or self.is_initializing():
            return None, lambda y, _: y
        if not self.has_rng(ROUNDING):
            return None, lambda y, _: refuse_gradient(y)
        bits = jnp.asarray(asked.gradients, jnp.int32)
        keys = jax.random.split(self.make_rng(ROUNDING), length)
        return keys, lambda y, key: quantize_gradient(y, bits, key)


def _forget_one(_: jax.Array, gates: int) -> jax.Array:
    return jnp.zeros(gates, jnp.float32).at[gates // 4 : gates // 2].set(1.0)
