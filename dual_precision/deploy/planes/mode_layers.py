"""A trained network on bit planes: its own modes, and any number of planes at every call.

    model, variables = load_packed("austen.safetensors")
    layered, planes = to_plane_layers(model, variables, example)
    layered.apply(planes, text, precision="low")                        # reads 2 of 8 planes
    layered.apply(planes, text, precision=Widths("high", weights=4))    # reads 4

Each mode keeps its norms and the steps of its inputs, so that the products have the bits of the
training forward; `bit_layers` is for networks that have no such modes. All widths are static here:
each has its own program.
"""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict

from dual_precision.deploy.forms import call_form, layer_form, trace_forms, with_forms
from dual_precision.layers import QuantizedLayer, Recurrence
from dual_precision.layers.facts import Layer
from dual_precision.precision import Asked
from dual_precision.primitives.bitserial import pack_words, plane_product
from dual_precision.primitives.nested import encode
from dual_precision.primitives.quantizers import input_grid, rescaled_step
from dual_precision.primitives.recurrence import Carry, plane_recurrence
from dual_precision.structure import Example, Structure, check_nested, structure_of

FLOAT_DIGITS = 16  # bits of inputs that a mode does not quantize


class ModeLayer(QuantizedLayer):
    """The form of a matrix product that reads planes in its own modes, see `forms.layer_form`.

    Parameters: `words` and `scales` as of `plane_product`, `input_step` by mode, `bias`.
    """

    way: ClassVar[str | None] = None  # form of plane_product

    def __call__(self, x: jax.Array, *, precision: Asked) -> jax.Array:
        self.check_call(x)
        rows = x.reshape(-1, x.shape[-1])
        y = self.on_planes(plane_product, rows, precision)(rows)
        if self.use_bias:
            bias: Any = self.get_variable("params", "bias")
            y = y + bias[None]
        return y.reshape(*x.shape[:-1], self.features)

    def on_planes(
        self, function: Callable[..., Any], rows: jax.Array, precision: Asked
    ) -> Callable[..., Any]:
        """`plane_product` of rows [N, inputs], or `plane_recurrence`, with the planes that a call
        asks for."""
        asked = self.modes.resolve(self.path, precision)
        if not isinstance(asked.weights, int) or isinstance(asked.activations, jax.Array):
            raise ValueError(
                f"precision {precision!r} on planes: expected a mode of codes, or Widths of Python"
                " integers, as each width has its own program"
            )
        words: Any = self.get_variable("params", "words")
        scales: Any = self.get_variable("params", "scales")
        planes, bits, wanted = asked.weights, asked.activations, asked.own.activations
        digits, grid = FLOAT_DIGITS, None
        if bits is not None and wanted is not None:
            _check_int8(self.path, bits, self.signed)
            steps: Any = self.get_variable("params", "input_step")
            step = rescaled_step(steps[asked.mode], wanted, bits, self.signed)
            digits, grid = 8, input_grid(rows, step, bits, self.signed)
        way = self.way

        def on_planes(*own: Any) -> Any:
            return function(*own, words, scales, planes, digits, way, grid)

        return on_planes


class ModeRecurrence(Recurrence):
    """The form of a recurrence: its products are those of the ModeLayer that it is mixed with."""

    def __call__(  # type: ignore[override]
        self, gates: jax.Array, carry: Carry, *, precision: Asked
    ) -> tuple[jax.Array, Carry]:
        self.check_call(gates)
        bias: Any = self.get_variable("params", "bias")
        held: Any = self  # mixed with a ModeLayer
        on_planes = ModeLayer.on_planes(held, plane_recurrence, carry[1], precision)
        return on_planes(gates, carry, bias)


class XlaModeLayer(ModeLayer):
    """The same without a compiled kernel."""

    way: ClassVar[str | None] = "xla"


def to_plane_layers(
    model: nn.Module,
    variables: Mapping[str, Any],
    example: Example,
    form: type[ModeLayer] = ModeLayer,
) -> tuple[nn.Module, dict[str, Any]]:
    """The same network with its matrix products on planes, recurrent ones too; the rest stays.

    Args:
      variables: as `load_packed` gives, or `dual_precision.load`.
      example: see `structure_of`.
      form: what its products run through.

    Raises:
      ValueError: float weights, or unsigned inputs of 8 bits, which an int8 code does not hold; a
        layer of a class with a quantizer of its own, or of one that no attribute of the model
        names.
    """
    structure = structure_of(model, example)
    leaves = dict(flatten_dict(dict(variables)))
    for path, layer in structure.layers.items():
        params = ("params", *path)
        if layer.matrix or layer.recurrent:
            _check_layer(structure, path)
            kernel, step = leaves.pop((*params, "kernel")), leaves.pop((*params, "step"))
            stored = layer.stored or 0
            leaves[*params, "words"] = pack_words(encode(kernel, step, stored, stored), stored)
            leaves[*params, "scales"] = jnp.stack(
                [step * 2.0 ** (stored - n) for n in range(1, stored + 1)]
            )
    facts = {structure.classes[path]: own for path, own in structure.layers.items()}
    layered = with_forms(
        model, structure, lambda cls: _form_of(cls, facts[cls], form), lambda cls: cls
    )
    planes = unflatten_dict(leaves)
    norms = {structure.classes[path] for path in structure.norms}
    kept = {cls for cls, own in facts.items() if not (own.matrix or own.recurrent)}
    name = next(iter(model.modes.default), "")
    trace_forms(layered, planes, structure, example, name, (form, *kept, *norms))
    return layered, planes


def _form_of(cls: type, layer: Layer, form: type[ModeLayer]) -> type:
    if layer.matrix:
        return layer_form(cls, form)  # type: ignore[arg-type]
    return call_form(cls, ModeRecurrence, form) if layer.recurrent else cls  # type: ignore[arg-type]


def _check_layer(structure: Structure, path: tuple[str, ...]) -> None:
    check_nested(structure, [path])
    layer = structure.layers[path]
    widths = [own for name, own in layer.table.items() if name in structure.modes.default]
    if layer.stored is None or any(own.weights is None for own in widths):
        raise ValueError(f"layer {'/'.join(path)!r} has float weights: expected codes")
    for own in widths:
        if own.activations is not None:
            _check_int8(path, own.activations, layer.signed)


def _check_int8(path: tuple[str, ...], bits: int, signed: bool) -> None:
    """Raises ValueError for codes that int8 does not hold."""
    if bits == 8 and not signed:
        raise ValueError(
            f"layer {'/'.join(path)!r} has unsigned inputs of 8 bits: expected signed ones, or at"
            " most 7 bits, as the kernel takes int8; ask for fewer, or train it with signed=True"
        )
