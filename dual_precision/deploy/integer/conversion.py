"""From a trained network to the integer network of the same modes."""

import collections
from collections.abc import Collection, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.core import FrozenDict
from flax.traverse_util import flatten_dict, unflatten_dict

from dual_precision.costs import pixel_layer
from dual_precision.deploy.file.contents import Leaves, check_numbers, check_shapes
from dual_precision.deploy.forms import call_form, layer_form, trace_forms, with_forms
from dual_precision.deploy.integer.layers import (
    SUMS,
    FoldedNorm,
    IntegerLayer,
    LayerPlan,
    Plans,
    group_bounds,
)
from dual_precision.primitives import nested
from dual_precision.primitives.quantizers import code_range
from dual_precision.structure import (
    Example,
    Layer,
    LayerPath,
    Structure,
    check_nested,
    mode_order,
    structure_of,
)

_EXACT = 2**24  # float32 holds every integer up to here


def to_integer(
    model: nn.Module, variables: Mapping[str, Any], example: Example
) -> tuple[nn.Module, dict[str, dict[str, Any]]]:
    """The same model with integer layers, and its variables: int8 codes and a few floats.

    The output of a layer may go to a normalisation, and then to that alone: it is its bare sums.
    Layers and normalisations are those that attributes of the model name by their classes, as in
    `conv: ModuleDef = Conv`. What else a model computes must not depend on the mode.

    Args:
      model, variables: as `dual_precision.load` and `load_packed` give; they may hold the values of
        some modes alone, and then the integer network has those.
      example: what the model takes, see `structure_of`.

    Raises:
      ValueError: a layer has float weights in a mode, or is of a class with a call or a quantizer
        of its own, or of none that an attribute names; the output of one goes to a normalisation
        and elsewhere, or it is called more than once and goes to one; values are missing; weights
        that are not finite; sums beyond int32.

    >>> model, variables = load_packed("net.safetensors")  # doctest: +SKIP
    >>> integer_model, integers = to_integer(model, variables, task.example)  # doctest: +SKIP
    >>> integer_model.apply(integers, images, precision="low")  # doctest: +SKIP
    """
    structure = structure_of(model, example)
    check_nested(structure)
    _check_calls(structure)
    leaves, present = _present(structure, dict(flatten_dict(variables)))
    normalised = set(structure.sources.values())
    shared = _shared_input(structure)
    finite = all(np.issubdtype(leaf.dtype, np.integer) for leaf in jax.tree.leaves(example))
    plans: dict[str, LayerPlan] = {}
    params: Leaves = {}
    for path, layer in structure.layers.items():
        codes = stored_codes(path, layer, leaves)
        groups = {mode: _groups(path, codes, layer, mode) for mode in present}
        plan = LayerPlan(FrozenDict(groups), path in normalised, path == shared, finite)
        plans["/".join(path)] = plan
        params[*path, "kernel"] = jnp.asarray(codes)
        scaled = () if path in normalised else present
        params |= _scaling(path, layer, leaves, present, scaled)
    for path in structure.norms:
        for mode in present:
            params |= _norm(path, structure, leaves, mode)
    others = {path: leaf for path, leaf in leaves.items() if not structure.is_inside(path)}
    integers = unflatten_dict({("params", *path): leaf for path, leaf in params.items()} | others)
    integer_model = _with_integer_layers(model, structure, FrozenDict(plans))
    forms = (IntegerLayer, FoldedNorm)
    _check_uses(trace_forms(integer_model, integers, structure, example, present[0], forms))
    return integer_model, integers


def has_integer_forms(structure: Structure) -> bool:
    """Whether every layer says its product alone, so that `to_integer` has a form of it."""
    try:
        check_nested(structure)
        for path in structure.layers:
            layer_form(structure.classes[path], IntegerLayer)
    except ValueError:
        return False
    return True


def _check_calls(structure: Structure) -> None:
    """Raises ValueError where bare sums would come from, or go to, more than one call."""
    for path, source in structure.sources.items():
        if structure.norm_calls[path] > 1:
            raise ValueError(
                f"normalisation {'/'.join(path)!r} is called {structure.norm_calls[path]} times:"
                " expected once, as it takes the scale of the layer before it"
            )
        if structure.layers[source].calls > 1:
            raise ValueError(
                f"layer {'/'.join(source)!r} is called {structure.layers[source].calls} times, and"
                f" its output goes to the normalisation {'/'.join(path)!r}: expected once, as an"
                " integer layer gives its bare sums there"
            )


def _present(structure: Structure, leaves: Leaves) -> tuple[Leaves, list[str]]:
    """The modes that the leaves hold all values of, and what these read.

    Raises:
      ValueError: there is none; a leaf of another shape than the model has.
    """
    order = mode_order(structure)
    present = [mode for mode in order if structure.leaves_of([mode]).keys() <= leaves.keys()]
    needed = structure.leaves_of(present or order[:1])
    leaves = {path: leaf for path, leaf in leaves.items() if path in needed}
    check_shapes(leaves, needed)
    check_numbers(leaves)
    return leaves, present


def _shared_input(structure: Structure) -> LayerPath | None:
    """The first layer if what it sees is the same in every mode: nothing quantizes that, no
    normalisation came before, and it is called once, so that it sees nothing else."""
    path = None if structure.first_norms else pixel_layer(structure.layers)
    return path if path is None or structure.layers[path].calls == 1 else None


