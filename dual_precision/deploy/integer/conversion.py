"""From a trained network to the integer network of the same modes."""

import collections
import dataclasses
from collections.abc import Collection, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.core import FrozenDict
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.ad_checkpoint import checkpoint_name

from dual_precision.costs import pixel_layer
from dual_precision.deploy.file.contents import (
    Leaves,
    Outline,
    check_shapes,
    folded_gain,
    mode_order,
    outline,
)
from dual_precision.deploy.integer.layers import (
    FoldedNorm,
    IntegerConv,
    IntegerDense,
    IntegerLayer,
    LayerPlan,
    Plans,
    group_bounds,
)
from dual_precision.layers import Conv, Dense, QuantizedLayer, SwitchableBatchNorm
from dual_precision.primitives import nested
from dual_precision.structure import Layer, Path

_SUMS = "sums of "  # marks them in a trace
EXACT = 2**24  # float32 holds every integer up to here


def to_integer(
    model: nn.Module, variables: Mapping[str, Any], image_shape: tuple[int, ...]
) -> tuple[nn.Module, dict[str, dict[str, Any]]]:
    """The same model with integer layers, and its variables: int8 codes and a few floats.

    The output of a layer may go to a normalisation, and then to that alone: it is its bare sums.
    Layers and normalisations are those that the model's attributes name by their classes, as in
    `conv: ModuleDef = Conv`. What else a model computes must not depend on the mode.

    Args:
      model, variables: as `dual_precision.load` and `load_packed` give; they may hold the values of
        some modes alone, and then the integer network has those.
      image_shape: [H, W, C] of the images that it takes.

    Raises:
      ValueError: a layer has float weights in a mode, or is of another class than Conv or Dense,
        or of none that an attribute names; the output of one goes to a normalisation and elsewhere;
        values are missing; weights that are not finite; sums beyond int32.

    >>> model, variables = load_packed("net.safetensors")  # doctest: +SKIP
    >>> integer_model, integers = to_integer(model, variables, (32, 32, 3))  # doctest: +SKIP
    >>> integer_model.apply(integers, images, precision="low")  # doctest: +SKIP
    """
    own, before, at_start = _trace(model, tuple(image_shape))
    order = mode_order(own.layers)
    leaves: Leaves = dict(flatten_dict(variables))
    present = [mode for mode in order if own.leaves_of([mode]).keys() <= leaves.keys()]
    needed = own.leaves_of(present or order[:1])
    check_shapes({path: leaf for path, leaf in leaves.items() if path in needed}, needed)
    normalised = set(before.values())
    plans: dict[str, LayerPlan] = {}
    integers: Leaves = {}
    for path, layer in own.layers.items():
        codes = _codes(path, layer, leaves)
        groups = {mode: _groups(path, codes, layer, mode) for mode in present}
        shared = path == at_start
        plans["/".join(path)] = LayerPlan(FrozenDict(groups), path in normalised, shared)
        integers[*path, "kernel"] = jnp.asarray(codes)
        scaled = () if path in normalised else present
        integers |= _scaling(path, layer, leaves, present, scaled)
    for path, epsilon in own.norms.items():
        for mode in present:
            integers |= _fold(path, epsilon, before.get(path), own, leaves, mode)
    integer_model = _with_integer_layers(model, FrozenDict(plans))
    integer_variables = {"params": unflatten_dict(integers)}
    _check(integer_model, integer_variables, tuple(image_shape), present[0])
    return integer_model, integer_variables


def _trace(
    model: nn.Module, image_shape: tuple[int, ...]
) -> tuple[Outline, dict[Path, Path], Path | None]:
    """The outline, which layer's output each normalisation takes, and the first layer if what it
    sees is the same in every mode: nothing quantizes that, and no normalisation came before."""
    made: list[tuple[jax.Array, Path]] = []
    before: dict[Path, Path] = {}
    norms: dict[Path, bool] = {}  # of each, whether it came before every layer

    def note(call, args, kwargs, context):
        result = call(*args, **kwargs)
        module = context.module
        if context.method_name != "__call__":
            return result
        if isinstance(module, QuantizedLayer):
            if type(module) not in (Conv, Dense) or any(module.path == path for _, path in made):
                raise ValueError(
                    f"layer {'/'.join(module.path)!r} of class {type(module).__name__}: expected"
                    " Conv or Dense, called once"
                )
            made.append((result, module.path))
        if isinstance(module, SwitchableBatchNorm):
            if module.path in norms:
                raise ValueError(
                    f"normalisation {'/'.join(module.path)!r} is called twice: expected once, as"
                    " it takes the scale of the layer before it"
                )
            norms[module.path] = not made
            for array, path in made:
                if array is args[0]:
                    before[module.path] = path
        return result

    with nn.intercept_methods(note):
        own = outline(model, image_shape)
    return own, before, None if any(norms.values()) else pixel_layer(own.layers)


