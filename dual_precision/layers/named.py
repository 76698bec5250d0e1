"""What a call may name of a model: its layers, and its blocks."""

from collections.abc import Collection

import jax
from flax import linen as nn

from dual_precision.layers.quantized import WEIGHTS
from dual_precision.precision import Asked, Widths, kept_blocks


def check_named_layers(model: nn.Module, precision: Asked, blocks: Collection[str] = ()) -> None:
    """Raises ValueError where widths name a layer, or a block, that the model lacks; at the end of
    its call.

    Args:
      blocks: those that the model leaves out where `Widths.kept` says so.
    """
    if unknown := sorted({*kept_blocks(precision)} - {*blocks}):
        raise ValueError(
            f"kept blocks {unknown}: expected {f'some of {sorted(blocks)}' if blocks else 'none'},"
            " the blocks that this model may leave out"
        )
    asked = precision.named_layers if isinstance(precision, Widths) else set()
    wanted = {*asked, *model.modes.layers}
    if not wanted:
        return
    params = model.variables.get("params", {})
    flat = [path for path, _ in jax.tree_util.tree_flatten_with_path(params)[0]]
    known = {"/".join(key.key for key in path[:-1]) for path in flat if path[-1].key in WEIGHTS}
    model.modes.check_layers(known, asked)
