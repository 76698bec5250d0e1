"""A packed file as a service: every mode compiled ahead, switched by a word of the request.

    predictor = Predictor("net.safetensors")
    logits = predictor.predict(images, precision="low")  # or "high", or "auto"

The weights are on the device once, as int8 codes; the programs of all modes and batch sizes take
them as an argument. What happens on the host is NumPy, so that no request, whatever its size,
compiles anything. Nothing changes after construction: any number of threads may call `predict`.

Where a layer sees the same input in both modes of a cascade, the second goes on from the sums of
the first, y_high = y_low + residual: see KEPT_SUMS in integer/layers.py.
"""

import dataclasses
import logging
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from dual_precision.deploy.batching import (
    checked_inputs,
    checked_sizes,
    in_batches,
    row_count,
    taken,
)
from dual_precision.deploy.cascade.rule import Answer, Cascade, answer, mirrored
from dual_precision.deploy.file.info import PackedInfo
from dual_precision.deploy.file.packed import PackedFile, Source
from dual_precision.deploy.integer.chaining import chained
from dual_precision.deploy.integer.conversion import has_integer_forms, to_integer
from dual_precision.deploy.integer.layers import KEPT_SUMS
from dual_precision.deploy.integer.programs import CompiledProgram
from dual_precision.structure import Structure, batch_of
from dual_precision.tasks.task import Tree

log = logging.getLogger(__name__)

AUTO = "auto"
CASCADE = "cascade"  # its name in the metadata of a packed file
# What a program is for: a mode alone, the first of a cascade, which keeps its sums, or the second.
_ALONE, _FIRST, _THEN = "alone", "first", "then"
BLOCK = 16  # batches of the largest size that a cascade runs through at a time
WAYS = tuple(field.name for field in dataclasses.fields(Answer))

Rows = tuple[Any, ...]  # what a model takes, arrays whose first axis are the rows
Apply = Callable[..., tuple[jax.Array, Tree]]