def _check_uses(jaxpr: Any) -> None:
    """Raises ValueError where sums that are marked are used twice, or given back: the one use that
    the structure knows is that of the normalisation."""
    uses = collections.Counter(
        id(var) for var in (*jaxpr.outvars, *(var for eqn in jaxpr.eqns for var in eqn.invars))
    )
    for eqn in jaxpr.eqns:
        name = eqn.params.get("name")
        if eqn.primitive.name == "name" and name.startswith(SUMS) and uses[id(eqn.outvars[0])] > 1:
            raise ValueError(
                f"the output of layer {name.removeprefix(SUMS)!r} goes to a normalisation and"
                " elsewhere: expected it to go to that alone, as an integer layer gives its bare"
                " sums there"
            )
        for value in eqn.params.values():
            for inner in value if isinstance(value, tuple | list) else (value,):
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    _check_uses(inner)


def stored_codes(path: LayerPath, layer: Layer, leaves: Leaves) -> np.ndarray:
    """int8 codes of the stored width."""
    if layer.stored is None:
        raise ValueError(
            f"layer {'/'.join(path)!r} has float weights in every mode: an integer network has"
            " codes alone; give the layer 1 to 8 bits"
        )
    kernel = leaves["params", *path, "kernel"]
    nested.check_finite(kernel)
    return np.asarray(_encode(kernel, leaves["params", *path, "step"], np.int32(layer.stored)))


@jax.jit  # with a traced width: one small compilation per shape
def _encode(kernel: jax.Array, step: jax.Array, stored: jax.Array) -> jax.Array:
    return nested.encode(kernel, step, stored, stored).astype(jnp.int8)


def _groups(path: LayerPath, codes: np.ndarray, layer: Layer, mode: str) -> int:
    """The fewest groups of input channels whose sums float32 holds exactly; 1 for float inputs.

    By the bound of a partial sum that stands at the top of layers.py.
    """
    weights, activations, stored = _widths(layer, mode)
    if activations is None:
        return 1
    odd = 2 * (codes.astype(np.int64) >> (stored - weights)) + 1
    odd = odd.reshape(-1, *odd.shape[-2:])
    low, top = (int(code) for code in code_range(activations, layer.signed))
    signs = np.stack([odd.clip(min=0).sum(axis=0), (-odd).clip(min=0).sum(axis=0)])
    most = top * signs - low * signs[::-1]
    inputs = most.shape[1]
    if most.sum(axis=1).max() < 2**31:
        for groups in range(1, inputs + 1):
            if np.add.reduceat(most, group_bounds(inputs, groups)[:-1], axis=1).max() <= _EXACT:
                return groups
    raise ValueError(
        f"layer {'/'.join(path)!r} of {inputs} input channels sums up to"
        f" {most.sum(axis=1).max()} in precision {mode!r}: expected less than 2^31, and {_EXACT} of"
        " one channel; give it fewer bits"
    )


def _widths(layer: Layer, mode: str) -> tuple[int, int | None, int]:
    own, stored = layer.table[mode], layer.stored
    assert own.weights is not None, "mode_order refuses float weights beside codes"
    assert stored is not None, "_codes refuses float weights in every mode"
    return own.weights, own.activations, stored


def _scale(path: LayerPath, layer: Layer, leaves: Leaves, mode: str) -> np.ndarray:
    """The factor of the sums of a layer, step * 2^(N-n) / 2 * input_step, as the training forward
    rounds it: float32 [out], the product alone is not exact."""
    weights, activations, stored = _widths(layer, mode)
    step = np.asarray(leaves["params", *path, "step"], np.float32)
    scale = step * np.float32(2.0 ** (stored - weights - 1))
    if activations is None:
        return scale
    return scale * np.float32(leaves["params", *path, "input_step", mode])


def _scaling(
    path: LayerPath, layer: Layer, leaves: Leaves, modes: list[str], scaled: Collection[str]
) -> Leaves:
    """The floats of a layer: input steps of `modes`; scales of `scaled`, and then its bias."""
    params = ("params", *path)
    own: Leaves = {
        (*path, "input_step", mode): leaves[*params, "input_step", mode]
        for mode in modes
        if layer.table[mode].activations is not None
    }
    for mode in scaled:
        own[*path, "scale", mode] = _scale(path, layer, leaves, mode)
        if (*params, "bias") in leaves:
            own[*path, "bias"] = leaves[*params, "bias"]
    return {name: jnp.asarray(value, jnp.float32) for name, value in own.items()}


def _norm(path: LayerPath, structure: Structure, leaves: Leaves, mode: str) -> Leaves:
    """Gain and offset of a normalisation in a mode, and the scale of the layer before it."""
    own = {name: leaves[p] for name, p in structure.norm_leaves(path, mode).items()}
    gain, offset = structure.norms[path].affine(**own)
    values = {"gain": gain, "offset": offset}
    layer = structure.sources.get(path)
    if layer is not None:
        values["scale"] = jnp.asarray(_scale(layer, structure.layers[layer], leaves, mode))
        if ("params", *layer, "bias") in leaves:
            values["shift"] = leaves["params", *layer, "bias"]
    return {(*path, mode, name): jnp.asarray(v, jnp.float32) for name, v in values.items()}


def _with_integer_layers(model: nn.Module, structure: Structure, plans: Plans) -> nn.Module:
    """The model with integer classes in the place of those that its attributes name."""

    def integer(cls: type) -> Any:
        return partial(layer_form(cls, IntegerLayer), plans=plans)

    return with_forms(model, structure, integer, partial(call_form, form=FoldedNorm))
