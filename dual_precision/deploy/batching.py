"""Requests of any size, cut into batches of the sizes that there are programs for. NumPy."""

import contextlib
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np

from dual_precision.precision import is_whole


def checked_sizes(sizes: Sequence[int]) -> tuple[int, ...]:
    """The batch sizes, each once and ascending.

    Raises:
      ValueError: there is none, or one that is no whole number from 1.
    """
    if not sizes or not all(is_whole(size) and size >= 1 for size in sizes):
        raise ValueError(
            f"batch_sizes {list(sizes)}: expected at least one whole number, each 1 or more"
        )
    return tuple(sorted(set(sizes)))


def batches(count: int, sizes: Sequence[int]) -> list[int]:
    """Sizes of the batches that `count` rows run in; the last one is filled up.

    The largest size as often as it fits; what is left goes into a size of its own, or into the next
    one above it where that is filled by more than half, else into smaller ones.

    >>> batches(150, (1, 8, 64))
    [64, 64, 8, 8, 8]
    >>> batches(40, (1, 8, 64)), batches(8, (1, 8, 12))
    ([64], [8])
    """
    chosen = []
    while count > 0:
        below = [size for size in sizes if size <= count]
        above = [size for size in sizes if size > count]
        fill = not below or (below[-1] != count and above and count > above[0] / 2)
        chosen.append(above[0] if fill else below[-1])
        count -= chosen[-1]
    return chosen


def in_batches(run: Callable[[int, Any], Any], rows: Any, sizes: Sequence[int]) -> Any:
    """What `run` gives for any number of rows, batch after batch, as NumPy arrays.

    Args:
      run: (size, so many rows) -> arrays that have a row for each of them.
      rows: a tree of arrays with the same number of rows; with none, one batch says the shapes.
      sizes: as `checked_sizes` gives.
    """
    parts, start = [], 0
    for size in batches(row_count(rows), sizes) or sizes[:1]:
        part = taken(rows, slice(start, start + size))
        found = run(size, jax.tree.map(partial(filled, size=size), part))
        count = row_count(part)
        parts.append(jax.tree.map(lambda array, count=count: np.asarray(array)[:count], found))
        start += size
    return jax.tree.map(lambda *arrays: np.concatenate(arrays), *parts)


def filled(rows: np.ndarray, size: int) -> np.ndarray:
    """The rows, and zeros up to `size` of them, in one block of memory."""
    if len(rows) == size:
        return np.ascontiguousarray(rows)
    batch = np.zeros((size, *rows.shape[1:]), rows.dtype)
    batch[: len(rows)] = rows
    return batch


def taken(tree: Any, index: Any) -> Any:
    """Those rows of every array."""
    return jax.tree.map(lambda array: array[index], tree)


def row_count(tree: Any) -> int:
    """Rows of the arrays, which all have the same number."""
    return len(jax.tree.leaves(tree)[0])


def checked_inputs(inputs: Any, batch: tuple[Any, ...]) -> tuple[Any, ...]:
    """The arrays that a model takes besides `precision`, if `inputs` are these.

    Args:
      inputs: an array, or a tuple where the model takes more.
      batch: what it takes, see `structure.batch_of`; the number of rows does not matter.

    Raises:
      ValueError: another structure, shape or dtype; different numbers of rows.
    """
    if _is_all(inputs, batch):
        return (inputs,)
    given = inputs if isinstance(inputs, tuple) else (inputs,)
    expected = jax.tree.leaves(batch)
    arrays: list[Any] = []
    with contextlib.suppress(ValueError):  # of another structure
        jax.tree.map(lambda _, array: arrays.append(array), batch, given)
    found = [(np.shape(array)[1:], getattr(array, "dtype", None)) for array in arrays]
    rows = {np.shape(array)[:1] for array in arrays}
    if found != [(leaf.shape[1:], leaf.dtype) for leaf in expected] or () in rows:
        wanted = [_described(leaf.dtype, ("N", *leaf.shape[1:])) for leaf in expected]
        had = [_described(getattr(a, "dtype", type(a)), np.shape(a)) for a in arrays]
        raise ValueError(f"inputs {', '.join(had) or type(inputs)}: expected {', '.join(wanted)}")
    if len(rows) > 1:
        raise ValueError(f"inputs of {sorted(n for (n,) in rows)} rows: expected the same of all")
    return jax.tree.map(lambda _, array: np.asarray(array), batch, given)


def _is_all(inputs: Any, batch: tuple[Any, ...]) -> bool:
    """Whether this is one array that is right: a quick answer for most requests."""
    leaf, one = batch[0], len(batch) == 1
    if not (one and isinstance(inputs, np.ndarray) and isinstance(leaf, jax.ShapeDtypeStruct)):
        return False
    rows_fit = inputs.ndim == len(leaf.shape) and inputs.shape[1:] == leaf.shape[1:]
    return rows_fit and inputs.dtype == leaf.dtype


def _described(dtype: Any, shape: Sequence[Any]) -> str:
    return f"{dtype} [{', '.join(map(str, shape))}]"
