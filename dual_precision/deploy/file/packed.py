"""One file for all modes of a trained network; its first part is the narrowest of them.

    save_packed("net.safetensors", model, variables, network, task.example)
    model, variables = load_packed("net.safetensors", precision="low")  # reads the first part alone
    model.apply(variables, images, precision="low")

The format is in container.py, what stands in it in contents.py. The header says what is needed to
build the model again: its description with the width that weights are stored in, what it takes, and
the layers that it had.
"""

import contextlib
import functools
import os
from collections.abc import Mapping, Sequence
from typing import Any, BinaryIO

from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict

from dual_precision.deploy.file import container, writer
from dual_precision.deploy.file.container import Header, PackedError
from dual_precision.deploy.file.contents import from_sections, to_sections
from dual_precision.deploy.file.examples import example_from_json, example_to_json
from dual_precision.deploy.file.info import PackedInfo
from dual_precision.deploy.file.limits import check_example, check_layers, check_network
from dual_precision.models import build_from, check_description
from dual_precision.precision import FLOAT_NAME
from dual_precision.structure import (
    Example,
    Structure,
    mode_order,
    structure_of,
)

Source = str | os.PathLike | BinaryIO


def save_packed(
    path: str | os.PathLike,
    model: nn.Module,
    variables: Mapping[str, Any],
    network: Mapping[str, Any],
    example: Example,
    metadata: Mapping[str, Any] | None = None,
) -> None:
    """Packs every named mode of a network; what stood under `path` is replaced in one step.

    The latent weights are not kept, so "float" is not a mode of the file.

    Args:
      model, variables: as `dual_precision.load` gives, or `load_packed` of all modes.
      network: the description that `build_from` makes `model` of; JSON types.
      example: what it takes besides `precision`, of one example, as `Task.example` gives: a
        jax.ShapeDtypeStruct or a tuple of them.
      metadata: anything of JSON types: measured accuracies, the command.

    Raises:
      ValueError: `network` describes another model; a layer keeps float weights in one mode and
        codes in another; a weight would not come back with the same bits; not JSON.
      OSError: it cannot be written.
    """
    check_description(network, model)
    structure = structure_of(model, example)
    about = {
        "network": {**network, **model.modes.to_json()},  # with "stored", whatever was given
        "example": example_to_json(example),
        "layers": _table(structure),
        "metadata": dict(metadata or {}),
    }
    sections = to_sections(variables, structure, mode_order(structure))
    writer.write_parts(path, writer.to_bytes(sections, about))


def load_packed(
    source: Source, precision: str | None = None
) -> tuple[nn.Module, dict[str, dict[str, Any]]]:
    """The network of a packed file: (model, variables), ready for `model.apply`.

    For inference: a kernel is the middle of the cell of each weight, and of the scale and variance
    of a normalisation only their quotient is left, so training goes on from a checkpoint, not from
    here. Widths that a call gives as values are true up to the number of planes that were read.

    Args:
      source: a path, or a binary file that can seek.
      precision: the widest mode that is wanted; None is all. What only wider modes need is not
        read, and calling them, or "float", is refused by the model.

    Raises:
      PackedError: no mode of that name; truncated, altered or foreign, or of a newer version.
      OSError: it cannot be read.

    >>> model, variables = load_packed("net.safetensors", precision="low")  # doctest: +SKIP
    >>> model.apply(variables, images, precision="low")  # doctest: +SKIP
    """
    with PackedFile(source) as file:
        return file.load(precision)