class Predictor:
    """What a network gives, such as logits, in any mode of a packed file or by a cascade of two.

    Attributes:
      info: what the file says about itself; `info.example` is one row of what is predicted.
      output: shape and dtype of what the network gives for a row, such as [classes] float32.
      precisions: names of the modes that are loaded.
      batch_sizes: for which there are programs, ascending.
      cascade: that "auto" runs; None is none.
      on_codes: whether this is the integer network, whose cascade reuses sums. With layers of float
        weights, or of a call of their own, such as embeddings, it is the training forward.
      bytes: of the arrays that are held on the device, the weights of all modes; not of the
        compiled programs, nor of the sums that a cascade keeps while it runs, nor of kernels that
        oneDNN has in a layout of its own.

    Raises:
      ValueError: a batch size that is no whole number from 1; a mode that the file has not; a
        network that gives more than one array; a cascade of other modes, or of a network that gives
        no logits of two classes or more, whose distance is the margin.
      PackedError, OSError: as `load_packed`.
    """

    def __init__(
        self,
        source: Source,
        batch_sizes: Sequence[int] = (1, 8, 64),
        precisions: Sequence[str] | None = None,
        cascade: Cascade | None = None,
    ) -> None:
        """Reads the file and compiles a program for every mode and batch size.

        Args:
          source: a path, or a binary file that can seek.
          batch_sizes: a request runs in batches of these sizes, filled up where it must.
          precisions: the modes to load; None is all. What they do not need is not held.
          cascade: for "auto"; None is the one in the metadata of the file, if both modes are
            loaded.
        """
        with PackedFile(source) as file:
            self.info = file.info
            self.precisions = self.info.chosen(precisions)
            self.batch_sizes = checked_sizes(batch_sizes)
            self.on_codes = _runs_on_codes(file.structure)
            apply, variables = _network(file, self.precisions, self.on_codes)
        for mode in {*self.precisions} - {*self.info.trained}:
            log.warning("mode %r of the file was not trained: its answers mean little", mode)
        self.output = _output(apply, variables, self.info, self.precisions[0])
        self.cascade, self._why_none = self._usable(cascade)
        self._row = batch_of(self.info.example, 1)
        self._variables = jax.device_put(variables)
        self.bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(self._variables))
        self._programs: dict[tuple[str, str, int], CompiledProgram] = {}
        for size in self.batch_sizes:
            for name in self.precisions:
                self._compile(apply, name, _ALONE, size, {})
            if self.cascade:
                _, kept = self._compile(apply, self.cascade.first, _FIRST, size, {})
                self._compile(apply, self.cascade.then, _THEN, size, kept)

    def predict(self, inputs: Any, precision: str) -> np.ndarray:
        """What the network gives, [N, ...]: of a classifier logits, float32 [N, classes].

        The bits of the logits of a row may depend on the batch size whose program it runs in.

        Args:
          inputs: what the network takes, any N: for images uint8 [N, H, W, C]; a tuple of arrays
            where `info.example` is one.
          precision: a mode, or "auto".

        Raises:
          ValueError: inputs of another shape or dtype; a mode that is not loaded; "auto" without
            a cascade.
        """
        if precision == AUTO:
            return self.answer(inputs).logits
        if precision not in self.precisions:
            raise ValueError(
                f"precision {precision!r}: expected one of"
                f" {[*self.precisions, *([AUTO] if self.cascade else [])]}"
                f" (the file holds {list(self.info.bytes_read)})"
            )
        return self._run(precision, _ALONE, checked_inputs(inputs, self._row))[0]

    def answer(self, inputs: Any, cascade: Cascade | None = None) -> Answer:
        """What "auto" gives, and which rows took which way; arguments and errors as `predict`.

        Args:
          inputs: as `predict`.
          cascade: another than self.cascade for these rows, of the same two modes.
        """
        rows, own = checked_inputs(inputs, self._row), self.cascade
        if own is None:
            raise ValueError(f"precision {AUTO!r}: {self._why_none}")
        cascade = cascade or own
        if (cascade.first, cascade.then) != (own.first, own.then):
            raise ValueError(
                f"a cascade of {cascade.first!r} and {cascade.then!r}: expected one of"
                f" {own.first!r} and {own.then!r}, which are compiled for it"
            )
        self._check_cascade(cascade)
        # What is kept of a block stays on the host until it is known which rows need it.
        block = BLOCK * self.batch_sizes[-1]
        starts = range(0, row_count(rows), block) or [0]
        parts = [
            self._cascade(cascade, taken(rows, slice(start, start + block))) for start in starts
        ]
        return Answer(*(np.concatenate([getattr(p, n) for p in parts]) for n in WAYS))

    def _cascade(self, cascade: Cascade, rows: Rows) -> Answer:
        logits, kept = self._run(cascade.first, _FIRST, rows)

        def then(index: np.ndarray) -> np.ndarray:
            return self._run(cascade.then, _THEN, taken(rows, index), taken(kept, index))[0]

        def again(index: np.ndarray) -> np.ndarray:
            (images,) = taken(rows, index)
            return self._run(cascade.first, _ALONE, (mirrored(images),))[0]

        return answer(cascade, logits, again, then)

    def _usable(self, given: Cascade | None) -> tuple[Cascade | None, str]:
        """The cascade given, else that of the file; without one, why, for requests of "auto"."""
        loaded, stored = list(self.precisions), self.info.metadata.get(CASCADE)
        if given is not None:
            if not {given.first, given.then} <= {*loaded}:
                raise ValueError(
                    f"a cascade of {given.first!r} and {given.then!r}: expected modes that are"
                    f" loaded, {loaded}"
                )
            self._check_cascade(given)
            return given, ""
        try:  # a stored one that does not fit concerns "auto" alone
            own = Cascade.from_json(stored) if stored else None
            self._check_cascade(own)
        except ValueError as error:
            return None, f"the file holds {error}"
        if own and not {own.first, own.then} <= {*self.info.choices}:
            return None, (
                f"the file holds a cascade of {own.first!r} and {own.then!r}: expected trained"
                f" modes, of {list(self.info.choices)}"
            )
        if own and {own.first, own.then} <= {*loaded}:
            return own, ""
        return None, (
            "expected a cascade, and both of its modes loaded; give Predictor(..., cascade=...), or"
            f" write one into the file: amend_metadata(path, {{{CASCADE!r}: cascade.to_json()}})"
        )

    def _check_cascade(self, cascade: Cascade | None) -> None:
        """Raises ValueError where the network gives no margin, or a mirror has no image."""
        if cascade is None:
            return
        shape = self.output.shape
        if len(shape) != 1 or shape[0] < 2:
            raise ValueError(
                f"a cascade of a network that gives {list(shape)} a row: expected logits of at"
                " least two classes, as its margin is the distance of the two largest; load a"
                " file without one"
            )
        if cascade.mirror:
            _ = self.info.image_shape  # a ValueError where it takes no images

    def _compile(self, apply: Apply, name: str, use: str, size: int, kept: Tree) -> Any:
        """Adds a program; the shapes of its outputs."""
        keep = use == _FIRST

        def program(variables: Tree, kept: Tree, rows: Rows) -> tuple[jax.Array, Tree]:
            return apply({**variables, **kept}, rows, name, keep)

        rows = batch_of(self.info.example, size)
        made = CompiledProgram(program, self._variables, kept, rows, change=chained)
        # Run once, so that no request waits for kernels to be made.
        zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), (kept, rows))
        jax.block_until_ready(made(*zeros))
        self._programs[name, use, size] = made
        return made.output

    def _run(
        self, name: str, use: str, rows: Rows, kept: Tree | None = None
    ) -> tuple[np.ndarray, Tree]:
        """(output, what the mode keeps) of any number of rows, batch after batch."""
        total = row_count(rows)
        if total in self.batch_sizes:  # what is below takes longer than a small network
            output, found = self._programs[name, use, total](kept or {}, rows)
            return np.array(output), jax.tree.map(np.asarray, found)

        def run(size: int, given: tuple[Tree, Rows]) -> tuple[jax.Array, Tree]:
            return self._programs[name, use, size](*given)

        return in_batches(run, (kept or {}, rows), self.batch_sizes)


