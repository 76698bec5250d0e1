"""A packed file as a service: every mode compiled ahead, switched by a word of the request.

    predictor = Predictor("net.safetensors")
    logits = predictor.predict(images, precision="low")  # or "high", or "auto"

The weights are on the device once, as int8 codes; the programs of all modes and batch sizes take
them as an argument. What happens on the host is NumPy, so that no request, whatever its size,
compiles anything. Nothing changes after construction: any number of threads may call `predict`.

Where a layer sees the same input in both modes of a cascade, the second goes on from the sums of
the first, y_high = y_low + residual: see `kept` in integer.py.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from dual_precision.deploy.cascade.rule import Answer, Cascade, answer, mirrored
from dual_precision.deploy.file.packed import PackedFile, PackedInfo, Source
from dual_precision.deploy.integer.conversion import to_integer
from dual_precision.deploy.integer.layers import KEPT

AUTO = "auto"
CASCADE = "cascade"  # its name in a packed file's metadata
# What a program is for: a mode alone, the first of a cascade, which keeps its sums, or the second.
ALONE, FIRST, THEN = "alone", "first", "then"
BLOCK = 16  # batches of the largest size that a cascade runs through at a time
WAYS = tuple(field.name for field in dataclasses.fields(Answer))

Tree = dict[str, Any]
Apply = Callable[[Tree, jax.Array, str, bool], tuple[jax.Array, Tree]]


class Predictor:
    """Logits of uint8 images, in any mode of a packed file, or by the cascade of two.

    Attributes:
      info: what the file says about itself.
      precisions: names of the modes that are loaded.
      batch_sizes: for which there are programs, ascending.
      cascade: that "auto" runs; None is none.
      bytes: of the arrays that are held on the device, the weights of all modes; not of the
        compiled programs, nor of the sums that a cascade keeps while it runs.

    Raises:
      ValueError: a batch size below 1; a mode that the file has not; a cascade of other modes, or
        of a network of one class, which has no margin.
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
          cascade: for "auto"; None is the one in the file's metadata, if both modes are loaded.
        """
        with PackedFile(source) as file:
            self.info = file.info
            self.precisions = _chosen(self.info, precisions)
            self.batch_sizes = _sizes(batch_sizes)
            self.cascade, self._why_none = _usable(cascade, self.info, self.precisions)
            self.classes = _classes(self.info, self.cascade)
            apply, variables = _network(file, self.precisions)
        self._variables = jax.device_put(variables)
        self.bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(self._variables))
        self._programs: dict[tuple[str, str, int], Any] = {}
        for size in self.batch_sizes:
            for name in self.precisions:
                self._compile(apply, name, ALONE, size, {})
            if self.cascade:
                _, kept = self._compile(apply, self.cascade.first, FIRST, size, {})
                self._compile(apply, self.cascade.then, THEN, size, kept)

    def predict(self, images: np.ndarray, precision: str) -> np.ndarray:
        """Logits, float32 [N, classes].

        The bits of a row's logits may depend on the batch size whose program it runs in.

        Args:
          images: uint8 [N, H, W, C], any N.
          precision: a mode, or "auto".

        Raises:
          ValueError: images of another shape or dtype; a mode that is not loaded; "auto" without
            a cascade.
        """
        if precision == AUTO:
            return self.answer(images).logits
        if precision not in self.precisions:
            raise ValueError(
                f"precision {precision!r}: expected one of"
                f" {[*self.precisions, *([AUTO] if self.cascade else [])]}"
                f" (the file holds {list(self.info.bytes_read)})"
            )
        return self._run(precision, ALONE, self._checked(images))[0]

    def answer(self, images: np.ndarray, cascade: Cascade | None = None) -> Answer:
        """What "auto" gives, and which rows took which way; arguments and errors as `predict`.

        Args:
          images: as `predict`.
          cascade: another than self.cascade for these images, of the same two modes.
        """
        images, own = self._checked(images), self.cascade
        if own is None:
            raise ValueError(f"precision {AUTO!r}: {self._why_none}")
        cascade = cascade or own
        if (cascade.first, cascade.then) != (own.first, own.then):
            raise ValueError(
                f"a cascade of {cascade.first!r} and {cascade.then!r}: expected one of"
                f" {own.first!r} and {own.then!r}, which are compiled for it"
            )
        # What is kept of a block stays on the host until it is known which rows need it.
        block = BLOCK * self.batch_sizes[-1]
        starts = range(0, len(images), block) or [0]
        parts = [self._cascade(cascade, images[start : start + block]) for start in starts]
        return Answer(*(np.concatenate([getattr(p, n) for p in parts]) for n in WAYS))

    def _cascade(self, cascade: Cascade, images: np.ndarray) -> Answer:
        logits, kept = self._run(cascade.first, FIRST, images)

        def then(rows: np.ndarray) -> np.ndarray:
            own = jax.tree.map(lambda sums: sums[rows], kept)
            return self._run(cascade.then, THEN, images[rows], own)[0]

        def again(rows: np.ndarray) -> np.ndarray:
            return self._run(cascade.first, ALONE, mirrored(images[rows]))[0]

        return answer(cascade, logits, again, then)

    def _compile(self, apply: Apply, name: str, use: str, size: int, kept: Tree) -> Any:
        """Adds a program; its outputs' shapes."""
        keep = use == FIRST

        def program(variables: Tree, kept: Tree, images: jax.Array) -> tuple[jax.Array, Tree]:
            return apply({**variables, **kept}, images, name, keep)

        lowered = jax.jit(program).lower(self._variables, kept, self._images(size))
        self._programs[name, use, size] = lowered.compile()
        return lowered.out_info

    def _images(self, size: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((size, *self.info.image_shape), jnp.uint8)

    def _checked(self, images: np.ndarray) -> np.ndarray:
        shape, dtype = np.shape(images), getattr(images, "dtype", None)
        if dtype != np.uint8 or len(shape) != 4 or shape[1:] != self.info.image_shape:
            raise ValueError(
                f"images of {dtype} {list(shape)}: expected uint8 pixels"
                f" [N, {', '.join(map(str, self.info.image_shape))}]"
            )
        return np.asarray(images)

    def _run(
        self, name: str, use: str, images: np.ndarray, kept: Tree | None = None
    ) -> tuple[np.ndarray, Tree]:
        """(logits, what the mode keeps) of any number of images, batch after batch."""
        parts, start = [], 0
        for size in batches(len(images), self.batch_sizes):
            rows = slice(start, start + size)
            count = len(images[rows])
            given = jax.tree.map(lambda sums, rows=rows, size=size: filled(sums[rows], size), kept)
            out = self._programs[name, use, size](
                self._variables, given or {}, filled(images[rows], size)
            )
            parts.append(jax.tree.map(lambda array, count=count: np.asarray(array)[:count], out))
            start += size
        if not parts:
            return np.zeros((0, self.classes), np.float32), {}
        return jax.tree.map(lambda *arrays: np.concatenate(arrays), *parts)


def batches(count: int, sizes: Sequence[int]) -> list[int]:
    """Sizes of the batches that `count` rows run in; the last one is filled up.

    The largest size as often as it fits; what is left goes into the next size above it where that
    is filled by more than half, else into smaller ones.

    >>> batches(150, (1, 8, 64))
    [64, 64, 8, 8, 8]
    >>> batches(40, (1, 8, 64))
    [64]
    """
    chosen = []
    while count > 0:
        below = [size for size in sizes if size <= count]
        above = [size for size in sizes if size > count]
        fill = not below or (above and count > above[0] / 2)
        chosen.append(above[0] if fill else below[-1])
        count -= chosen[-1]
    return chosen


def filled(rows: np.ndarray, size: int) -> np.ndarray:
    """The rows, and zeros up to `size` of them, in one block of memory."""
    if len(rows) == size:
        return np.ascontiguousarray(rows)
    batch = np.zeros((size, *rows.shape[1:]), rows.dtype)
    batch[: len(rows)] = rows
    return batch


def _chosen(info: PackedInfo, precisions: Sequence[str] | None) -> tuple[str, ...]:
    names = list(info.bytes_read)
    if AUTO in names:
        raise ValueError(
            f"a mode called {AUTO!r}: expected another name, as {AUTO!r} is the cascade"
        )
    wanted = names if precisions is None else list(precisions)
    if not wanted or set(wanted) - set(names):
        raise ValueError(f"precisions {wanted}: expected some of {names}")
    return tuple(name for name in names if name in wanted)


def _sizes(sizes: Sequence[int]) -> tuple[int, ...]:
    if not sizes or min(sizes) < 1:
        raise ValueError(f"batch_sizes {list(sizes)}: expected at least one, each 1 or more")
    return tuple(sorted(set(sizes)))


def _usable(
    cascade: Cascade | None, info: PackedInfo, precisions: Sequence[str]
) -> tuple[Cascade | None, str]:
    """The cascade given, else the file's; where there is none, why not, for requests of "auto"."""
    stored = info.metadata.get(CASCADE)
    if cascade is None:
        try:
            own = Cascade.from_json(stored) if stored else None
        except ValueError as error:
            return None, f"the file holds {error}"
        if own and {own.first, own.then} <= set(precisions):
            return own, ""
        return None, (
            "expected a cascade, and both of its modes loaded; give Predictor(..., cascade=...),"
            " or calibrate the file: python -m experiments.deploy cascade FILE --write"
        )
    if not {cascade.first, cascade.then} <= set(precisions):
        raise ValueError(
            f"a cascade of {cascade.first!r} and {cascade.then!r}: expected modes that are loaded,"
            f" {list(precisions)}"
        )
    return cascade, ""


def _classes(info: PackedInfo, cascade: Cascade | None) -> int:
    classes = list(info.layers.values())[-1].kernel[-1]
    if cascade and classes < 2:
        raise ValueError(
            f"a cascade of a network of {classes} class: expected at least two, as its margin is"
            " the distance of the two largest logits; load a file without one"
        )
    return classes


def runs_on_codes(info: PackedInfo) -> bool:
    """Whether the predictor of this file is the integer network, which reuses sums."""
    return all(layer.stored for layer in info.layers.values())


def _network(file: PackedFile, precisions: Sequence[str]) -> tuple[Apply, dict[str, Any]]:
    """The forward, and the variables that these modes use.

    A file with layers of float weights runs the training forward, which keeps nothing.
    """
    info, (model, variables) = file.info, file.load(precisions[-1])
    others = set(info.bytes_read) - set(precisions)
    leaves = flatten_dict(variables)
    own = unflatten_dict({path: leaf for path, leaf in leaves.items() if not others & {*path}})
    if runs_on_codes(info):
        model, own = to_integer(model, own, info.image_shape)

    def apply(variables: Tree, images: jax.Array, name: str, keep: bool) -> tuple[jax.Array, Tree]:
        logits, kept = model.apply(variables, images, precision=name, mutable=[KEPT] * keep)
        return logits, dict(kept)

    return apply, own
