"""A cell of flax on bit planes; `bit_layers` has the form of the network `models.LSTM`."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from dual_precision.deploy.planes.bit_layers import BitDense, BitRecurrence
from dual_precision.precision import Asked


class BitLSTMCell(nn.Module):
    """`nn.OptimizedLSTMCell` on planes: two products, [in, 4H] and [H, 4H]; see `pack_lstm`.

    i, f, g, o = x @ W + h @ U + b;   c = sig(f) c + sig(i) tanh(g);   h = sig(o) tanh(c)

    Called in a `jax.lax.scan` of the caller: `nn.RNN` has no precision to pass on.
    """

    features: int
    form: str | None = None

    def setup(self) -> None:
        self.input = BitDense(4 * self.features, use_bias=False, form=self.form)
        self.hidden = BitRecurrence(self.features, form=self.form)

    def __call__(
        self, carry: tuple[jax.Array, jax.Array], x: jax.Array, *, precision: Asked
    ) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
        """((c, h), x), each [..., features] -> ((c, h), h), as flax's cells do."""
        c, h = (part.reshape(-1, self.features) for part in carry)
        gates = self.input(x, precision=precision).reshape(-1, 1, 4 * self.features)
        _, (c, h) = self.hidden(gates, (c, h), precision=precision)
        c, h = (part.reshape(carry[0].shape) for part in (c, h))
        return (c, h), h

    @nn.nowrap
    def initialize_carry(
        self, rng: jax.Array, input_shape: tuple[int, ...]
    ) -> tuple[jax.Array, jax.Array]:
        """(c, h) of zeros for inputs [..., in], as flax's cells give; no randomness is used."""
        del rng
        zeros = jnp.zeros((*input_shape[:-1], self.features), jnp.float32)
        return zeros, zeros
