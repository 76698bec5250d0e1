"""Text from a packed file: any mode, or the high mode drafted by the low one, byte for byte alike.

generator = Generator("austen.safetensors")
generator.generate([b"It is a truth"], 100, precision="draft")   # the text of precision="high"
for part in generator.stream(b"It is a truth", 100, precision="low"): ...
"""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from dual_precision.deploy.file.packed import PackedFile, Source
from dual_precision.deploy.generation.checks import (
    DRAFT,
    check_samples,
    checked_count,
    checked_drafts,
    checked_precision,
)
from dual_precision.deploy.generation.drafting import Adaptive, DraftCosts, costs_for
from dual_precision.deploy.generation.programs import (
    FILLED,
    MOST_ROWS,
    ROUNDS,
    TOGETHER,
    Choice,
    fill,
    plain_bytes,
    rounds_of_drafts,
)
from dual_precision.deploy.planes.mode_layers import ModeLayer, to_plane_layers
from dual_precision.layers import KVCache
from dual_precision.precision import Asked
from dual_precision.structure import Example, mode_order, structure_of


@dataclasses.dataclass
class Tally:
    """What a generation has done so far: bytes are those of all texts together."""

    bytes: int = 0
    passes: int = 0
    rounds: int = 0
    drafted: int = 0
    kept: int = 0