def _output(apply: Apply, variables: Tree, info: PackedInfo, name: str) -> jax.ShapeDtypeStruct:
    """What the network gives for a row."""
    rows = batch_of(info.example, 1)
    out, _ = jax.eval_shape(lambda *given: apply(*given, name, False), variables, rows)
    if not isinstance(out, jax.ShapeDtypeStruct) or out.shape[:1] != (1,):
        raise ValueError(
            f"a network that gives {jax.tree.map(lambda leaf: leaf.shape, out)} for one row:"
            " expected one array with a row for each of the batch; call what load_packed gives"
        )
    return jax.ShapeDtypeStruct(out.shape[1:], out.dtype)


def _runs_on_codes(structure: Structure) -> bool:
    stored = all(layer.stored for layer in structure.layers.values())
    return stored and has_integer_forms(structure)


def _network(
    file: PackedFile, precisions: Sequence[str], on_codes: bool
) -> tuple[Apply, dict[str, Any]]:
    """The forward, and the variables that these modes use; that of training keeps nothing."""
    _, model, own = file.load_modes(precisions)
    if on_codes:
        model, own = to_integer(model, own, file.info.example)

    def apply(variables: Tree, rows: Rows, name: str, keep: bool) -> tuple[jax.Array, Tree]:
        output, kept = model.apply(variables, *rows, precision=name, mutable=[KEPT_SUMS] * keep)
        return output, dict(kept)

    return apply, own
