"""Self-attention of a decoder, of quantized products, with a cache that is an argument."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from flax import linen as nn

from dual_precision.layers.facts import FloatProduct
from dual_precision.layers.linear import Dense
from dual_precision.precision import Asked, Modes
from dual_precision.primitives.attention import cached_attention, causal_attention, rotated


@flax.struct.dataclass
class KVCache:
    """What a decoder remembers of N texts: keys and values of all positions so far.

    Attributes:
      keys, values: of every attention, [N, context, heads, D], float32.
      length: int32 [N], positions that are valid; what stands behind them is written over.
    """

    keys: tuple[jax.Array, ...]
    values: tuple[jax.Array, ...]
    length: jax.Array


class Attention(nn.Module):
    """out(attend(q, k, v)) with q, k, v = qkv(x) and rotary positions; x [N, T, features].

    Attributes:
      heads: they divide features into even parts.
      modes: of its two layers, `qkv` and `out`.
      dense: their class.
    """

    heads: int
    modes: Modes
    dense: Any = Dense

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        remembered: tuple[jax.Array, jax.Array, jax.Array] | None = None,
        *,
        precision: Asked,
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array] | None]:
        """(y, None), or, with (keys, values, length), (y, (keys, values)) with those of x."""
        texts, rows, features = x.shape
        dense = {"modes": self.modes, "signed": True, "use_bias": False}
        qkv = self.dense(3 * features, **dense, name="qkv")(x, precision=precision)
        parts = qkv.reshape(texts, rows, 3, self.heads, features // self.heads)
        kept = None
        if remembered is None:
            q, k, v = (parts[:, :, i] for i in range(3))
            positions = jnp.broadcast_to(jnp.arange(rows, dtype=jnp.int32)[None], (texts, rows))
            y = causal_attention(rotated(q, positions), rotated(k, positions), v)
        else:
            y, *both = cached_attention(parts, *remembered)
            kept = (both[0], both[1])
        out = self.dense(features, **dense, name="out")
        return out(y.reshape(texts, rows, features), precision=precision), kept

    def facts(self, x: jax.Array, y: Any) -> FloatProduct:
        """q k^T and the sum over v, of a call without a cache; those of later positions count too,
        as they are computed and then left out."""
        del y
        _, rows, features = x.shape
        scores = self.heads * rows * rows
        return FloatProduct(macs=2 * rows * rows * features, inputs=3 * rows * features + scores)