def _check(
    model: nn.Module, variables: Mapping[str, Any], image_shape: tuple[int, ...], mode: str
) -> None:
    """Traces the integer network once, without computing.

    Raises:
      ValueError: a layer or a normalisation is still that of the training network; bare sums go
        elsewhere than to their normalisation.
    """

    def note(call, args, kwargs, context):
        module = context.module
        if context.method_name != "__call__":
            return call(*args, **kwargs)
        stays = isinstance(module, QuantizedLayer) and not isinstance(module, IntegerLayer)
        if stays or isinstance(module, SwitchableBatchNorm):
            raise ValueError(
                f"layer {'/'.join(module.path)!r} keeps its class {type(module).__name__}: expected"
                " one that an attribute of the model names, as in `conv: ModuleDef = Conv`; no"
                " partial, no instance, no class written into the model's code"
            )
        result = call(*args, **kwargs)
        if isinstance(module, IntegerLayer) and module.plans["/".join(module.path)].raw:
            return checkpoint_name(result, _SUMS + "/".join(module.path))
        return result

    def forward(variables: Any, images: jax.Array) -> Any:
        with nn.intercept_methods(note):
            return model.apply(variables, images, precision=mode)

    images = jax.ShapeDtypeStruct((1, *image_shape), jnp.uint8)
    _check_uses(jax.make_jaxpr(forward)(variables, images).jaxpr)


def _check_uses(jaxpr: Any) -> None:
    """Raises ValueError where sums that are marked are used twice, or given back: the one use that
    `_trace` saw is that of the normalisation."""
    uses = collections.Counter(
        id(var) for var in (*jaxpr.outvars, *(var for eqn in jaxpr.eqns for var in eqn.invars))
    )
    for eqn in jaxpr.eqns:
        name = eqn.params.get("name")
        if eqn.primitive.name == "name" and name.startswith(_SUMS) and uses[id(eqn.outvars[0])] > 1:
            raise ValueError(
                f"the output of layer {name.removeprefix(_SUMS)!r} goes to a normalisation and"
                " elsewhere: expected it to go to that alone, as an integer layer gives its bare"
                " sums there"
            )
        for value in eqn.params.values():
            for inner in value if isinstance(value, tuple | list) else (value,):
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    _check_uses(inner)


def _codes(path: Path, layer: Layer, leaves: Leaves) -> np.ndarray:
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


def _groups(path: Path, codes: np.ndarray, layer: Layer, mode: str) -> int:
    """The fewest groups of input channels whose sums float32 holds exactly; 1 for float inputs.

    No partial sum of a group is larger than top * max(sum of positive, -sum of negative weights).
    """
    weights, activations, stored = _widths(layer, mode)
    if activations is None:
        return 1
    odd = 2 * (codes.astype(np.int64) >> (stored - weights)) + 1
    odd = odd.reshape(-1, *odd.shape[-2:])
    top = 2**activations - 1
    most = np.stack([odd.clip(min=0).sum(axis=0), (-odd).clip(min=0).sum(axis=0)]) * top
    inputs = most.shape[1]
    if most.sum(axis=1).max() < 2**31:
        for groups in range(1, inputs + 1):
            if np.add.reduceat(most, group_bounds(inputs, groups)[:-1], axis=1).max() <= EXACT:
                return groups
    raise ValueError(
        f"layer {'/'.join(path)!r} of {inputs} input channels sums up to"
        f" {most.sum(axis=1).max()} in precision {mode!r}: expected less than 2^31, and {EXACT} of"
        " one channel; give it fewer bits"
    )


def _widths(layer: Layer, mode: str) -> tuple[int, int | None, int]:
    own, stored = layer.table[mode], layer.stored
    assert own.weights is not None, "mode_order refuses float weights beside codes"
    assert stored is not None, "_codes refuses float weights in every mode"
    return own.weights, own.activations, stored


def _scale(path: Path, layer: Layer, leaves: Leaves, mode: str) -> np.ndarray:
    """The factor of a layer's sums, step * 2^(N-n) / 2 * input_step; float64 [out]."""
    weights, activations, stored = _widths(layer, mode)
    scale = np.asarray(leaves["params", *path, "step"], np.float64) * 2.0 ** (stored - weights - 1)
    if activations is None:
        return scale
    return scale * np.float64(leaves["params", *path, "input_step", mode])


def _scaling(
    path: Path, layer: Layer, leaves: Leaves, modes: list[str], scaled: Collection[str]
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


def _fold(
    path: Path, epsilon: float, layer: Path | None, own: Outline, leaves: Leaves, mode: str
) -> Leaves:
    """Multiplier and offset of a normalisation in a mode, each rounded to float32 once."""
    params, statistics = ("params", *path, mode), ("batch_stats", *path, mode)
    gain = np.asarray(
        folded_gain(leaves[*params, "scale"], leaves[*statistics, "var"], epsilon), np.float64
    )
    mean = np.asarray(leaves[*statistics, "mean"], np.float64)
    scale: np.ndarray | float = 1.0
    if layer is not None:
        scale = _scale(layer, own.layers[layer], leaves, mode)
        if ("params", *layer, "bias") in leaves:
            mean = mean - np.asarray(leaves["params", *layer, "bias"], np.float64)
    offset = np.asarray(leaves[*params, "bias"], np.float64) - mean * gain
    return {
        (*path, mode, "multiplier"): jnp.asarray(gain * scale, jnp.float32),
        (*path, mode, "offset"): jnp.asarray(offset, jnp.float32),
    }


def _with_integer_layers(model: nn.Module, plans: Plans) -> nn.Module:
    """The model with integer classes in the place of those that its attributes name."""
    classes: dict[type, Any] = {
        Conv: partial(IntegerConv, plans=plans),
        Dense: partial(IntegerDense, plans=plans),
        SwitchableBatchNorm: FoldedNorm,
    }
    values = {field.name: getattr(model, field.name) for field in dataclasses.fields(model)}
    return model.clone(
        **{
            name: classes[value]
            for name, value in values.items()
            if isinstance(value, type) and value in classes
        }
    )
