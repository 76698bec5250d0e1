"""A packed file for other engines, checked in the engine on validation data: seconds.

    python -m experiments.deploy export net.safetensors --target=stablehlo --out=net.programs
    python -m experiments.deploy export net.safetensors --target=onnx --out=net.onnx
    python -m experiments.deploy export net.safetensors --target=onnx --form=integer
        --precision=high --out=high.onnx
    python -m experiments.deploy export net.safetensors --target=litert --precision=low
        --out=low.tflite
    python -m experiments.deploy export net.safetensors --target=nnp --precision=low --out=low.nnp
        --nnabla=nnabla/bin/python
    python -m experiments.deploy export text.safetensors --target=gguf --precision=low
        --out=low.gguf

`--target=onnx` has forms, see deploy/export/onnx/layers.py: "exact", whose values are those of the
mode; "integer", for the integer kernels of ONNX Runtime, which rounds a little more; "vnni", which
rounds less, and is wrong on processors without VNNI; "nibbles", for large matrices of 4 and 8 bits,
both modes in one file on the same weights; "plain", floats of opset 13. docs/engines.md says how
much they differ.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from dual_precision.deploy import inspect_packed, load_packed
from dual_precision.deploy.export.gguf import load_gguf, save_gguf
from dual_precision.deploy.export.litert import LiteNetwork, save_litert
from dual_precision.deploy.export.nnp import NnpNetwork, save_nnp
from dual_precision.deploy.export.onnx.file import EngineNetwork, save_onnx
from dual_precision.deploy.export.onnx.layers import EXACT, FORMS, INTEGER, VNNI
from dual_precision.deploy.export.stablehlo import Programs, save_programs
from dual_precision.deploy.file.writer import check_replaceable
from dual_precision.precision import FLOAT_NAME
from experiments.deploy.trials import Trial, compared, reads_text, trial_of
from experiments.figures.tables import markdown_table
from experiments.recipes.settings import check_choice

TARGETS = STABLEHLO, ONNX, LITERT, NNP, GGUF = "stablehlo", "onnx", "litert", "nnp", "gguf"
_ONE_MODE = (LITERT, NNP, GGUF)
CHECKED = 512  # images of validation
_TEXTS = 32
LEAST = 50  # percent of answers alike, below which a file is none of the mode
Predict = Callable[..., np.ndarray]  # (inputs, precision)


def export_command(
    file: str,
    *,
    target: str,
    out: str,
    precision: str | None = None,
    form: str | None = None,
    nnabla: str | None = None,
    dataset: str | None = None,
    data_dir: str | None = None,
    archive: str | None = None,
) -> None:
    """The sub-command `export`; its keyword arguments are the flags.

    Raises:
      ValueError: an unknown target; a flag without effect; the engine is missing, refuses, or
        answers otherwise.
    """
    check_choice("target", target, TARGETS)
    check_choice("form", form or EXACT, FORMS)
    if form is not None and target != ONNX:
        raise ValueError(f"--form={form} has no effect on --target={target}: leave it out")
    if (nnabla is None) == (target == NNP):
        raise ValueError(
            f"--nnabla={nnabla} and --target={target}: expected the python of an environment with"
            f" nnabla, for --target={NNP} alone"
        )
    check_replaceable(out)
    info = inspect_packed(file)
    modes = [*info.bytes_read] if precision is None else [precision]
    if target in _ONE_MODE and precision is None:
        raise ValueError(f"--target={target} writes one mode: give --precision, one of {modes}")
    options = {"data_dir": data_dir, "archive": archive}
    asked = _TEXTS if reads_text(info) else CHECKED
    trial = trial_of(info, asked, part="validation", dataset=dataset, most=CHECKED, **options)
    calibration = trial.calibration if form in (INTEGER, VNNI) else None
    predict = export_to(target, file, out, modes, form or EXACT, calibration, nnabla)
    rows = parity_rows(file, predict, modes, trial)
    print(f"{out}: {Path(out).stat().st_size:,} bytes, {target}{f', {form}' if form else ''}\n")
    print(markdown_table(rows, columns_of(trial)))
    check_answers(rows, out)


def check_answers(rows: list[dict[str, Any]], out: str | Path) -> None:
    """Raises ValueError where an engine answers most inputs otherwise than the network."""
    for row in rows:
        if row["agree"] < LEAST:
            raise ValueError(
                f"{out} answers otherwise than mode {row['mode']!r}: the same on"
                f" {row['agree']:.1f} % of the inputs, expected {LEAST} or more; do not use it"
            )


def columns_of(trial: Trial) -> tuple[tuple[str, str, str], ...]:
    """Of `parity_rows`."""
    what = "class" if trial.unit == "%" else "byte"
    return (
        ("mode", "mode", "{}"),
        ("difference", "largest difference", "{:.2g}"),
        ("agree", f"same {what} %", "{:.2f}"),
        ("score", f"validation, {trial.unit}", "{:.3f}"),
        ("ours", f"ours, {trial.unit}", "{:.3f}"),
    )


def export_to(
    target: str,
    file: Any,
    out: str | Path,
    modes: list[str],
    form: str = EXACT,
    calibration: Any = None,
    nnabla: str | None = None,
) -> Predict:
    """Writes the file of a target; its modes in the engine."""
    if target == LITERT:
        save_litert(out, file, modes[0])
        lite = LiteNetwork(out)
        return lambda inputs, precision: lite.predict(inputs)
    if target == NNP:
        assert nnabla is not None, "export_command refuses it"
        save_nnp(out, file, modes[0], nnabla)
        network = NnpNetwork(out, nnabla)
        return lambda inputs, precision: network.predict(inputs)
    if target == GGUF:  # no engine: the weights that are read back, in our forward on floats
        save_gguf(out, file, modes[0])
        model, variables = load_gguf(out)
        ask = jax.jit(partial(model.apply, precision=FLOAT_NAME))
        return lambda inputs, precision: np.asarray(ask(variables, inputs))
    if target == STABLEHLO:
        save_programs(out, file, modes)
        return Programs(out).predict
    save_onnx(out, file, modes, form, calibration)
    return EngineNetwork(out).predict


def parity_rows(
    file: Any, predict: Predict, modes: list[str], trial: Trial
) -> list[dict[str, Any]]:
    """A row for each mode: how the engine answers beside the network of the file."""
    model, variables = load_packed(file)
    rows = []
    for mode in modes:
        ours = partial(jax.jit(partial(model.apply, precision=mode)), variables)
        row: dict[str, Any] = {"mode": mode}
        row |= compared(predict(trial.inputs, mode), np.asarray(ours(trial.inputs)))
        row["score"] = trial.score(partial(predict, precision=mode))
        row["ours"] = trial.score(ours)
        rows.append(row)
    return rows
