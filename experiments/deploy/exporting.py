"""A packed file for other engines, checked in the engine on validation images: seconds.

    python -m experiments.deploy export net.safetensors --target=stablehlo --out=net.programs
    python -m experiments.deploy export net.safetensors --target=onnx --out=net.onnx
    python -m experiments.deploy export net.safetensors --target=onnx --form=integer --mode=high
        --out=high.onnx
    python -m experiments.deploy export net.safetensors --target=litert --mode=low --out=low.tflite

`--target=onnx` has forms, see deploy/export/onnx/layers.py: "exact", whose values are those of the
mode; "integer", for the integer kernels of ONNX Runtime, which rounds a little more; "vnni", which
rounds less, and is wrong on processors without VNNI; "nibbles", for large matrices of 4 and 8 bits,
both modes in one file on the same weights. docs/engines.md says how much they differ.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from dual_precision import data
from dual_precision.deploy import PackedInfo, inspect_packed, load_packed
from dual_precision.deploy.export.litert import LiteNetwork, save_litert
from dual_precision.deploy.export.onnx.file import EngineNetwork, save_onnx
from dual_precision.deploy.export.onnx.layers import EXACT, FORMS, INTEGER, VNNI
from dual_precision.deploy.export.stablehlo import Programs, save_programs
from dual_precision.deploy.file.writer import check_replaceable
from experiments.figures.tables import markdown_table
from experiments.recipes.config import check_choice

TARGETS = STABLEHLO, ONNX, LITERT = "stablehlo", "onnx", "litert"
CALIBRATE, CHECKED = 256, 512  # images of training, and of validation
COLUMNS = (
    ("mode", "mode", "{}"),
    ("difference", "largest difference", "{:.2g}"),
    ("agree", "same class %", "{:.2f}"),
    ("accuracy", "validation %", "{:.2f}"),
    ("ours", "ours %", "{:.2f}"),
)
Predict = Callable[[np.ndarray, str], np.ndarray]


def export_command(
    file: str,
    *,
    target: str,
    out: str,
    mode: str | None = None,
    form: str | None = None,
    dataset: str | None = None,
    data_dir: str | None = None,
    archive: str | None = None,
) -> None:
    """The sub-command `export`; its keyword arguments are the flags.

    Raises:
      ValueError: an unknown target; a flag without effect; the engine is missing, or refuses.
    """
    check_choice("target", target, TARGETS)
    check_choice("form", form or EXACT, FORMS)
    if form is not None and target != ONNX:
        raise ValueError(f"--form={form} has no effect on --target={target}: leave it out")
    check_replaceable(out)
    info = inspect_packed(file)
    modes = [*info.bytes_read] if mode is None else [mode]
    if target == LITERT and mode is None:
        raise ValueError(f"--target={LITERT} writes one mode: give --mode, one of {modes}")
    loaded = data.load(dataset or dataset_of(info), data_dir=data_dir, archive=archive)
    if loaded.image_shape != info.image_shape:
        raise ValueError(
            f"images of {loaded.name} are {loaded.image_shape}: expected {info.image_shape}, as"
            " the file takes"
        )
    calibration = loaded.train.images[:CALIBRATE] if form in (INTEGER, VNNI) else None
    predict = export_to(target, file, out, modes, form or EXACT, calibration)
    split = loaded.validation
    rows = parity_rows(file, predict, modes, split.images[:CHECKED], split.labels[:CHECKED])
    print(f"{out}: {Path(out).stat().st_size:,} bytes, {target}{f', {form}' if form else ''}\n")
    print(markdown_table(rows, COLUMNS))


def dataset_of(info: PackedInfo) -> str:
    """The data set that a packed network was trained on.

    Raises:
      ValueError: the file does not say.
    """
    name = info.metadata.get("run", {}).get("experiment", {}).get("dataset")
    if not isinstance(name, str):
        raise ValueError("the file does not say which data it was trained on: give --dataset")
    return name


def export_to(
    target: str,
    file: Any,
    out: str | Path,
    modes: list[str],
    form: str = EXACT,
    calibration: Any = None,
) -> Predict:
    """Writes the file of a target; its modes in the engine."""
    if target == LITERT:
        save_litert(out, file, modes[0])
        engine = LiteNetwork(out)
        return lambda images, _: engine.predict(images)
    if target == STABLEHLO:
        save_programs(out, file, modes)
        return Programs(out).predict
    save_onnx(out, file, modes, form, calibration)
    return EngineNetwork(out).predict


def parity_rows(
    file: Any, predict: Predict, modes: list[str], images: np.ndarray, labels: np.ndarray
) -> list[dict[str, Any]]:
    """A row for each mode: how the engine answers beside the network of the file."""
    model, variables = load_packed(file)
    rows = []
    for mode in modes:
        ours = np.asarray(jax.jit(partial(model.apply, precision=mode))(variables, images))
        theirs = predict(images, mode)
        row = {
            "mode": mode,
            "difference": np.abs(ours - theirs).max(),
            "agree": 100 * np.mean(ours.argmax(1) == theirs.argmax(1)),
            "accuracy": 100 * np.mean(theirs.argmax(1) == labels),
            "ours": 100 * np.mean(ours.argmax(1) == labels),
        }
        rows.append(row)
    return rows
