"""What a model is made of, read by one trace that computes nothing.

Its layers and normalisations say their own facts (layers/facts.py); the trace adds which of them
feeds which, the shapes of all variables, and whose each of them is.
"""

import dataclasses
import math
from collections.abc import Collection, Mapping
from functools import cached_property
from typing import Any

import jax
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict

from dual_precision.layers.facts import FloatProduct, Layer, Norm
from dual_precision.precision import FLOAT_NAME, Modes

LayerPath = tuple[str, ...]
Example = Any  # a pytree of ShapeDtypeStructs: what a model takes, of one example

# Collection -> what a norm has in it, of every mode with a normalisation of its own.
NORM_LEAVES = {"params": ("scale", "bias"), "batch_stats": ("mean", "var")}
# Names that the layers give to what stands in their part of the tree.
LEAVES = frozenset(
    {"kernel", "bias", "step", "input_step", "scale", "mean", "var", "range"}
    | {"bits", "positive", "negative"}
)


class TooManyLayers(ValueError):
    """A model has more layers than it may have."""


@dataclasses.dataclass(frozen=True)
class Structure:
    """A model, described.

    Attributes:
      modes: of the model.
      layers: path in the parameter tree -> Layer, in the order of the forward pass.
      norms: path -> Norm of those that fold into one factor and offset.
      sources: path of a norm -> path of the layer whose output it takes, where there is one.
      first_norms: norms that come before every layer.
      shapes: path of a variable, its collection first -> shape and dtype.
      norm_calls: path of a norm -> times it is called.
      classes: path of a layer or a norm -> its class.
      products: path of a module, such as an attention -> its products of activations.
      outputs: shapes and dtypes of what the model gives of a batch of one example.
    """

    modes: Modes
    layers: Mapping[LayerPath, Layer]
    norms: Mapping[LayerPath, Norm]
    sources: Mapping[LayerPath, LayerPath]
    first_norms: Collection[LayerPath]
    shapes: Mapping[LayerPath, jax.ShapeDtypeStruct]
    norm_calls: Mapping[LayerPath, int]
    classes: Mapping[LayerPath, type]
    products: Mapping[LayerPath, FloatProduct] = dataclasses.field(default_factory=dict)
    outputs: Any = None

    def owner(self, leaf: LayerPath) -> str | None:
        """The mode that a leaf of the tree belongs to alone; None where modes share it."""
        return next((key for key in leaf if key in self.modes.names), None)

    def is_read(self, leaf: LayerPath, modes: Collection[str]) -> bool:
        """Whether some mode of `modes` computes with a leaf of the tree."""
        mode = self.owner(leaf)
        if mode is None:
            return True
        parts = _prefixes(leaf)
        in_layer = not parts.isdisjoint(self.layers) and parts.isdisjoint(self.norms)
        if in_layer or "input_step" in leaf:
            return mode in modes
        return mode in {self.modes.norm_of(name) for name in modes}

    def leaves_of(self, modes: Collection[str]) -> dict[LayerPath, tuple[int, ...]]:
        """Shapes of the leaves that all modes share, or that some of `modes` computes with."""
        return {path: leaf.shape for path, leaf in self.shapes.items() if self.is_read(path, modes)}

    def norm_leaves(self, path: LayerPath, mode: str) -> dict[str, LayerPath]:
        """Name -> path of the four leaves of the norm at `path` that a mode computes with."""
        owner = self.modes.norm_of(mode)
        return {
            name: (collection, *path, owner, name)
            for collection, names in NORM_LEAVES.items()
            for name in names
        }

    def is_inside(self, leaf: LayerPath) -> bool:
        """Whether a leaf belongs to a layer or a norm; others belong to the model itself."""
        return not _prefixes(leaf).isdisjoint(self.layers.keys() | self.norms.keys())

    @property
    def params(self) -> dict[str, Any]:
        """Shapes and dtypes of the parameters, as their tree."""
        leaves = {path[1:]: leaf for path, leaf in self.shapes.items() if path[0] == "params"}
        return unflatten_dict(leaves)

    @cached_property
    def parts(self) -> frozenset[str]:
        """Names in the tree, which no mode may have."""
        return LEAVES | {part for path in (*self.layers, *self.norms) for part in path}


def _prefixes(leaf: LayerPath) -> set[LayerPath]:
    """Paths of the modules that a leaf is in."""
    return {leaf[1:end] for end in range(1, len(leaf) + 1)}


def structure_of(model: nn.Module, example: Example, most: int | None = None) -> Structure:
    """Traces the model once.

    Args:
      example: what the model takes besides `precision`, of one example and without the axis of
        the batch: a ShapeDtypeStruct, or a tuple of pytrees of them; see `Task.example`.

    Raises:
      ValueError: a mode has the name of a part of the tree; widths for unknown layers; a layer or
        a norm that is called without an input, or with it by name.
      TooManyLayers: it has more than `most` layers, found before they are all traced.
    """
    trace = _Trace(most)

    def init(key: jax.Array, *inputs: Any) -> Any:
        with nn.intercept_methods(trace.note):
            return model.init_with_output(key, *inputs, precision=FLOAT_NAME)

    outputs, variables = jax.eval_shape(init, jax.random.key(0), *batch_of(example, 1))
    structure = Structure(
        model.modes,
        trace.layers,
        trace.norms,
        trace.sources,
        trace.first_norms,
        flatten_dict(dict(variables)),
        trace.norm_calls,
        trace.classes,
        trace.products,
        outputs,
    )
    if clash := sorted(structure.parts & set(model.modes.names)):
        raise ValueError(f"mode names {clash} are names in the model's tree: rename the modes")
    model.modes.check_layers({"/".join(path) for path in structure.layers})
    return structure


