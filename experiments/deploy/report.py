"""What a packed file holds, and what each mode and each layer of it costs; seconds.

    python -m experiments.deploy report net.safetensors

For notebooks/networks/cifar10-w2a2-w8a8.safetensors: low 21, high 80 microjoules an image.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import jax

from dual_precision.costs import (
    Billable,
    Cost,
    Energy,
    layer_cost,
    layer_energy,
    mode_cost,
    mode_energy,
    product_cost,
    product_energy,
)
from dual_precision.deploy import Cascade, PackedError, PackedInfo, inspect_packed
from dual_precision.deploy.cascade.rule import Point
from dual_precision.deploy.layer_widths import LayerTexts, modes_with
from dual_precision.deploy.predictor import AUTO, CASCADE
from dual_precision.layers.facts import FloatProduct
from dual_precision.models import build_from
from dual_precision.precision import FLOAT_BITS
from dual_precision.structure import Layer, Structure, structure_of
from experiments.figures.tables import markdown_table
from experiments.recipes.flags import read_widths_file
from experiments.workdir import checked_rows

Layers = Mapping[tuple[str, ...], Layer]
Measured = Mapping[str, Mapping[str, Any]]  # mode -> further cells of its row, by their keys

_MODE_COLUMNS = (
    ("mode", "mode", "{}"),
    ("bytes", "bytes read", "{:,}"),
    ("weight_bits", "weight bits", "{:,}"),
    ("bit_operations", "BitOps/image", "{:.3g}"),
    ("arithmetic", "arithmetic nJ", "{:,.0f}"),
    ("weights", "weights nJ", "{:,.0f}"),
    ("activations", "activations nJ", "{:,.0f}"),
    ("energy", "energy nJ/image", "{:,.0f}"),
    ("validation", "validation %", "{:.2f}"),
    ("test", "test %", "{:.2f}"),
)
_LAYER_COLUMNS = (  # for every mode
    ("widths", "", "{}"),
    ("bytes", "bytes", "{:,}"),
    ("bit_operations", "BitOps", "{:.3g}"),
    ("energy", "nJ", "{:,.0f}"),
)
_PRODUCTS = (
    "A row without a kernel is products of activations with activations, as those of attention:"
    " floats in\nevery mode."
)
_ENERGY = (
    "Energy is a model, not a measurement: figures of Horowitz (ISSCC 2014, 45 nm), one image"
    " alone, every\nweight read once from DRAM; in a batch the images share that. See"
    " dual_precision/costs.py."
)


def report_command(file: str, *, widths: str | None = None) -> None:
    """The sub-command `report`, of the file as it is, or with other widths in some layers."""
    info = inspect_packed(file)
    text = packed_report(info)
    if widths:
        text = cost_report(parts_with(info, read_widths_file(widths)), [*info.bytes_read])
    print(f"{file}: {info.network['name']}, {inputs_of(info)}\n\n{text}")


def inputs_of(info: PackedInfo) -> str:
    """What a row is that the network takes: "images 32x32x3", "inputs uint8 [128]"."""
    try:
        return f"images {'x'.join(map(str, info.image_shape))}"
    except ValueError:  # text, or several arrays
        arrays = jax.tree.leaves(info.example)
        return f"inputs {', '.join(f'{own.dtype} {list(own.shape)}' for own in arrays)}"


def parts_with(info: PackedInfo, widths: LayerTexts) -> Structure:
    """A packed network, if some of its layers had other widths."""
    model: Any = build_from(info.network)
    modes = modes_with(model.modes, structure_of(model, info.example), widths)
    return structure_of(model.clone(modes=modes), info.example)


def packed_report(info: PackedInfo) -> str:
    """`cost_report` of a packed file, with the bytes and accuracies that it says."""
    measured: dict[str, dict[str, Any]] = {
        mode: {"bytes": size} for mode, size in info.bytes_read.items()
    }
    rows, expected = measured_of(info)
    for row in rows:
        if row["mode"] in measured:
            measured[row["mode"]] |= {k: v for k, v in row.items() if k in ("validation", "test")}
    if expected is not None:
        cost = {"bit_operations": expected.cost, "validation": expected.accuracy}
        measured[AUTO] = cost
    report = cost_report(info, [*info.bytes_read], measured)
    left = [mode for mode in info.bytes_read if mode not in info.trained]
    return f"{report}\n\nNot trained: {', '.join(left)}." if left else report


def measured_of(info: PackedInfo) -> tuple[list[dict[str, Any]], Point | None]:
    """What the metadata of a packed file say: rows of its run, and what its cascade is to give.

    Raises:
      PackedError: they say something else.
    """
    stored = info.metadata.get(CASCADE)
    try:
        rows = checked_rows(info.metadata.get("results", []), "results")
        return rows, Cascade.from_json(stored).expected if stored else None
    except ValueError as error:
        raise PackedError(f"the metadata of the file, {error}; or pack the run again") from None


def cost_report(
    network: Billable, modes: Sequence[str], measured: Measured = MappingProxyType({})
) -> str:
    """Two Markdown tables, what each mode and what each layer costs, and the energy model.

    Args:
      network: with a width in each of `modes`.
      measured: a name that is not one of `modes` has a row of these cells alone.
    """
    rows = {mode: _mode_row(network, mode) for mode in modes}
    for name, cells in measured.items():
        rows[name] = {**rows.get(name, {"mode": name}), **cells}
    columns = [
        ("layer", "layer", "{}"),
        ("kernel", "kernel", "{}"),
        ("macs", "MACs", "{:,}"),
        *(
            (f"{key} {mode}", f"{title} {mode}".strip(), form)
            for key, title, form in _LAYER_COLUMNS
            for mode in modes
        ),
    ]
    parts = [_layer_row(network.layers, path, modes) for path in network.layers]
    parts += [_product_row(path, own, modes) for path, own in network.products.items()]
    tables = markdown_table([*rows.values()], _MODE_COLUMNS), markdown_table(parts, columns)
    return "\n\n".join([*tables, *([_PRODUCTS] if network.products else []), _ENERGY])


def _layer_row(layers: Layers, path: tuple[str, ...], modes: Sequence[str]) -> dict[str, Any]:
    layer = layers[path]
    row: dict[str, Any] = {
        "layer": "/".join(path),
        "kernel": "x".join(map(str, layer.kernel)),
        "macs": layer.macs,
    }
    for mode in modes:
        cost, energy = layer_cost(layers, path, mode), layer_energy(layers, path, mode)
        row |= _cells(mode, str(layer.table[mode]), cost, energy)
    return row


def _product_row(
    path: tuple[str, ...], product: FloatProduct, modes: Sequence[str]
) -> dict[str, Any]:
    cost, energy = product_cost(product), product_energy(product)
    row: dict[str, Any] = {"layer": "/".join(path), "kernel": "", "macs": cost.macs}
    for mode in modes:
        row |= _cells(mode, "float", cost, energy)
    return row


def _cells(mode: str, widths: str, cost: Cost, energy: Energy) -> dict[str, Any]:
    """What a row has of a mode, see _LAYER_COLUMNS."""
    return {
        f"widths {mode}": widths,
        f"bytes {mode}": cost.weight_bytes,
        f"bit_operations {mode}": cost.bit_operations,
        f"energy {mode}": energy.total,
    }


def _mode_row(network: Billable, mode: str) -> dict[str, Any]:
    energy = mode_energy(network, mode)
    return {
        "mode": mode,
        "weight_bits": sum(
            math.prod(layer.kernel) * (layer.table[mode].weights or FLOAT_BITS)
            for layer in network.layers.values()
        ),
        "bit_operations": mode_cost(network, mode).bit_operations,
        **dataclasses.asdict(energy),
        "energy": energy.total,
    }