class PackedFile:
    """A packed file that is read on: a wider mode reads what a narrower one has not read yet.

        with PackedFile("net.safetensors") as file:
            model, variables = file.load("low")   # its first part
            model, variables = file.load("high")  # the rest, from where low ended

    Errors are those of `load_packed`.
    """

    def __init__(self, source: Source) -> None:
        """Opens the file and reads its header."""
        with contextlib.ExitStack() as stack:
            self._file = stack.enter_context(container.opened(source))
            self._header = container.read_header(self._file)
            self._stack = stack.pop_all()
        self._content = b""  # of the sections read so far

    def __enter__(self) -> "PackedFile":
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)

    @functools.cached_property
    def _rebuilt(self) -> tuple[nn.Module, Structure]:
        with container.consistent():
            return _rebuild(self._header)

    @property
    def structure(self) -> Structure:
        """What the network is made of."""
        return self._rebuilt[1]

    @property
    def info(self) -> PackedInfo:
        """What the file says about itself."""
        header = self._header
        with container.consistent():
            return PackedInfo(
                network=header.about["network"],
                layers=self.structure.layers,
                example=example_from_json(header.about["example"]),
                metadata=header.about["metadata"],
                bytes_read={mode: header.end(mode) for mode in header.sections},
                products=self.structure.products,
            )

    def load(self, precision: str | None = None) -> tuple[nn.Module, dict[str, dict[str, Any]]]:
        """As `load_packed`: this mode, and those that are narrower."""
        order = list(self._header.sections)
        last = order[-1] if precision is None else precision
        if last not in order:
            why = ", and a packed file holds no float weights" if last == FLOAT_NAME else ""
            raise PackedError(f"precision {last!r}{why}: expected one of {order}")
        end, _ = self._header.sections[last]
        if end > len(self._content):
            self._content = container.read_content(self._file, self._header, last, self._content)
        tensors = container.tensors_within(self._header, self._content[:end])
        model, structure = self._rebuilt
        with container.consistent():
            return model, from_sections(tensors, structure, order, last)

    def load_modes(
        self, precisions: Sequence[str] | None = None
    ) -> tuple[tuple[str, ...], nn.Module, dict[str, Any]]:
        """Some modes: (their names, narrowest first; the model; the variables that they compute
        with). None is all.

        Raises:
          ValueError: one that the file does not hold, or none at all.
        """
        names = self.info.chosen(precisions)
        model, variables = self.load(names[-1])
        leaves, structure = flatten_dict(variables), self.structure
        read = {path: leaf for path, leaf in leaves.items() if structure.is_read(path, names)}
        return names, model, unflatten_dict(read)


def is_packed(path: str | os.PathLike) -> bool:
    """Whether a file begins as a packed file does, of whatever version."""
    with open(path, "rb") as file:
        return container.begins_packed(file.read(container.HEAD))


def inspect_packed(source: Source) -> PackedInfo:
    """What a packed file says about itself; reads its header alone.

    Raises:
      PackedError, OSError: as `load_packed`.
    """
    with PackedFile(source) as file:
        return file.info


def amend_metadata(path: str | os.PathLike, changes: Mapping[str, Any]) -> None:
    """Sets entries of the metadata of a packed file; its sections keep every byte.

    Args:
      changes: name -> anything of JSON types.

    Raises:
      PackedError: truncated, altered or foreign; then the file is as it was.
      ValueError: not JSON. OSError: it cannot be read or written.
    """
    with container.opened(path) as file:
        header = container.read_header(file)
        content = container.read_content(file, header, list(header.sections)[-1])
    tensors = container.tensors_within(header, content)
    sections: dict[str, dict[str, Any]] = {name: {} for name in header.sections}
    for name, tensor in header.tensors.items():
        owner = next(s for s, (end, _) in header.sections.items() if tensor.end <= end)
        sections[owner][name] = tensors[name]
    metadata = {**_metadata(header), **changes}
    writer.write_parts(path, writer.to_bytes(sections, {**header.about, "metadata": metadata}))


def _metadata(header: Header) -> dict[str, Any]:
    metadata = header.about.get("metadata")
    if not isinstance(metadata, dict):
        raise PackedError("its metadata is no table of names: pack the network again")
    return metadata


def _rebuild(header: Header) -> tuple[nn.Module, Structure]:
    """The model, if this program still gives it the layers and widths that were packed."""
    about = header.about
    check_network(about["network"])
    check_example(example := example_from_json(about["example"]))
    check_layers(about["layers"], header.tensors)
    _metadata(header)
    name = about["network"].get("name")
    model = build_from(about["network"])
    structure = structure_of(model, example, most=len(about["layers"]))
    table = _table(structure)
    for path, entry in about["layers"].items():
        if path in table and entry["stored"] != table[path]["stored"]:
            raise PackedError(
                f"layer {path!r} was packed with weights stored in {entry['stored']} bits, and"
                f" this program builds {name!r} with {table[path]['stored']}: a step would mean"
                " another width; use the version that packed it, or pack the network again"
            )
    layers, sections = list(about["layers"].items()), list(header.sections)
    if layers != list(table.items()) or sections != mode_order(structure):
        raise PackedError(
            f"this program builds {name!r} with other layers or widths than were packed: use the"
            " version that packed it, or pack the network again"
        )
    return model, structure


def _table(structure: Structure) -> dict[str, Any]:
    return {
        "/".join(path): {
            "stored": layer.stored,
            "kernel": list(layer.kernel),
            "widths": {mode: str(p) for mode, p in layer.table.items() if mode != FLOAT_NAME},
        }
        for path, layer in structure.layers.items()
    }
