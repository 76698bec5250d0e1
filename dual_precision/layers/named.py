"""What a call may name of a model: its layers, and its blocks."""

import jax
from flax import linen as nn

from dual_precision.layers.quantized import WEIGHTS
from dual_precision.precision import Asked, Widths


def check_named_layers(model: nn.Module, precision: Asked) -> None:
    """Raises ValueError where widths name a layer that the model lacks; at the end of its call."""
    asked = precision.named_layers if isinstance(precision, Widths) else set()
    wanted = {*asked, *model.modes.layers}
    if not wanted:
        return
    params = model.variables.get("params", {})
    flat = [path for path, _ in jax.tree_util.tree_flatten_with_path(params)[0]]
    known = {"/".join(key.key for key in path[:-1]) for path in flat if path[-1].key in WEIGHTS}
    model.modes.check_layers(known, asked)
