"""A long short-term memory on bytes (Hochreiter and Schmidhuber 1997), as language models have it.

Two layers by default, as in CPT's experiment on text (arXiv 2101.09868); PrecisionBatching has one
(arXiv 2003.00822). What is carried from one part of a text to the next is an argument.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from dual_precision.layers import Dense, Embed, Recurrence, SwitchableRMSNorm, check_named_layers
from dual_precision.models.inputs import ModuleDef
from dual_precision.precision import Asked, Modes, mode_of


class LSTM(nn.Module):
    """Bytes uint8 [N, T] -> logits [N, T, 256] of the byte that follows each.

    With a carry, (logits, carry): the text goes on where it ended; `empty_carry` is its begin. The
    embedding and the last layer keep 8-bit weights in every mode.

    Attributes:
      modes: what "low", "high", ... mean; activations are signed.
      features: of the embedding and of every layer.
      depth: layers.
      embed, dense, recurrence, norm: layer classes.
    """

    modes: Modes
    features: int = 256
    depth: int = 2
    embed: ModuleDef = Embed
    dense: ModuleDef = Dense
    recurrence: ModuleDef = Recurrence
    norm: ModuleDef = SwitchableRMSNorm

    @nn.compact
    def __call__(
        self, tokens: jax.Array, carry: Any = None, *, precision: Asked, train: bool = False
    ) -> Any:
        del train
        self.modes.check_name(mode_of(precision))
        if tokens.ndim != 2 or tokens.dtype != jnp.uint8 or not tokens.shape[1]:
            raise ValueError(
                f"text {tokens.dtype}{list(tokens.shape)}: expected bytes, uint8 [texts, length]"
            )
        if carry is not None:
            self._check(carry, tokens.shape[0])
        embed = self.embed(self.features, modes=self.modes.pin(8, None), name="embed")
        x, after = embed(tokens, precision=precision), []
        for index in range(self.depth):
            own = {"modes": self.modes, "signed": True}
            gates = self.dense(4 * self.features, use_bias=False, **own, name=f"input{index + 1}")
            layer = self.recurrence(self.features, modes=self.modes, name=f"hidden{index + 1}")
            # One at a time: a forged file may ask for more layers than are ever traced.
            state = self._empty_state(tokens.shape[0]) if carry is None else carry[index]
            x, state = layer(gates(x, precision=precision), state, precision=precision)
            after.append(state)
        x = self.norm(modes=self.modes, name="norm")(x, precision=precision)
        head = self.dense(256, modes=self.modes.pin(8, 8), signed=True, name="head")
        logits = head(x, precision=precision)
        check_named_layers(self, precision)
        return logits if carry is None else (logits, tuple(after))

    @nn.nowrap
    def empty_carry(self, texts: int) -> tuple[tuple[jax.Array, jax.Array], ...]:
        """(c, h) of every layer, before the first byte."""
        return tuple(self._empty_state(texts) for _ in range(self.depth))

    @nn.nowrap
    def _empty_state(self, texts: int) -> tuple[jax.Array, jax.Array]:
        shape = (texts, self.features)
        return jnp.zeros(shape, jnp.float32), jnp.zeros(shape, jnp.float32)

    def _check(self, carry: Any, texts: int) -> None:
        shapes = [leaf.shape for leaf in jax.tree.leaves(carry)]
        if shapes != [(texts, self.features)] * (2 * self.depth):
            raise ValueError(
                f"a carry of {shapes}: expected {2 * self.depth} times {[texts, self.features]},"
                " of this model and this number of texts; make one with empty_carry()"
            )
