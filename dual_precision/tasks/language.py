"""Text, byte by byte: what follows what was read."""

import dataclasses
import math
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dual_precision.data.text import as_bytes
from dual_precision.tasks.task import Batch

_BITS_OF_FLOATS = sys.float_info.max_exp  # 2.0**1024 is an OverflowError


@dataclasses.dataclass(frozen=True)
class NextByte:
    """The byte that follows: cross entropy, bits per byte, the share that is guessed right.

    An epoch is so many bytes of the text, from places of its own. Without a carry, every row of a
    batch is a window of the text; with one, it goes on where the row ended in the batch before.

    Attributes:
      context: bytes of a window.
      epoch_bytes: bytes that an epoch reads.
      carried: shapes of what a row carries, a tree of tuples of tuples of int; () is nothing.
      evaluation_rows: of a batch in evaluation.
    """

    context: int
    epoch_bytes: int = 1 << 18
    carried: Any = ()
    evaluation_rows: int = 32

    def __post_init__(self) -> None:
        for name in ("context", "epoch_bytes", "evaluation_rows"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: expected 1 or more")

    @property
    def example(self) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((self.context,), jnp.uint8)

    def carry(self, rows: int) -> Any:
        """Zeros: (c, h) of each layer of a recurrent network."""
        return tuple(
            tuple(jnp.zeros((rows, *shape), jnp.float32) for shape in own) for own in self.carried
        )

    def arrays(self, split: np.ndarray) -> dict[str, np.ndarray]:
        return {"text": as_bytes(split)}

    def order(self, split: np.ndarray, batch_size: int, key: jax.Array) -> np.ndarray:
        """Where each row begins: int32 [updates, batch].

        Raises:
          ValueError: an epoch of less than a batch; a text that is shorter than a window, or than
            what a row reads in an epoch.
        """
        updates = self.epoch_bytes // (batch_size * self.context)
        if not updates:
            raise ValueError(
                f"epoch_bytes={self.epoch_bytes}: expected {batch_size * self.context} or more, one"
                f" batch of {batch_size} windows of context={self.context}"
            )
        windows = updates if self.carried else 1
        room = len(as_bytes(split)) - windows * self.context
        if room < 1:
            raise ValueError(
                f"a text of {len(split)} bytes with context={self.context}: expected more than"
                f" {windows * self.context}, what a row reads; take a longer text, or less context"
            )
        rng = np.random.default_rng(np.asarray(jax.random.key_data(key)))
        if not self.carried:
            return rng.integers(0, room, (updates, batch_size), dtype=np.int32)
        starts = rng.integers(0, room, batch_size, dtype=np.int32)
        return starts + np.arange(updates, dtype=np.int32)[:, None] * self.context

    def draw(self, arrays: Mapping[str, jax.Array], index: jax.Array, key: jax.Array) -> Batch:
        del key
        places = index[:, None] + jnp.arange(self.context + 1, dtype=jnp.int32)[None]
        read = arrays["text"][places]
        counted = jnp.ones((len(index), self.context), jnp.float32)
        return {"inputs": read[:, :-1], "next": read[:, 1:], "counted": counted}

    def batches(self, split: np.ndarray, batch_size: int) -> Iterator[tuple[Batch, np.ndarray]]:
        """Windows in order. With a carry, so many rows side by side, each a part of the text.

        Without, windows overlap by half, and their second half counts: every byte is guessed from
        half a context or more. The rest of the text, less than a window in each row, is left out.
        """
        text = as_bytes(split)
        if self.carried:
            yield from self._side_by_side(text, batch_size)
            return
        stride = math.ceil(self.context / 2)
        starts = np.arange(0, len(text) - self.context, stride, dtype=np.int64)
        if not len(starts):
            raise ValueError(
                f"a text of {len(text)} bytes with context={self.context}: expected more bytes"
                " than the context; take a longer text, or less context"
            )
        for begin in range(0, len(starts), batch_size):
            own = starts[begin : begin + batch_size]
            yield (
                self._windows(text, np.resize(own, batch_size), self.context - stride),
                np.arange(batch_size) < len(own),
            )

    def _side_by_side(
        self, text: np.ndarray, batch_size: int
    ) -> Iterator[tuple[Batch, np.ndarray]]:
        windows = (len(text) - 1) // batch_size // self.context
        if not windows:
            raise ValueError(
                f"a text of {len(text)} bytes in {batch_size} rows with context={self.context}:"
                f" expected {batch_size * self.context + 1} or more"
            )
        rows = np.arange(batch_size) * ((len(text) - 1) // batch_size)
        for index in range(windows):
            yield self._windows(text, rows + index * self.context, 0), np.ones(batch_size, bool)

    def _windows(self, text: np.ndarray, starts: np.ndarray, read_only: int) -> Batch:
        read = text[starts[:, None] + np.arange(self.context + 1)]
        counted = np.zeros((len(starts), self.context), np.float32)
        counted[:, read_only:] = 1
        return {"inputs": read[:, :-1], "next": read[:, 1:], "counted": counted}

    def loss(self, outputs: jax.Array, batch: Batch) -> jax.Array:
        return jnp.mean(self.measures(outputs, batch)["loss"])

    def measures(self, outputs: jax.Array, batch: Batch) -> dict[str, jax.Array]:
        """Loss in nats, bits = loss / log 2, accuracy; means over the bytes that count."""
        targets, counted = batch["next"].astype(jnp.int32), batch["counted"]
        loss = optax.softmax_cross_entropy_with_integer_labels(outputs, targets)
        right = (jnp.argmax(outputs, -1).astype(jnp.int32) == targets).astype(jnp.float32)
        share = counted / jnp.sum(counted, axis=1, keepdims=True)
        means = {"loss": jnp.sum(loss * share, axis=1), "accuracy": jnp.sum(right * share, axis=1)}
        return {**means, "bits": means["loss"] / jnp.float32(math.log(2))}

    def score(self, measured: Mapping[str, float]) -> float:
        return -measured["bits"]


def perplexity(bits: float) -> float:
    """2 ** bits: of a byte; infinite from 1,024 bits on, beyond what a float holds."""
    return math.inf if bits >= _BITS_OF_FLOATS else 2.0**bits
