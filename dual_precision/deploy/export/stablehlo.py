"""Compiled-anywhere programs: StableHLO of every mode, and the weights once for all of them.

    save_programs("net.programs", "net.safetensors")
    programs = Programs("net.programs")
    logits = programs.predict(images, precision="low")

The file is a safetensors file. Its tensors are the values of the integer network
(params/stem/kernel, int8, ...) and, as bytes, what `jax.export` makes of the forward of each mode
(programs/low), for any batch size. The values are arguments of the programs, so that both modes
share them, and a program takes 14 to 40 kB. Where layers have calls of their own, as those of
language models, the values are the same codes, and a program decodes them before the forward of the
network as it is. No model code is needed to run one. `jax.export` checks no sums of its
own: a flipped bit of a program can load and give wrong numbers. So the metadata hold a sha256 of
everything else, and nothing is believed before it.
"""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from dual_precision.deploy.batching import checked_inputs, row_count
from dual_precision.deploy.export.extras import needed
from dual_precision.deploy.file.examples import example_from_json, example_to_json
from dual_precision.deploy.file.packed import PackedFile, Source
from dual_precision.deploy.file.writer import write_parts
from dual_precision.deploy.integer.conversion import has_integer_forms, stored_codes, to_integer
from dual_precision.primitives import nested
from dual_precision.primitives.convolution import xla_alone
from dual_precision.structure import Structure, batch_of

_FORMAT = "dual_precision programs 1"
PLATFORMS = ("cpu", "cuda")
_KNOWN = (*PLATFORMS, "tpu")  # those of which `Programs` loads what was written
_PROGRAMS, _SUM = "programs/", "sha256"
_PURPOSE = "a StableHLO program"


def save_programs(
    path: str | os.PathLike,
    source: Source,
    precisions: Sequence[str] | None = None,
    platforms: Sequence[str] = PLATFORMS,
) -> None:
    """Writes the forward of the modes of a packed file, on integer weights, as StableHLO programs.

    Args:
      path: of the new file.
      source: a packed file.
      precisions: its modes; None is all.
      platforms: that the programs run on: cpu, cuda, tpu.

    Raises:
      ValueError: flatbuffers is missing; no such mode; other platforms; layers of float weights.
      PackedError, OSError: as `load_packed`.
    """
    _check_platforms(platforms)
    needed("flatbuffers", _PURPOSE)
    with PackedFile(source) as file:
        info = file.info
        names, model, variables = file.load_modes(precisions)
        structure = file.structure
    forward: Any
    if has_integer_forms(structure):
        model, integers = to_integer(model, variables, info.example)
        forward = model.apply
    else:
        integers, forward = _to_codes(variables, structure), partial(_from_codes, model, structure)
    tensors = {"/".join(p): np.asarray(leaf) for p, leaf in flatten_dict(integers).items()}
    for name in names:
        program = _exported(forward, integers, info.example, name, platforms)
        tensors[_PROGRAMS + name] = np.frombuffer(program, np.uint8)
    about = {
        "format": _FORMAT,
        "example": json.dumps(example_to_json(info.example)),
        "precisions": json.dumps(names),
    }
    _write(path, tensors, about)


def _check_platforms(platforms: Sequence[str]) -> None:
    # JAX writes for any name, the letters of a text too, what nothing can run.
    if isinstance(platforms, str) or not platforms or {*platforms} - {*_KNOWN}:
        raise ValueError(
            f"platforms={platforms!r}: expected a list of one or more of {list(_KNOWN)}, as in"
            ' ["cpu"]'
        )


def _to_codes(variables: dict[str, Any], structure: Structure) -> Any:
    """The variables with int8 codes of the stored width in the place of each kernel."""
    leaves = flatten_dict(variables)
    codes = {
        ("params", *path, "kernel"): jnp.asarray(stored_codes(path, layer, leaves))
        for path, layer in structure.layers.items()
    }
    return unflatten_dict({**leaves, **codes})


