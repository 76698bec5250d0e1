"""Layers on bit planes: how many planes a product reads is chosen at every call.

    model, variables = dual_precision.load("runs/mnist-float")  # trained in float, or otherwise
    layered, planes = to_bit_layers(model, variables, task.example)
    layered.apply(planes, images, precision="w4a8")  # 4 planes of every weight, 8-bit activations
    layered.apply(planes, images, precision=Widths("w8a8", weights=n))  # n may be traced

No training, no calibration: activations become fixed-point numbers of 8, 16 or 32 bits, scaled by
the largest of each row, and one set of planes serves 1 to 8 bits. This is PrecisionBatching
(Lam et al. 2020, arXiv 2003.00822) on nested planes; see primitives/bitserial.py.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.core import FrozenDict
from flax.traverse_util import flatten_dict, unflatten_dict

from dual_precision.deploy.file.contents import Leaves, check_numbers, check_shapes
from dual_precision.deploy.forms import call_form, layer_form, trace_forms, with_forms
from dual_precision.deploy.planes.packing import STORED, pack_dense
from dual_precision.layers import Dense, QuantizedLayer, Recurrence
from dual_precision.layers.facts import Layer
from dual_precision.precision import FLOAT_NAME, Asked, Bits, Modes, Precision, mode_of
from dual_precision.primitives.bitserial import plane_product
from dual_precision.primitives.fixed_point import WIDTHS
from dual_precision.primitives.nested import check_bits, encode
from dual_precision.primitives.normalization import scale_and_shift
from dual_precision.primitives.plane_fit import FEW_PLANES
from dual_precision.primitives.quantizers import quantize_weights
from dual_precision.primitives.recurrence import Carry, plane_recurrence
from dual_precision.structure import Example, LayerPath, Structure, check_nested, structure_of

# "w4a16" -> (4, 16): planes, and bits of the fixed-point activations.
NUMBERS = {f"w{n}a{bits}": (n, bits) for bits in WIDTHS for n in range(1, STORED + 1)}
# The modes of all networks on planes. To a mode such activations are float: they need no step. All
# have the norms of the mode that the network was made of, under the name of the first.
FIRST = next(iter(NUMBERS))
PLANES = Modes(
    FrozenDict({name: Precision(n, None) for name, (n, _) in NUMBERS.items()}),
    norms=FrozenDict({name: FIRST for name in NUMBERS if name != FIRST}),
)


class BitLayer(QuantizedLayer):
    """The form of a matrix product that reads planes, see `forms.layer_form`.

    x [..., in] -> [..., features]. Its variables: `pack_dense`. A number of planes that is traced
    compiles the products of all numbers, and reads the planes of one; one that is not 1 to 8 gives
    NaN. All layers read what the call says: those that a model pins to widths of their own, too.

    Attributes:
      form: of `plane_product`; None is the fastest there is.
    """

    modes: Modes = PLANES
    form: str | None = dataclasses.field(default=None, kw_only=True)

    def __call__(self, x: jax.Array, *, precision: Asked) -> jax.Array:
        self.check_call(x)
        product = self.on_planes(plane_product, x.shape[-1], precision)
        y = product(x.reshape(math.prod(x.shape[:-1]), x.shape[-1]))
        if self.use_bias:
            bias: Any = self.get_variable("params", "bias")
            y = y + bias[None]
        return y.reshape(*x.shape[:-1], self.features)

    def on_planes(
        self, function: Callable[..., Any], inputs: int, precision: Asked
    ) -> Callable[..., Any]:
        """`plane_product` or `plane_recurrence` with the planes that a call asks for."""
        planes, activations = self._asked(precision)
        names = ("words", "scales", "bias")
        held: dict[str, Any] = {name: self.get_variable("params", name) for name in names}
        if held["words"] is None or (self.use_bias and held["bias"] is None):
            raise ValueError(
                f"layer {'/'.join(self.path)!r} has no planes: expected variables that"
                " to_bit_layers, pack_dense or pack_lstm made; there is no init"
            )
        self._check_inputs(inputs)
        ways = [
            partial(function, planes=n, activations=activations, form=self.form)
            for n in range(1, STORED + 1)
        ]
        words, scales = held["words"], held["scales"]
        if isinstance(planes, int):
            return lambda *own: ways[planes - 1](*own, words, scales)
        known = (planes >= 1) & (planes <= STORED)  # else `switch` takes the nearest
        scales = jnp.where(known, scales, jnp.nan)
        return lambda *own: jax.lax.switch(planes - 1, ways, *own, words, scales)

    def _check_inputs(self, inputs: int) -> None:
        """The last word of planes is filled up, so that they do not say how many inputs there are;
        the shape of "inputs" does."""
        marker: Any = self.get_variable("params", "inputs")
        if marker is not None and marker.shape[0] != inputs:
            raise ValueError(
                f"layer {'/'.join(self.path)!r} got {inputs} inputs: expected {marker.shape[0]},"
                " of which its planes were made"
            )

    def _asked(self, precision: Asked) -> tuple[Bits, int]:
        """Planes and bits of the activations that a call means."""
        asked = PLANES.resolve(self.path, precision)
        if asked.weights is None or asked.mode not in NUMBERS:
            raise ValueError(
                f"precision {precision!r}: expected w1 to w{STORED} and one of"
                f" {', '.join(f'a{bits}' for bits in WIDTHS)}, as in 'w4a8'"
            )
        check_bits(asked.weights, STORED)
        return asked.weights, NUMBERS[asked.mode][1]


class BitDense(Dense, BitLayer):
    """`Dense` on planes."""

    modes: Modes = PLANES


class BitRecurrence(Recurrence, BitLayer):
    """`Recurrence` on planes: those of h are read for every byte."""

    modes: Modes = PLANES

    def __call__(  # type: ignore[override]
        self, gates: jax.Array, carry: Carry, *, precision: Asked
    ) -> tuple[jax.Array, Carry]:
        self.check_call(gates)
        bias: Any = self.get_variable("params", "bias")
        return self.on_planes(plane_recurrence, self.features, precision)(gates, carry, bias)


class FixedRows(nn.Module):
    """The form of a table of vectors, of one mode, for any number of planes: float rows."""

    def __call__(self, x: jax.Array, *, precision: Asked) -> jax.Array:
        PLANES.check_name(mode_of(precision))
        table: jax.Array = self.get_variable("params", "kernel")
        return table[x]


class FixedNorm(nn.Module):
    """The form of a norm that is x * gain + offset, of one mode, for any number of planes."""

    def __call__(self, x: jax.Array, *, precision: Asked, train: bool = False) -> jax.Array:
        PLANES.check_name(mode_of(precision))
        if train:
            raise ValueError("bit layers are for inference: train the network they came from")
        gain: Any = self.get_variable("params", "gain")
        offset: Any = self.get_variable("params", "offset")
        return scale_and_shift(x, gain, offset)


def to_bit_layers(
    model: nn.Module,
    variables: Mapping[str, Any],
    example: Example,
    mode: str = FLOAT_NAME,
    read: Sequence[int] = FEW_PLANES,
) -> tuple[nn.Module, dict[str, Any]]:
    """The same network on planes: (model, variables) whose precisions are "w1a8" to "w8a32".

    Args:
      model: one whose layers are all products of a matrix, as in an MLP or an LSTM, whose table of
        bytes stays as it is; they and its normalisations are those that its attributes name by
        their classes.
      variables: as `dual_precision.load` gives, or `load_packed` with a `mode` of the file that
        was read.
      example: what the model takes, see `structure_of`.
      mode: whose weights and normalisation to take. Planes are fitted to what it computes with;
        only where those are 8-bit codes, the planes are those of the codes: at 8 planes the
        weights are those of the mode, and at fewer nearer to them than a prefix of the codes, by
        its scale.
      read: numbers of planes that the clips are chosen for, see `fit_planes`.

    Raises:
      ValueError: a layer is no matrix product, or of a class with a quantizer of its own, or of
        one that no attribute names; no such mode, or no values of it in the variables.
    """
    model.modes.check_name(mode)
    structure = structure_of(model, example)
    if others := ["/".join(p) for p, layer in structure.layers.items() if not _has_form(layer)]:
        raise ValueError(
            f"bit layers of {type(model).__name__}, where {others[:3]} and {len(others[3:])} more"
            " are no products of a matrix: expected an MLP or the like; for convolutions take"
            " Predictor"
        )
    check_nested(structure)
    leaves: Leaves = dict(flatten_dict(variables))
    _check_values(leaves, structure, mode)
    owner = model.modes.norm_of(mode)
    packed: Leaves = {
        tuple(FIRST if part == owner else part for part in path): leaf
        for path, leaf in leaves.items()
        if structure.is_read(path, [mode]) and not structure.is_inside(path)
    }
    parts = {path: _pack_layer(structure, path, leaves, mode, read) for path in structure.layers}
    parts |= {path: _pack_norm(structure, path, leaves, mode) for path in structure.norms}
    for path, own in parts.items():
        packed |= {("params", *path, name): leaf for name, leaf in own.items()}
    forms = {structure.classes[path]: layer for path, layer in structure.layers.items()}
    layered = with_forms(
        model,
        structure,
        lambda cls: _form_of(cls, forms[cls]),
        partial(call_form, form=FixedNorm),
        modes=PLANES,
    )
    planes = unflatten_dict(packed)
    trace_forms(layered, planes, structure, example, FIRST, (BitLayer, FixedRows, FixedNorm))
    return layered, planes


def _has_form(layer: Layer) -> bool:
    return layer.matrix or layer.recurrent or layer.rows


def _form_of(cls: type, layer: Layer) -> type:
    if layer.matrix:
        return layer_form(cls, BitLayer)
    return call_form(cls, BitRecurrence if layer.recurrent else FixedRows)  # a call of their own


def _pack_layer(
    structure: Structure, path: LayerPath, leaves: Leaves, mode: str, read: Sequence[int]
) -> dict[str, jax.Array]:
    layer, params = structure.layers[path], ("params", *path)
    kernel, bits, codes = leaves[*params, "kernel"], layer.table[mode].weights, None
    if bits is not None and layer.stored is not None:
        step = leaves[*params, "step"]
        if bits == layer.stored == STORED:
            codes = encode(kernel, step, bits, layer.stored)
        kernel = quantize_weights(kernel, step, bits, layer.stored)
    if layer.rows:
        return {"kernel": kernel}
    return pack_dense(kernel, leaves.get((*params, "bias")), codes, read)


def _pack_norm(
    structure: Structure, path: LayerPath, leaves: Leaves, mode: str
) -> dict[str, jax.Array]:
    own = {name: leaves[p] for name, p in structure.norm_leaves(path, mode).items()}
    gain, offset = structure.norms[path].affine(**own)
    return {"gain": gain, "offset": offset}


def _check_values(leaves: Leaves, structure: Structure, mode: str) -> None:
    """Raises ValueError unless the leaves hold all that a mode computes with."""
    needed = structure.leaves_of([mode])
    if missing := sorted("/".join(path) for path in needed.keys() - leaves.keys()):
        raise ValueError(
            f"variables without {', '.join(missing)}: expected those of precision {mode!r}; load a"
            " checkpoint, or more of the packed file and one of its modes"
        )
    own = {path: leaf for path, leaf in leaves.items() if path in needed}
    check_shapes(own, needed)
    check_numbers(own)
    stored = [path for path, layer in structure.layers.items() if layer.stored]
    if mode == FLOAT_NAME and stored and all(_are_codes(leaves, path) for path in stored):
        raise ValueError(
            f"variables of a packed file, which holds codes alone: expected latent weights for"
            f" {mode!r}; give mode=, a mode of the file that was read"
        )


def _are_codes(leaves: Leaves, path: LayerPath) -> bool:
    """Whether every weight is the middle of a cell, (c + 1/2) * step * 2^k, as a file gives."""
    halves = 2 * np.asarray(leaves["params", *path, "kernel"], np.float64)
    halves /= np.asarray(leaves["params", *path, "step"], np.float64)
    return bool(np.all((np.abs(halves - np.rint(halves)) < 1e-3) & (np.rint(halves) != 0)))
