"""A decoder-only transformer on bytes.

Root mean square norms before each half of a block, rotary positions, no biases, ReLU: between two
products nothing adds to a product, so that a compiler has no choice of how often to round.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from dual_precision.layers import (
    Attention,
    Dense,
    Embed,
    KVCache,
    SwitchableRMSNorm,
    check_named_layers,
)
from dual_precision.models.inputs import ModuleDef
from dual_precision.precision import Asked, Modes, mode_of


class DecoderBlock(nn.Module):
    """x + attention(norm1(x)), then x + down(relu(up(norm2(x))))."""

    heads: int
    hidden: int
    modes: Modes
    dense: ModuleDef
    norm: ModuleDef

    @nn.compact
    def __call__(self, x: jax.Array, remembered: Any, *, precision: Asked) -> tuple[jax.Array, Any]:
        norm = partial(self.norm, modes=self.modes)
        by_row = remembered is not None
        attention = Attention(self.heads, self.modes, self.dense, name="attention")
        y = norm(name="norm1")(x, precision=precision, by_row=by_row)
        y, kept = attention(y, remembered, precision=precision)
        x = x + y
        dense = partial(self.dense, modes=self.modes, signed=True, use_bias=False)
        y = norm(name="norm2")(x, precision=precision, by_row=by_row)
        y = nn.relu(dense(self.hidden, name="up")(y, precision=precision))
        return x + dense(x.shape[-1], name="down")(y, precision=precision), kept


class Transformer(nn.Module):
    """Bytes uint8 [N, T] -> logits [N, T, 256] of the byte that follows each.

    With a cache, (logits, cache): the bytes follow what is in it. Row by row then, so that, of
    layers on planes, the bits of a row do not depend on how many rows a call has. The embedding
    and the last layer keep 8-bit weights in every mode.

    Attributes:
      modes: what "low", "high", ... mean; activations are signed.
      features, depth, heads: of the blocks; features / heads is even.
      hidden: of the products between; None is 4 times the features.
      context: the most bytes that it looks at.
      embed, dense, norm: layer classes.
    """

    modes: Modes
    features: int = 128
    depth: int = 4
    heads: int = 4
    hidden: int | None = None
    context: int = 256
    embed: ModuleDef = Embed
    dense: ModuleDef = Dense
    norm: ModuleDef = SwitchableRMSNorm

    @nn.compact
    def __call__(
        self,
        tokens: jax.Array,
        cache: KVCache | None = None,
        *,
        precision: Asked,
        train: bool = False,
    ) -> Any:
        del train
        self.modes.check_name(mode_of(precision))
        self._check(tokens, cache)
        embed = self.embed(self.features, modes=self.modes.pin(8, None), name="embed")
        x = embed(tokens, precision=precision)
        keys, values = [], []
        for index in range(self.depth):
            remembered = None
            if cache is not None:
                remembered = (cache.keys[index], cache.values[index], cache.length)
            block = DecoderBlock(
                self.heads,
                self.hidden or 4 * self.features,
                self.modes,
                self.dense,
                self.norm,
                name=f"block{index + 1}",
            )
            x, kept = block(x, remembered, precision=precision)
            if kept is not None:
                keys.append(kept[0])
                values.append(kept[1])
        norm = self.norm(modes=self.modes, name="norm")
        x = norm(x, precision=precision, by_row=cache is not None)
        head = self.dense(256, modes=self.modes.pin(8, 8), signed=True, use_bias=False, name="head")
        logits = head(x, precision=precision)
        check_named_layers(self, precision)
        if cache is None:
            return logits
        return logits, KVCache(tuple(keys), tuple(values), cache.length + tokens.shape[1])

    @nn.nowrap
    def empty_cache(self, texts: int) -> KVCache:
        """A cache of so many texts with nothing in it."""
        shape = (texts, self.context, self.heads, self.features // self.heads)
        parts = [tuple(jnp.zeros(shape, jnp.float32) for _ in range(self.depth)) for _ in "kv"]
        return KVCache(parts[0], parts[1], jnp.zeros(texts, jnp.int32))

    def _check(self, tokens: jax.Array, cache: KVCache | None) -> None:
        if self.heads < 1 or self.features % self.heads or self.features // self.heads % 2:
            raise ValueError(
                f"{self.features} features and {self.heads} heads: expected heads that divide the"
                " features into even parts"
            )
        if tokens.ndim != 2 or tokens.dtype != jnp.uint8:
            raise ValueError(
                f"text {tokens.dtype}{list(tokens.shape)}: expected bytes, uint8 [texts, length]"
            )
        if not 1 <= tokens.shape[1] <= self.context:
            raise ValueError(
                f"a text of {tokens.shape[1]} bytes: expected 1 to {self.context}, the context of"
                " this model; cut it, or take a model of a larger one"
            )
        if cache is not None:
            expected = jax.eval_shape(lambda: self.empty_cache(tokens.shape[0]))
            if not isinstance(cache, KVCache) or _shapes(cache) != _shapes(expected):
                raise ValueError(
                    "a cache of another model or another number of texts: expected"
                    f" {self.depth} times keys and values {list(expected.keys[0].shape)}; make"
                    " one with empty_cache()"
                )


def _shapes(cache: Any) -> list[tuple[Any, ...]]:
    return [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(cache)]


# 12.9 M parameters: where the time of a token is that of its weights.
transformer_512 = partial(Transformer, features=512, depth=4, heads=8)
