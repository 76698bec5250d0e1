"""Which network runs in which engine, found by running it: some minutes on two CPU cores.

    python -m experiments.deploy support [--network=net.safetensors] [--out=support.json]

Each mode of each network is written for each target, loaded in the engine, and asked the same 256
test images as the network itself: the largest difference of a logit, relative to the largest
logit. A packed network has an accuracy on all test images too; the others have random weights.
docs/engines.md keeps the table.
"""

import dataclasses
import json
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from dual_precision import data
from dual_precision.deploy import inspect_packed, load_packed, save_packed
from dual_precision.deploy.export.litert import LiteNetwork, save_litert
from dual_precision.deploy.export.onnx.file import EngineNetwork, runs_on_integers, save_onnx
from dual_precision.deploy.export.onnx.layers import EXACT, INTEGER, NIBBLES
from dual_precision.deploy.export.stablehlo import Programs, save_programs
from dual_precision.deploy.file.writer import check_replaceable
from dual_precision.models import build_from
from dual_precision.precision import modes
from dual_precision.structure import structure_of
from dual_precision.tasks.classification import Classification
from dual_precision.training.state import initial_variables
from experiments.deploy.exporting import CALIBRATE, dataset_of
from experiments.figures.tables import markdown_table
from experiments.workdir import write_whole

NETWORK = "notebooks/networks/cifar10-w2a2-w8a8.safetensors"
ASKED, BATCH = 256, 500
_REASON = 160  # characters of a row
FRESH = ("mlp", "resnet8", "resnet20", "resnet20b", "resnet8_fast")
PROGRAMS, TFLITE = "StableHLO", "LiteRT"
COLUMNS = (
    ("network", "network", "{}"),
    ("mode", "mode", "{}"),
    ("target", "target", "{}"),
    ("works", "runs", "{}"),
    ("difference", "largest difference", "{:.1e}"),
    ("agree", "same class %", "{:.2f}"),
    ("accuracy", "test %", "{:.2f}"),
    ("ours", "ours %", "{:.2f}"),
    ("bytes", "bytes", "{:,}"),
    ("reason", "reason", "{}"),
)
LEFT = ("network", "mode", "target", "works", "reason")


@dataclasses.dataclass(frozen=True)
class Subject:
    """A packed network that is tried, and images for it."""

    name: str
    path: Path
    trained: bool
    dataset: Any


def support_command(
    *, network: str | None = None, out: str | None = None, data_dir: str | None = None
) -> None:
    """The sub-command `support`; its keyword arguments are the flags.

    Raises:
      ValueError: an engine is missing; the file does not say what it was trained on.
    """
    if out:
        check_replaceable(out)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for subject in subjects(Path(network or NETWORK), Path(folder), data_dir):
            rows += list(support_rows(subject, Path(folder)))
            print(f"{subject.name}: {len(rows)} rows", flush=True)
            if out:  # each network takes up to a minute: what is found is kept
                write_whole(Path(out), json.dumps(rows, indent=2) + "\n")
    print(f"\n{markdown_table(rows, COLUMNS, left=LEFT)}")


def subjects(packed: Path, folder: Path, data_dir: str | None) -> Iterator[Subject]:
    """The packed network, and fresh ones of other kinds for the same images."""
    info = inspect_packed(packed)
    loaded = data.load(dataset_of(info), data_dir=data_dir)
    yield Subject(info.network["name"], packed, True, loaded)
    own = modes(low="w2a2", high="w8a8")
    example = Classification(loaded.image_shape).example
    for name in FRESH:
        network = {
            "name": name, "num_classes": loaded.num_classes, "mean": [*loaded.mean],
            "std": [*loaded.std], **own.to_json(),
        }  # fmt: skip
        yield _fresh(name, network, example, folder, loaded)
    own = modes(low="w4a32", high="w8a32")
    network = {
        "name": "mlp", "hidden": [1024, 1024], "num_classes": loaded.num_classes,
        "mean": [*loaded.mean], "std": [*loaded.std], **own.to_json(),
    }  # fmt: skip
    yield _fresh("mlp 1024, w4a32/w8a32", network, example, folder, loaded)


def _fresh(name: str, network: Any, example: Any, folder: Path, loaded: Any) -> Subject:
    model = build_from(network)
    path = folder / name.split(",")[0]
    save_packed(path, model, initial_variables(model, example, 0), network, example)
    return Subject(name, path, False, loaded)


def support_rows(subject: Subject, folder: Path) -> Iterator[dict[str, Any]]:
    """A row for each mode and target."""
    model, variables = load_packed(subject.path)
    info = inspect_packed(subject.path)
    structure = structure_of(model, info.example)
    images = subject.dataset.train.images[:CALIBRATE]
    for mode in info.bytes_read:
        ours = partial(jax.jit(partial(model.apply, precision=mode)), variables)
        own = np.asarray(ours(subject.dataset.test.images[:ASKED]))
        best = _accuracy(ours, subject.dataset.test) if subject.trained else None
        for target, write in _targets(subject.path, mode, images).items():
            row: dict[str, Any] = {"network": subject.name, "mode": mode, "target": target}
            out = folder / "exported"
            try:
                if target == onnx_of(INTEGER) and not runs_on_integers(structure, mode):
                    raise ValueError("not 8-bit activations: the exact form is the one there is")
                predict = write(out)
                row |= {"works": "yes", "bytes": out.stat().st_size}
                row |= _compared(predict, own, subject) | ({"ours": best} if best else {})
            except ValueError as error:
                row |= {"works": "no", "reason": " ".join(str(error).split())[:_REASON]}
            yield row


def _targets(path: Path, mode: str, images: np.ndarray) -> dict[str, Callable[[Path], Any]]:
    """Target -> what writes a mode of a packed file, and gives it in the engine."""

    def programs(out: Path) -> Any:
        save_programs(out, path, [mode])
        return partial(Programs(out).predict, precision=mode)

    def onnx(out: Path, **how: Any) -> Any:
        save_onnx(out, path, [mode], **how)
        return partial(EngineNetwork(out).predict, precision=mode)

    def lite(out: Path) -> Any:
        save_litert(out, path, mode)
        return LiteNetwork(out).predict

    found: dict[str, Callable[[Path], Any]] = {PROGRAMS: programs, onnx_of(EXACT): onnx}
    found[TFLITE] = lite
    found[onnx_of(INTEGER)] = partial(onnx, form=INTEGER, calibration=images)
    if "1024" in path.name:
        found[onnx_of(NIBBLES)] = partial(onnx, form=NIBBLES)
    return found


def onnx_of(form: str) -> str:
    """The target of a form."""
    return f"ONNX, {form}"


def _compared(predict: Any, own: np.ndarray, subject: Subject) -> dict[str, Any]:
    test = subject.dataset.test
    found = predict(test.images[:ASKED])
    row = {
        "difference": float(np.abs(found - own).max() / np.abs(own).max()),
        "agree": float(100 * np.mean(found.argmax(1) == own.argmax(1))),
    }
    if subject.trained:
        row["accuracy"] = _accuracy(predict, test)
    return row


def _accuracy(predict: Any, split: Any) -> float:
    parts = range(0, len(split.images), BATCH)
    found = np.concatenate(
        [np.argmax(predict(split.images[start : start + BATCH]), 1) for start in parts]
    )
    return float(100 * np.mean(found == split.labels))
