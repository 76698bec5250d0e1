"""Ranges of what lies between the layers of a mode, for codes of 8 bits, measured on images."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from flax import linen as nn

from dual_precision.deploy.export.onnx.layers import Seen, params_at, seen_by
from dual_precision.structure import LayerPath, Structure

Ranges = Mapping[LayerPath, tuple[float, float]]  # see ranges_of
_SHARE = 0.01  # percent of an array that may lie outside of its range, each side


def ranges_of(
    model: Any,
    variables: Mapping[str, Any],
    structure: Structure,
    images: np.ndarray,
    mode: str,
    integers: Mapping[str, Any],
) -> Ranges:
    """Ranges of what these images give, but for the outermost numbers: of the output of each norm;
    of the input of each layer whose codes in the mode lose more of it than they round.

    A convolution of float inputs has the whole range of them.
    """
    layers = structure.layers
    seen = {p: seen_by(own, mode, params_at(integers, p)) for p, own in layers.items()}
    floats = {path for path, own in seen.items() if own.bits is None and not layers[path].matrix}

    @jax.jit
    def arrays(variables: Any, images: Any) -> Any:
        found = {}

        def note(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
            made, path = call(*args, **kwargs), context.module.path
            if context.method_name == "__call__" and path in structure.norms:
                found["/".join(path)] = made
            if context.method_name == "__call__" and path in seen:
                found["/".join(path)] = args[0]
            return made

        with nn.intercept_methods(note):
            model.apply(variables, images, precision=mode)
        return found

    ranges = {}
    for name, array in arrays(variables, images).items():
        path, own = tuple(name.split("/")), np.asarray(array)
        if path in structure.norms or path in floats or _loses(own, seen[path]):
            share = (0, 100) if path in floats else (_SHARE, 100 - _SHARE)
            least, most = np.percentile(own, share)
            ranges[path] = float(least), float(most)
    return ranges


def _loses(x: np.ndarray, seen: Seen) -> bool:
    """Whether 8-bit codes without a sign clip more of x, in the mean square, than they round."""
    if not seen.whole or seen.signed or seen.step is None:
        return False
    step = float(seen.step)
    lost = np.mean(np.square(x - np.clip(x, 0.0, 255 * step)))
    return bool(lost > step**2 / 12)
