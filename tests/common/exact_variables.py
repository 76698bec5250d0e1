"""Variables of networks that tests of deployed forms share, drawn without compiling anything."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import unflatten_dict

from dual_precision.structure import structure_of


def as_trained(model: Any, example: Any, exact: bool = True) -> dict[str, Any]:
    """Variables away from where init puts them; steps and gains are powers of two if `exact`."""
    rng = np.random.default_rng(0)
    structure = structure_of(model, example)

    def value(path: tuple[str, ...], leaf: Any) -> jax.Array:
        if path[-1] == "var" and exact:  # its factor, 1 / sqrt(var + epsilon), is 1
            epsilon = np.float32(structure.norms[path[1:-2]].epsilon)
            return jnp.full(leaf.shape, np.float32(1) - epsilon)
        if not {"step", "input_step", "scale", "var"} & set(path):
            return jnp.asarray(rng.normal(size=leaf.shape), jnp.float32)
        array = rng.uniform(0.2, 2, leaf.shape) * (0.02 if "step" in path else 1)
        return jnp.asarray(2.0 ** np.round(np.log2(array)) if exact else array, jnp.float32)

    return unflatten_dict({path: value(path, leaf) for path, leaf in structure.shapes.items()})
