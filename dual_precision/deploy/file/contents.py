"""What stands in a packed file: from variables to tensors in a section for each mode, and back.

The sections follow each other from the mode with the fewest weight bits to the one with the most.
A section holds what its mode reads and those before do not have:

    params/.../step, bias                           in the first: what every mode shares
    input_steps/low             float32 [layers]    of the layers that quantize their input
    norm/stem_norm/low          float32 [3, C]      gain, bias, mean; once where modes share it
    params/stem/kernel[0:2]     uint8 [2, bytes]    planes 0 and 1 of all 8, see bitplanes.pack

Planes that no mode reads are not there: a network of 2 and 4 bits that is stored in 8 has a file
of 4 planes.

Normalisation keeps gain = scale / sqrt(var + epsilon) in the place of scale and var: a quarter
less, without which a second mode costs more than 2 % of a small network. It comes back as
scale = gain with var = 1 - epsilon, whose factor is exactly 1. bias - mean * gain stays as it is:
XLA fuses it into one rounding inside of a jitted program and not outside, so that no stored
number would stand for both.

A kernel comes back as the middle of the cell of each weight, (c + 1/2) * step * 2^(N-n), a latent
whose codes are the ones that were read, so that the same forward gives the same bits.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from dual_precision.primitives import bitplanes, nested
from dual_precision.primitives.quantizers import quantize_weights
from dual_precision.structure import Layer, LayerPath, Structure, check_nested

Leaves = dict[LayerPath, Any]
_IN_PLANES = ("kernel", "step")  # leaves that are checked by the way into codes and back
Sections = dict[str, dict[str, np.ndarray]]


def plane_ranges(layer: Layer, order: Sequence[str]) -> dict[str, tuple[int, int]]:
    """Mode -> the planes [first, last) that its section adds to those before."""
    ranges, last = {}, 0
    for mode in order:
        first, last = last, max(last, layer.table[mode].weights or 0)
        ranges[mode] = (first, last)
    return ranges


def to_sections(
    variables: Mapping[str, Any], structure: Structure, order: Sequence[str]
) -> Sections:
    """The tensors of every section.

    Args:
      order: the modes, as `mode_order` gives.

    Raises:
      ValueError: a value is missing; a layer computes with another grid than the nested one; a
        weight would not come back with the code that it has now.
    """
    leaves: Leaves = dict(flatten_dict(variables))
    check_nested(structure, _with_widths(structure))
    _check_trained(leaves, structure)
    # What float alone reads is of no use without float weights: it may be missing.
    kept = structure.leaves_of(order)
    known = {path: leaf.shape for path, leaf in structure.shapes.items() if path in leaves}
    check_shapes(leaves, known | kept)
    leaves = {path: leaves[path] for path in kept}  # in the order of the model: one file for all
    check_numbers({path: leaf for path, leaf in leaves.items() if path[-1] not in _IN_PLANES})
    planes = _take_kernels(leaves, structure, order)
    norms = _norms_first_read(structure, order)
    values = {
        mode: _take_inputs(leaves, structure, mode)
        | _take_norms(leaves, structure, norms.get(mode))
        for mode in order
    }
    sections: Sections = {mode: {} for mode in order}
    for path, leaf in leaves.items():
        first = next(mode for mode in order if structure.is_read(path, [mode]))
        sections[first]["/".join(path)] = np.asarray(leaf)
    for mode in order:  # floats first: where planes end, 4 bytes seldom begin
        sections[mode] |= values[mode] | planes[mode]
    return sections


def from_sections(
    tensors: Mapping[str, np.ndarray], structure: Structure, order: Sequence[str], last: str
) -> Any:
    """Variables of the modes up to `last`, from the tensors of their sections.

    Raises:
      ValueError: as `to_sections`; a tensor of another dtype than the model has.
    """
    check_nested(structure, _with_widths(structure))
    rest = dict(tensors)
    modes = order[: order.index(last) + 1]
    norms = _norms_first_read(structure, order)
    leaves: Leaves = {}
    for mode in modes:
        leaves |= _give_inputs(rest, structure, mode)
        leaves |= _give_norms(rest, structure, norms.get(mode))
    planes = {
        path: [rest.pop(_planes_name(path, span)) for span in _spans(layer, order, modes)]
        for path, layer in structure.layers.items()
        if layer.stored
    }
    leaves |= {tuple(name.split("/")): jnp.asarray(array) for name, array in rest.items()}
    for path, leaf in leaves.items():
        if path in structure.shapes:  # of others see `check_shapes`
            _check_dtype(path, leaf, structure.shapes[path].dtype)
    for path, parts in planes.items():
        layer, step = structure.layers[path], leaves["params", *path, "step"]
        for part in parts:
            _check_dtype(("params", *path, "kernel"), part, np.uint8)
        kernel = _to_kernel(np.concatenate(parts), step, layer.kernel, layer.stored or 0)
        leaves["params", *path, "kernel"] = kernel
    check_shapes(leaves, structure.leaves_of(modes))
    check_numbers(leaves)
    return unflatten_dict(leaves)


def _with_widths(structure: Structure) -> list[LayerPath]:
    """The layers that quantize anything in any mode; the others are kept as they are."""
    return [
        path
        for path, layer in structure.layers.items()
        if any(own.weights or own.activations for own in layer.table.values())
    ]


def _check_trained(leaves: Leaves, structure: Structure) -> None:
    """Raises ValueError where the weights are not what they will be when training has ended."""
    for path in structure.layers:
        if any(leaf[:-2] == ("params", *path) and leaf[-2] == "bits" for leaf in leaves):
            raise ValueError(
                f"layer {'/'.join(path)!r} holds bits that are being trained, of a grid with a"
                " zero, which a packed file has not: expected a network that was trained on from"
                " it, at the widths that were found"
            )


def check_shapes(leaves: Leaves, expected: Mapping[LayerPath, tuple[int, ...]]) -> None:
    """Raises ValueError unless the leaves are those of the model."""
    found = {path: leaf.shape for path, leaf in leaves.items()}
    for path in sorted(found.keys() | expected.keys()):
        if found.get(path) != expected.get(path):
            raise ValueError(
                f"variables with {'/'.join(path)!r} of shape {found.get(path, 'missing')}:"
                f" expected {expected.get(path, 'no such leaf')}, as this model has"
            )


def _check_dtype(path: LayerPath, array: Any, expected: Any) -> None:
    if array.dtype != expected:
        raise ValueError(f"{'/'.join(path)!r} in {array.dtype}: expected {np.dtype(expected)}")


def check_numbers(leaves: Leaves) -> None:
    """Raises ValueError where a leaf is not finite, or a step not positive: a network that answers
    with numbers and means nothing."""
    for path, leaf in leaves.items():
        values = np.asarray(leaf)
        if not np.isfinite(values).all():
            raise ValueError(
                f"{'/'.join(path)!r} holds infinities or NaN: expected numbers; look for a"
                " diverged training"
            )
        if "step" in path or "input_step" in path:
            try:
                nested.check_steps(values)
            except ValueError as error:
                raise ValueError(f"{'/'.join(path)!r}: {error}") from None


def _planes_name(path: LayerPath, span: tuple[int, int]) -> str:
    return f"params/{'/'.join(path)}/kernel[{span[0]}:{span[1]}]"


def _spans(layer: Layer, order: Sequence[str], modes: Sequence[str]) -> list[tuple[int, int]]:
    ranges = plane_ranges(layer, order)
    return [ranges[mode] for mode in modes if ranges[mode][0] < ranges[mode][1]]


def _take_kernels(leaves: Leaves, structure: Structure, order: Sequence[str]) -> Sections:
    taken: Sections = {mode: {} for mode in order}
    for path, layer in structure.layers.items():
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


def _quantized_inputs(structure: Structure, mode: str) -> list[LayerPath]:
    return [
        ("params", *path, "input_step", mode)
        for path, layer in structure.layers.items()
        if layer.table[mode].activations
    ]


def _take_inputs(leaves: Leaves, structure: Structure, mode: str) -> dict[str, np.ndarray]:
    steps = [np.asarray(leaves.pop(path)) for path in _quantized_inputs(structure, mode)]
    return {f"input_steps/{mode}": np.stack(steps)} if steps else {}


def _give_inputs(rest: dict[str, np.ndarray], structure: Structure, mode: str) -> Leaves:
    paths = _quantized_inputs(structure, mode)
    steps = rest.pop(f"input_steps/{mode}") if paths else ()
    return {path: jnp.asarray(step) for path, step in zip(paths, steps, strict=True)}


def _neutral(epsilon: float) -> np.float32:
    """The variance whose factor 1 / sqrt(var + epsilon) is exactly 1 in float32."""
    variance = np.float32(1) - np.float32(epsilon)
    if variance + np.float32(epsilon) != 1:
        raise ValueError(f"epsilon {epsilon} of a normalisation: expected less than 1/2")
    return variance


def _norms_first_read(structure: Structure, order: Sequence[str]) -> dict[str, str]:
    """Mode -> the owner of the normalisation that it is the first to read."""
    first = {structure.modes.norm_of(mode): mode for mode in reversed(order)}
    return {mode: owner for owner, mode in first.items()}


def _take_norms(leaves: Leaves, structure: Structure, owner: str | None) -> dict[str, np.ndarray]:
    if owner is None:
        return {}
    taken = {}
    for path, norm in structure.norms.items():
        _neutral(norm.epsilon)
        own = {name: leaves.pop(p) for name, p in structure.norm_leaves(path, owner).items()}
        gain, _ = norm.affine(**own)
        taken[_norm_name(path, owner)] = np.stack([gain, own["bias"], own["mean"]])
    return taken


def _give_norms(rest: dict[str, np.ndarray], structure: Structure, owner: str | None) -> Leaves:
    if owner is None:
        return {}
    given: Leaves = {}
    for path, norm in structure.norms.items():
        gain, bias, mean = rest.pop(_norm_name(path, owner))
        var = np.full_like(mean, _neutral(norm.epsilon))
        own = {"scale": gain, "bias": bias, "mean": mean, "var": var}
        given |= {p: own[name] for name, p in structure.norm_leaves(path, owner).items()}
    return {path: jnp.asarray(array) for path, array in given.items()}


def _norm_name(path: LayerPath, owner: str) -> str:
    return f"norm/{'/'.join(path)}/{owner}"
