"""What stands in a packed file: from variables to the tensors of each mode's section, and back.

The sections follow each other from the mode with the fewest weight bits to the one with the most.
A section holds what its mode needs and those before do not have:

    params/.../step, bias                           in the first: what every mode shares
    input_steps/low             float32 [layers]    of the layers that quantize their input
    norm/stem_norm/low          float32 [3, C]      gain, bias, mean
    params/stem/kernel[0:2]     uint8 [2, bytes]    planes 0 and 1 of all 8, see bitplanes.pack

Normalisation keeps gain = scale / sqrt(var + epsilon) in the place of scale and var: a quarter
less, without which a second mode costs more than 2 % of a small network. It comes back as
scale = gain with var = 1 - epsilon, whose factor is exactly 1. bias - mean * gain stays as it is:
XLA fuses it into one rounding inside of a jitted program and not outside, so that no stored
number would stand for both.

A kernel comes back as the middle of each weight's cell, (c + 1/2) * step * 2^(N-n), a latent whose
codes are the ones that were read, so that the same forward gives the same bits.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict

from dual_precision.deploy.file.container import PackedError
from dual_precision.layers import QuantizedLayer, SwitchableBatchNorm
from dual_precision.precision import FLOAT_BITS, FLOAT_NAME
from dual_precision.primitives import bitplanes, nested
from dual_precision.primitives.quantizers import quantize_weights
from dual_precision.structure import Layer, Path, describe_layers

Leaves = dict[Path, Any]
Sections = dict[str, dict[str, np.ndarray]]


@dataclasses.dataclass(frozen=True)
class Outline:
    """What a file of a model holds.

    Attributes:
      layers: its quantized layers.
      norms: the epsilon of each of its normalisations.
      shapes: of every leaf of its variables.
    """

    layers: dict[Path, Layer]
    norms: dict[Path, float]
    shapes: dict[Path, tuple[int, ...]]

    def leaves_of(self, modes: Sequence[str]) -> dict[Path, tuple[int, ...]]:
        """The leaves that all modes share, or that belong to one of `modes`."""
        others = {mode for layer in self.layers.values() for mode in layer.table} - {*modes}
        return {path: shape for path, shape in self.shapes.items() if not others & {*path}}


def outline(model: nn.Module, image_shape: tuple[int, ...], most: int | None = None) -> Outline:
    """Traces the model once, without computing.

    Raises:
      PackedError: it has more than `most` layers, found before they are all traced.
    """
    norms: dict[Path, float] = {}
    shapes: dict[Path, tuple[int, ...]] = {}
    count = 0

    def note(call, args, kwargs, context):
        nonlocal count
        module = context.module
        if context.method_name == "__call__" and isinstance(module, SwitchableBatchNorm):
            norms[module.path] = float(module.epsilon)
        if context.method_name == "__call__" and isinstance(module, QuantizedLayer):
            count += 1
            if most is not None and count > most:
                raise PackedError(f"its network has more layers than the {most} that it lists")
        result = call(*args, **kwargs)
        if not module.path:
            shapes.update({path: x.shape for path, x in flatten_dict(module.variables).items()})
        return result

    with nn.intercept_methods(note):
        layers = describe_layers(model, image_shape)
    return Outline(layers, norms, shapes)


def mode_order(layers: Mapping[Path, Layer]) -> list[str]:
    """The named modes, fewest weight bits first.

    Raises:
      ValueError: there is none, or one that keeps float weights where another has codes.
    """
    tables = {path: layer.table for path, layer in layers.items()}
    names = [name for name in next(iter(tables.values()), {}) if name != FLOAT_NAME]
    if not names:
        raise ValueError("a model without modes: expected at least one, such as low='w2a2'")
    for path, layer in layers.items():
        mixed = [n for n in names if layer.stored and layer.table[n].weights is None]
        if mixed:
            raise ValueError(
                f"layer {'/'.join(path)!r} has float weights in {mixed} and codes in other modes:"
                " what is deployed is codes alone; give the layer 1 to 8 bits in every mode"
            )

    def weight_bits(name: str) -> int:
        return sum(
            math.prod(layer.kernel) * (layer.table[name].weights or FLOAT_BITS)
            for layer in layers.values()
        )

    return sorted(names, key=weight_bits)


def plane_ranges(layer: Layer, order: Sequence[str]) -> dict[str, tuple[int, int]]:
    """Mode -> the planes [first, last) that its section adds to those before."""
    ranges, last = {}, 0
    for mode in order:
        first, last = last, max(last, layer.table[mode].weights or 0)
        ranges[mode] = (first, last)
    return ranges


def split(variables: Mapping[str, Any], own: Outline, order: Sequence[str]) -> Sections:
    """The tensors of every section.

    Raises:
      ValueError: a value is missing; a mode has the name of a part of the tree; a weight would
        not come back with the code that it has now.
    """
    leaves: Leaves = dict(flatten_dict(variables))
    parts = {part for path in (*own.layers, *own.norms) for part in path} | {"kernel", "step"}
    if clash := sorted(parts & set(order)):
        raise ValueError(f"mode names {clash} are names in the model's tree: rename the modes")
    check_shapes(leaves, own.shapes)
    kept = own.leaves_of(order)  # float's own values are of no use without float weights
    leaves = {path: leaf for path, leaf in leaves.items() if path in kept}
    planes = _take_kernels(leaves, own, order)
    values = {
        mode: _take_inputs(leaves, own, mode) | _take_norms(leaves, own, mode) for mode in order
    }
    sections: Sections = {mode: {} for mode in order}
    for path, leaf in leaves.items():
        owner = next((part for part in path if part in order), order[0])
        sections[owner]["/".join(path)] = np.asarray(leaf)
    for mode in order:  # floats first: where planes end, 4 bytes seldom begin
        sections[mode] |= values[mode] | planes[mode]
    return sections


def join(tensors: Mapping[str, np.ndarray], own: Outline, order: Sequence[str], last: str) -> Any:
    """Variables of the modes up to `last`, from the tensors of their sections."""
    rest = dict(tensors)
    modes = order[: order.index(last) + 1]
    leaves: Leaves = {}
    for mode in modes:
        leaves |= _give_inputs(rest, own, mode) | _give_norms(rest, own, mode)
    planes = {
        path: [rest.pop(_planes_name(path, span)) for span in _spans(layer, order, modes)]
        for path, layer in own.layers.items()
        if layer.stored
    }
    leaves |= {tuple(name.split("/")): jnp.asarray(array) for name, array in rest.items()}
    for path, parts in planes.items():
        layer, step = own.layers[path], leaves["params", *path, "step"]
        kernel = _to_kernel(np.concatenate(parts), step, layer.kernel, layer.stored or 0)
        leaves["params", *path, "kernel"] = kernel
    check_shapes(leaves, own.leaves_of(modes))
    return unflatten_dict(leaves)


def check_shapes(leaves: Leaves, expected: Mapping[Path, tuple[int, ...]]) -> None:
    """Raises ValueError unless the leaves are those of the model."""
    found = {path: leaf.shape for path, leaf in leaves.items()}
    for path in sorted(found.keys() | expected.keys()):
        if found.get(path) != expected.get(path):
            raise ValueError(
                f"variables with {'/'.join(path)!r} of shape {found.get(path, 'missing')}:"
                f" expected {expected.get(path, 'no such leaf')}, as this model has"
            )


def _planes_name(path: Path, span: tuple[int, int]) -> str:
    return f"params/{'/'.join(path)}/kernel[{span[0]}:{span[1]}]"


def _spans(layer: Layer, order: Sequence[str], modes: Sequence[str]) -> list[tuple[int, int]]:
    ranges = plane_ranges(layer, order)
    return [ranges[mode] for mode in modes if ranges[mode][0] < ranges[mode][1]]


def _take_kernels(leaves: Leaves, own: Outline, order: Sequence[str]) -> Sections:
    taken: Sections = {mode: {} for mode in order}
    for path, layer in own.layers.items():
        if layer.stored is None:  # a layer of float weights in every mode: kept as it is
            continue
        kernel, step = leaves.pop(("params", *path, "kernel")), leaves["params", *path, "step"]
        ranges = plane_ranges(layer, order)
        reads = tuple(sorted({last for _, last in ranges.values()}))
        widths = tuple(sorted({p.weights for p in layer.table.values() if p.weights}))
        planes, sound = _to_planes(kernel, step, layer.stored, reads, widths)
        if not sound:
            raise ValueError(
                f"layer {'/'.join(path)!r}: its weights do not survive the way into codes and"
                f" back; its steps are from {np.min(step):g} to {np.max(step):g}, its weights from"
                f" {np.min(kernel):g} to {np.max(kernel):g}: expected steps that are positive,"
                " normal float32 numbers and finite weights; look for a diverged training"
            )
        for mode, span in ranges.items():
            if span[0] < span[1]:
                taken[mode][_planes_name(path, span)] = np.asarray(planes)[slice(*span)]
    return taken


# Jitted, as the way back is: op by op every shape costs dozens of small compilations.
@partial(jax.jit, static_argnames=("stored", "reads", "widths"))
def _to_planes(kernel, step, stored: int, reads: tuple[int, ...], widths: tuple[int, ...]):
    """Planes, and whether every mode sees the same bits after a return from each prefix."""
    codes = nested.encode(kernel, step, stored, stored)
    sound = jnp.bool_(True)
    for read in reads:
        back = nested.decode(nested.truncate(codes, read, stored), step, read, stored)
        for bits in (bits for bits in widths if bits <= read):
            now, then = (quantize_weights(w, step, bits, stored) for w in (kernel, back))
            same = jax.lax.bitcast_convert_type(now, jnp.int32) == (
                jax.lax.bitcast_convert_type(then, jnp.int32)
            )
            sound &= jnp.all(same & jnp.isfinite(now) & jnp.isfinite(back))
    positive = jnp.all(step >= jnp.finfo(jnp.float32).tiny)  # what is below is flushed to 0
    return bitplanes.pack(codes, stored), sound & positive & jnp.all(jnp.isfinite(kernel))


@partial(jax.jit, static_argnames=("shape", "stored"))
def _to_kernel(planes, step, shape: tuple[int, ...], stored: int) -> jax.Array:
    return nested.decode(bitplanes.unpack(planes, shape), step, planes.shape[0], stored)


def _quantized_inputs(own: Outline, mode: str) -> list[Path]:
    return [
        ("params", *path, "input_step", mode)
        for path, layer in own.layers.items()
        if layer.table[mode].activations
    ]


def _take_inputs(leaves: Leaves, own: Outline, mode: str) -> dict[str, np.ndarray]:
    steps = [np.asarray(leaves.pop(path)) for path in _quantized_inputs(own, mode)]
    return {f"input_steps/{mode}": np.stack(steps)} if steps else {}


def _give_inputs(rest: dict[str, np.ndarray], own: Outline, mode: str) -> Leaves:
    paths = _quantized_inputs(own, mode)
    steps = rest.pop(f"input_steps/{mode}") if paths else ()
    return {path: jnp.asarray(step) for path, step in zip(paths, steps, strict=True)}


def _neutral(epsilon: float) -> np.float32:
    """The variance whose factor 1 / sqrt(var + epsilon) is exactly 1 in float32."""
    variance = np.float32(1) - np.float32(epsilon)
    if variance + np.float32(epsilon) != 1:
        raise ValueError(f"epsilon {epsilon} of a normalisation: expected less than 1/2")
    return variance


@partial(jax.jit, static_argnames="epsilon")
def folded_gain(scale: jax.Array, var: jax.Array, epsilon: float) -> jax.Array:
    """The factor of a normalisation, scale / sqrt(var + epsilon)."""
    return scale * jax.lax.rsqrt(var + epsilon)  # as SwitchableBatchNorm does: the same bits


def _take_norms(leaves: Leaves, own: Outline, mode: str) -> dict[str, np.ndarray]:
    taken = {}
    for path, epsilon in own.norms.items():
        _neutral(epsilon)
        scale, bias = (leaves.pop(("params", *path, mode, name)) for name in ("scale", "bias"))
        mean, var = (leaves.pop(("batch_stats", *path, mode, name)) for name in ("mean", "var"))
        gain = folded_gain(scale, var, epsilon)
        taken[f"norm/{'/'.join(path)}/{mode}"] = np.stack([gain, bias, mean])
    return taken


def _give_norms(rest: dict[str, np.ndarray], own: Outline, mode: str) -> Leaves:
    given: Leaves = {}
    for path, epsilon in own.norms.items():
        gain, bias, mean = rest.pop(f"norm/{'/'.join(path)}/{mode}")
        params, statistics = ("params", *path, mode), ("batch_stats", *path, mode)
        given |= {(*params, "scale"): gain, (*params, "bias"): bias}
        given |= {(*statistics, "mean"): mean}
        given[*statistics, "var"] = np.full_like(mean, _neutral(epsilon))
    return {path: jnp.asarray(array) for path, array in given.items()}