def batch_of(example: Example, rows: int) -> tuple[Any, ...]:
    """What the model takes besides `precision`, of so many rows: ShapeDtypeStructs.

    Raises:
      ValueError: the example is something else than `structure_of` takes, such as a shape alone.
    """
    inputs = example if isinstance(example, tuple) else (example,)
    for leaf in jax.tree.leaves(inputs):
        if not (hasattr(leaf, "shape") and hasattr(leaf, "dtype")):
            raise ValueError(
                f"an example of {example!r}: expected jax.ShapeDtypeStruct(shape, dtype), or a"
                " tuple of them, as Task.example gives"
            )
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((rows, *leaf.shape), leaf.dtype), inputs)


class _Trace:
    """What is noted while a model is traced."""

    def __init__(self, most: int | None) -> None:
        self.most = most
        self.layers: dict[LayerPath, Layer] = {}
        self.norms: dict[LayerPath, Norm] = {}
        self.sources: dict[LayerPath, LayerPath] = {}
        self.first_norms: list[LayerPath] = []
        self.norm_calls: dict[LayerPath, int] = {}
        self.classes: dict[LayerPath, type] = {}
        self.products: dict[LayerPath, FloatProduct] = {}
        self._made: list[tuple[jax.Array, LayerPath]] = []  # outputs of layers, by identity
        self._open: list[LayerPath] = []  # modules whose call has not ended

    def note(self, call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        path = context.module.path
        if context.method_name != "__call__" or path in self._open:  # a class that calls its base
            return call(*args, **kwargs)
        self._open.append(path)
        result = call(*args, **kwargs)
        self._open.pop()
        if not hasattr(context.module, "facts"):  # it may be called in any way
            return result
        if not args:
            raise ValueError(
                f"layer {'/'.join(path)!r} is called with {sorted(kwargs)} by name: expected its"
                " input first, without a name, as in layer(x, precision=precision)"
            )
        facts = context.module.facts(args[0], result)
        if isinstance(facts, Layer | Norm):
            self.classes[path] = type(context.module)
        if isinstance(facts, Layer):
            known = self.layers.get(path)
            self.layers[path] = facts if known is None else known.called_again(facts)
            self._made.append((result, path))
            if self.most is not None and len(self.layers) > self.most:
                raise TooManyLayers(f"its network has more layers than the {self.most} listed")
        elif isinstance(facts, FloatProduct):
            before = self.products.get(path)
            self.products[path] = facts if before is None else before.called_again(facts)
        elif isinstance(facts, Norm):
            self.norms[path] = facts
            self.norm_calls[path] = self.norm_calls.get(path, 0) + 1
            if not self._made:
                self.first_norms.append(path)
            for array, source in self._made:
                if array is args[0]:
                    self.sources[path] = source
        return result


def check_nested(structure: Structure, paths: Collection[LayerPath] | None = None) -> None:
    """Raises ValueError where layers compute with other grids than the nested one; None is all."""
    for path in structure.layers if paths is None else paths:
        if not structure.layers[path].nested:
            raise ValueError(
                f"layer {'/'.join(path)!r} of class {structure.classes[path].__name__} quantizes in"
                " a way of its own, and what is packed or deployed are codes of the nested grid,"
                " one store for all modes: expected a class that leaves to QuantizedLayer how it"
                " quantizes; train the same network with such layers"
            )


def free_layers(structure: Structure, mode: str) -> tuple[str, ...]:
    """The layers whose widths in a mode are a choice, in the order of the forward pass.

    They have bits of weights and of activations there, and other ones in some other mode: a layer
    with the same widths in all modes, such as the first and the last, is meant to keep them.
    """

    def is_free(layer: Layer) -> bool:
        named = {precision for name, precision in layer.table.items() if name != FLOAT_NAME}
        own = layer.table[mode]
        return len(named) > 1 and None not in (own.weights, own.activations)

    return tuple("/".join(path) for path, layer in structure.layers.items() if is_free(layer))


def mode_order(structure: Structure) -> list[str]:
    """The named modes, fewest weight bits first.

    Raises:
      ValueError: there is none, or one that keeps float weights where another has codes.
    """
    names = list(structure.modes.default)
    if not names:
        raise ValueError("a model without modes: expected at least one, such as low='w2a2'")
    for path, layer in structure.layers.items():
        mixed = [n for n in names if layer.stored and layer.table[n].weights is None]
        if mixed:
            raise ValueError(
                f"layer {'/'.join(path)!r} has float weights in {mixed} and codes in other modes:"
                " what is deployed is codes alone; give the layer 1 to 8 bits in every mode"
            )

    def weight_bits(name: str) -> int:
        return sum(
            math.prod(layer.kernel) * layer.table[name].weight_bits
            for layer in structure.layers.values()
        )

    return sorted(names, key=weight_bits)
