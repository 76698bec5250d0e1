"""What a packed file says about itself, besides its weights."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp

from dual_precision.deploy.file.examples import example_to_json
from dual_precision.layers.facts import FloatProduct
from dual_precision.structure import Example, Layer, LayerPath


@dataclasses.dataclass(frozen=True)
class PackedInfo:
    """What a packed file says about itself.

    Attributes:
      network: what `build_from` takes.
      layers: path -> Layer, as `structure_of` gives.
      example: what the network takes, see `structure_of`.
      metadata: what `save_packed` was given.
      bytes_read: mode -> bytes that `load_packed(path, mode)` reads, fewest first.
      products: path -> its products of activations, as `structure_of` gives.
    """

    network: dict[str, Any]
    layers: Mapping[LayerPath, Layer]
    example: Example
    metadata: dict[str, Any]
    bytes_read: dict[str, int]
    products: Mapping[LayerPath, FloatProduct] = dataclasses.field(default_factory=dict)

    def chosen(self, precisions: Sequence[str] | None = None) -> tuple[str, ...]:
        """The modes of that name, narrowest first; None is all.

        Raises:
          ValueError: one that the file does not hold, or none at all.
        """
        names = tuple(self.bytes_read)
        if precisions is None:
            return names
        if isinstance(precisions, str) or not precisions or not {*precisions} <= {*names}:
            raise ValueError(
                f"precisions {precisions!r}: expected some of {[*names]}, in a list or a tuple"
            )
        return tuple(name for name in names if name in precisions)

    @property
    def trained(self) -> tuple[str, ...]:
        """The modes that were trained, as its metadata say, a list "trained"; without one all.

        None where the list names none of them, such as ["float"], which no file holds.
        """
        said, modes = self.metadata.get("trained"), tuple(self.bytes_read)
        return tuple(mode for mode in modes if mode in said) if isinstance(said, list) else modes

    @property
    def choices(self) -> tuple[str, ...]:
        """The modes that a program may choose from by itself: the trained ones, if there are any.

        An untrained one answers where somebody asks for it by its name.
        """
        return self.trained or tuple(self.bytes_read)

    @property
    def image_shape(self) -> tuple[int, ...]:
        """[H, W, C] of the uint8 images that the network takes.

        Raises:
          ValueError: it takes something else.
        """
        own = self.example
        if isinstance(own, tuple) or own.dtype != jnp.uint8 or len(own.shape) != 3:
            raise ValueError(
                f"a network that takes {example_to_json(own)}: expected one of uint8 images"
                " [H, W, C]; ask for `example`"
            )
        return own.shape
