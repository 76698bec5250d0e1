"""What a network takes, as JSON: shape and dtype of an array, a list for a tuple of them."""

from typing import Any

import jax
import jax.numpy as jnp

from dual_precision.structure import Example


def example_to_json(example: Example) -> Any:
    """JSON types.

    Raises:
      ValueError: something else than arrays and tuples of them.

    >>> example_to_json(jax.ShapeDtypeStruct((28, 28, 1), jnp.uint8))
    {'shape': [28, 28, 1], 'dtype': 'uint8'}
    """
    if isinstance(example, tuple):
        return [example_to_json(part) for part in example]
    if not (hasattr(example, "shape") and hasattr(example, "dtype")):
        raise ValueError(
            f"an example of {example!r}: expected jax.ShapeDtypeStruct(shape, dtype), or a tuple"
            " of them: what a file can say of the input of a network"
        )
    return {"shape": list(example.shape), "dtype": jnp.dtype(example.dtype).name}


def example_from_json(value: Any) -> Example:
    """The example that `example_to_json` gave this of: ShapeDtypeStructs.

    >>> example_from_json([{"shape": [8], "dtype": "float32"}])
    (ShapeDtypeStruct(shape=(8,), dtype=float32),)
    """
    if isinstance(value, list):
        return tuple(example_from_json(part) for part in value)
    shape, dtype = value["shape"], value["dtype"]
    if not all(type(axis) is int and axis >= 0 for axis in shape) or not isinstance(dtype, str):
        raise ValueError(f"an example of {value!r}: expected whole numbers, and a dtype by name")
    return jax.ShapeDtypeStruct(tuple(shape), jnp.dtype(dtype))