class Generator:
    """Texts of a decoder on planes. Nothing in it changes: a cache goes from call to call.

    Attributes:
      model, variables: on planes, see `to_plane_layers`.
      low, high: the trained modes with the fewest and the most weight bits: who drafts, who
        decides; the same one where a single mode was trained.
      context: the most bytes of a prompt and what follows it.
      most_drafts: of a round, whose last pass has one row more.
      weights: those on planes.
      costs: of drafting one text with a model of so many weights, see `drafting.costs_for`.
    """

    def __init__(self, source: Source, form: type[ModeLayer] = ModeLayer) -> None:
        """Reads a packed file.

        Raises:
          ValueError: its network is no decoder. PackedError, OSError: as `load_packed`.
        """
        with PackedFile(source) as file:
            model, variables = file.load()
            self._set(model, variables, file.info.example, form, file.info.choices)

    @classmethod
    def of(
        cls, model: nn.Module, variables: Any, example: Example, form: type[ModeLayer] = ModeLayer
    ) -> "Generator":
        """Of a model and its variables, as `dual_precision.load` gives; all modes count as trained.

        Raises:
          ValueError: no decoder.
        """
        made = cls.__new__(cls)
        made._set(model, variables, example, form)
        return made

    def _set(
        self,
        model: nn.Module,
        variables: Any,
        example: Example,
        form: type[ModeLayer],
        trained: Sequence[str] = (),  # narrowest first; of none that are said, all
    ) -> None:
        if not hasattr(model, "empty_cache"):
            raise ValueError(
                f"a network of class {type(model).__name__}: expected a decoder with a cache, such"
                " as the transformer"
            )
        structure = structure_of(model, example)
        order = trained or mode_order(structure)
        self.low, self.high = order[0], order[-1]
        self.model, planes = to_plane_layers(model, variables, example, form)
        self.variables = jax.device_put(planes)
        self.context: int = model.context
        self.most_drafts = min(MOST_ROWS, self.context) - 1
        matrices = [layer for layer in structure.layers.values() if layer.matrix]
        self.weights = sum(math.prod(layer.kernel) for layer in matrices)
        self.costs = costs_for(self.weights)

    def generate(self, prompts: Sequence[bytes], count: int, **how: Any) -> list[bytes]:
        """`count` bytes behind each of the prompts; arguments and errors as `rounds`."""
        texts = [b""] * len(prompts)
        for parts in self.rounds(prompts, count, **how):
            texts = [text + part for text, part in zip(texts, parts, strict=True)]
        return texts

    def stream(self, prompt: bytes, count: int, **how: Any) -> Iterator[bytes]:
        """What comes behind one prompt, up to 64 bytes at a time; as `rounds`."""
        return (part for (part,) in self.rounds([prompt], count, **how))

    def rounds(
        self,
        prompts: Sequence[bytes],
        count: int,
        *,
        precision: Asked = DRAFT,
        drafts: int | None = None,
        temperature: float = 0.0,
        seed: int | None = None,
        costs: DraftCosts | None = None,
        tally: Tally | None = None,
    ) -> Iterator[list[bytes]]:
        """What comes behind each of the prompts, program after program: up to eight bytes of each,
        or what up to eight rounds of drafts bring.

        Args:
          prompts: one or more, each of one byte or more, of any lengths.
          count: bytes to add to each, a whole number.
          precision: a mode of codes, or Widths of one; "draft" is the text of `high`, drafted.
          drafts: bytes in a round of "draft", 1 to 7, fewer than the context; None is as many as
            pay, plain bytes where none do, or of several texts whose costs are not given.
          temperature: 0 takes the most likely byte; else logits are divided by it, 1e-30 or more,
            and sampled.
          seed: of the samples, 0 to 2^32 - 1, 0 if None; at a temperature of 0 there are none. The
            random numbers of a byte depend on its place in its text, and the place of the text
            among the prompts, alone.
          costs: that None of drafts decides by; None of them are those of the attribute, which
            were measured of one text.
          tally: is added to.

        Raises:
          ValueError: no prompt, an empty one, one that is no bytes, or too long for the context
            with what is to follow; a count that is none; a precision without codes, or Widths of no
            whole numbers; a number of drafts that is none; a temperature that logits cannot be
            divided by; a seed of no samples, or that makes no key.
        """
        count = checked_count(prompts, count, self.context)
        precision = checked_precision(precision, self.model.modes)
        drafts = checked_drafts(drafts, costs, precision, self.most_drafts)
        check_samples(temperature, seed)
        return self._rounds(
            prompts,
            count,
            precision,
            self._adaptive(costs, len(prompts)) if drafts is None else drafts,
            Choice(
                jax.random.key(int(seed or 0)),
                jnp.arange(len(prompts), dtype=jnp.uint32),
                jnp.float32(temperature or 1.0),
                temperature == 0,
            ),
            Tally() if tally is None else tally,
        )

    def _adaptive(self, costs: DraftCosts | None, texts: int) -> Adaptive | int:
        # Rows of several texts fill the tiles that drafts of one text find half empty.
        return Adaptive(costs or self.costs) if costs or texts == 1 else 0

    def filled(self, prompts: Sequence[bytes], precision: Asked) -> tuple[jax.Array, KVCache]:
        """The last byte of each prompt [N], and a cache with all before it."""
        before = np.array([len(prompt) - 1 for prompt in prompts], np.int32)
        cache = self.model.empty_cache(len(prompts))
        part = min(FILLED, self.context)
        size = -(-int(before.max()) // part) * part
        padded = np.zeros((len(prompts), size), np.uint8)
        for row, prompt in zip(padded, prompts, strict=True):
            row[: len(prompt) - 1] = np.frombuffer(prompt[:-1], np.uint8)
        for first in range(0, size, part):
            lengths = jnp.asarray(np.clip(before - first, 0, part))
            tokens = jnp.asarray(padded[:, first : first + part])
            cache = fill(
                self.variables, tokens, lengths, cache, model=self.model, precision=precision
            )
        return jnp.asarray(np.array([prompt[-1] for prompt in prompts], np.uint8)), cache

    def _rounds(
        self,
        prompts: Sequence[bytes],
        count: int,
        precision: Asked,
        drafts: Adaptive | int,
        choice: Choice,
        tally: Tally,
    ) -> Iterator[list[bytes]]:
        decides = self.high if precision == DRAFT else precision
        token, cache = self.filled(prompts, decides)
        left = np.full(len(prompts), count, np.int32)
        while left.any():
            chosen = drafts.drafts() if isinstance(drafts, Adaptive) else drafts
            chosen = min(chosen, self.most_drafts)
            if precision != DRAFT or chosen == 0:
                most = min(TOGETHER, int(left.max()))
                out, token, cache = plain_bytes(
                    self.variables, token, cache, choice, np.int32(most),
                    model=self.model, precision=decides,
                )  # fmt: skip
                found = [row[:most].tobytes() for row in np.asarray(out)]
                tally.passes += most
            else:
                most = 1 if isinstance(drafts, Adaptive) and drafts.tries else ROUNDS
                out, kept, token, cache = rounds_of_drafts(
                    self.variables, token, cache, choice, left, np.int32(most),
                    model=self.model, drafts=chosen, low=self.low, high=self.high,
                )  # fmt: skip
                found = _joined(np.asarray(out), np.asarray(kept))
                agreed = [row[row > 0] - 1 for row in np.asarray(kept) if row.any()]
                _count_rounds(tally, chosen, agreed)
                if isinstance(drafts, Adaptive):
                    for own in agreed:
                        drafts.saw(chosen, own.tolist())
            parts = [part[:lacks] for part, lacks in zip(found, left.tolist(), strict=True)]
            left = left - np.array([len(part) for part in parts], np.int32)
            tally.bytes += sum(map(len, parts))
            yield parts


def _joined(found: np.ndarray, kept: np.ndarray) -> list[bytes]:
    """Of bytes [rounds, N, rows] the first `kept` [rounds, N] of each round, text by text."""
    counts = np.arange(found.shape[2]) < kept[:, :, None]
    return [found[:, n][counts[:, n]].tobytes() for n in range(found.shape[1])]


def _count_rounds(tally: Tally, drafts: int, agreed: Sequence[np.ndarray]) -> None:
    """Adds rounds, of each of which the texts that were not finished kept so many drafts."""
    tally.rounds += len(agreed)
    tally.passes += len(agreed)
    tally.drafted += drafts * sum(len(own) for own in agreed)
    tally.kept += sum(int(own.sum()) for own in agreed)