def _from_codes(
    model: Any, structure: Structure, values: Any, *inputs: Any, precision: str
) -> jax.Array:
    """The forward of a network whose kernels are codes: of the middles of their cells."""
    leaves = flatten_dict(values)
    for path, layer in structure.layers.items():
        name, step = ("params", *path, "kernel"), leaves["params", *path, "step"]
        assert layer.stored is not None, "stored_codes refuses float weights"
        leaves[name] = nested.decode(leaves[name], step, layer.stored, layer.stored)
    output: jax.Array = model.apply(unflatten_dict(leaves), *inputs, precision=precision)
    return output


def _exported(
    forward: Any, integers: Any, example: Any, precision: str, platforms: Sequence[str]
) -> bytes:
    from jax import export

    rows = cast(int, export.symbolic_shape("rows")[0])
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), integers)

    made = export.export(jax.jit(partial(forward, precision=precision)), platforms=[*platforms])
    with xla_alone():
        return bytes(made(shapes, *batch_of(example, rows)).serialize())


class Programs:
    """The modes of a file that `save_programs` wrote, compiled when they are first called.

    Attributes:
      precisions: names of the modes.
      example: what one row is.

    Raises:
      ValueError: flatbuffers is missing; foreign, cut off or altered; another device than the
        file was written for.
      OSError: it cannot be read.
    """

    def __init__(self, path: str | os.PathLike) -> None:
        needed("flatbuffers", _PURPOSE)
        from jax import export

        tensors, about = _read(path)
        self.precisions = tuple(json.loads(about["precisions"]))
        self.example = example_from_json(json.loads(about["example"]))
        self._row = batch_of(self.example, 1)
        values = {n: a for n, a in tensors.items() if not n.startswith(_PROGRAMS)}
        tree = unflatten_dict(
            {tuple(name.split("/")): jnp.asarray(a) for name, a in values.items()}
        )
        self._values = jax.device_put(tree)
        self._programs, self._outputs = {}, {}
        for name in self.precisions:
            program = export.deserialize(bytearray(tensors[_PROGRAMS + name].tobytes()))
            if jax.default_backend() not in {
                "gpu" if p == "cuda" else p for p in program.platforms
            }:
                raise ValueError(
                    f"{path} was written for {list(program.platforms)}, and this process runs on"
                    f" {jax.default_backend()}: write it again with that platform"
                )
            self._programs[name] = jax.jit(program.call)
            self._outputs[name] = program.out_avals[0]

    def predict(self, inputs: Any, precision: str) -> np.ndarray:
        """What the network gives, [N, ...]; as `Predictor.predict`, compiled once for each N.

        Raises:
          ValueError: inputs of another shape or dtype; a mode that the file does not hold.
        """
        if precision not in self.precisions:
            raise ValueError(f"precision {precision!r}: expected one of {list(self.precisions)}")
        rows = checked_inputs(inputs, self._row)
        if not row_count(rows):  # a program takes one or more
            output = self._outputs[precision]
            return np.zeros((0, *output.shape[1:]), output.dtype)
        return np.asarray(self._programs[precision](self._values, *rows))


def _sum_of(tensors: Mapping[str, np.ndarray], about: Mapping[str, str]) -> str:
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    for name in sorted(tensors):
        array = tensors[name]
        digest.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _write(
    path: str | os.PathLike, tensors: Mapping[str, np.ndarray], about: Mapping[str, str]
) -> None:
    from safetensors.numpy import save

    write_parts(path, [save(dict(tensors), {**about, _SUM: _sum_of(tensors, about)})])


def _read(path: str | os.PathLike) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    from safetensors import SafetensorError, safe_open

    again = "copy the file again, or export it again"
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: there is no such file")
    try:
        with safe_open(path, framework="numpy") as file:
            about = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, ValueError, KeyError) as error:
        raise ValueError(f"{path}: no file of programs, or cut off ({error}): {again}") from None
    if about.get("format") != _FORMAT:
        raise ValueError(f"{path}: format {about.get('format')!r}: expected {_FORMAT!r}")
    said = about.pop(_SUM, "")
    if said != _sum_of(tensors, about):
        raise ValueError(f"{path}: altered, its sha256 is another: {again}")
    return tensors, about
