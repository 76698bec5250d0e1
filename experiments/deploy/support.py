"""Which network runs in which engine, found by running it: some minutes on two CPU cores.

    python -m experiments.deploy support [--network=a.safetensors,b.safetensors]
        [--nnabla=nnabla/bin/python] [--out=support.json]

Each mode of each network is written for each target, loaded in the engine, and asked the same test
images, or texts, as the network itself: the largest difference of a logit, relative to the largest
logit. Packed networks have a score on the test data too; the others have random weights.
A packed network is named by its file, so that two of one kind have rows of their own.
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
from dual_precision.deploy.export.onnx.file import runs_on_integers
from dual_precision.deploy.export.onnx.layers import EXACT, INTEGER, NIBBLES
from dual_precision.deploy.file.writer import check_replaceable
from dual_precision.models import build_from
from dual_precision.precision import modes
from dual_precision.structure import structure_of
from dual_precision.tasks.classification import Classification
from dual_precision.tasks.language import NextByte
from dual_precision.training.state import initial_variables
from experiments.deploy.exporting import (
    GGUF,
    LITERT,
    NNP,
    ONNX,
    STABLEHLO,
    export_to,
)
from experiments.deploy.trials import (
    Trial,
    compared,
    image_trial,
    reads_text,
    text_trial,
    trial_of,
)
from experiments.figures.tables import markdown_table
from experiments.workdir import write_whole

NETWORK = "notebooks/networks/cifar10-w2a2-w8a8.safetensors"
ASKED, TEXTS, CONTEXT = 256, 32, 64
_REASON = 160  # characters of a row
FRESH = ("mlp", "resnet8", "resnet20", "resnet20b", "resnet8_fast")
OF_TEXT: dict[str, dict[str, Any]] = {
    "transformer": {"features": 128, "depth": 2, "context": CONTEXT},
    "lstm": {"features": 128, "depth": 2},
}
COLUMNS = (
    ("network", "network", "{}"),
    ("mode", "mode", "{}"),
    ("target", "target", "{}"),
    ("works", "runs", "{}"),
    ("difference", "largest difference", "{:.1e}"),
    ("agree", "same answer %", "{:.2f}"),
    ("score", "test, % or bits", "{:.3f}"),
    ("ours", "ours", "{:.3f}"),
    ("bytes", "bytes", "{:,}"),
    ("reason", "reason", "{}"),
)
LEFT = ("network", "mode", "target", "works", "reason")


@dataclasses.dataclass(frozen=True)
class Subject:
    """A packed network that is tried, and what it is asked.

    Attributes:
      nibbles: it is also written in the form that has its 4-bit weights as such.
    """

    name: str
    path: Path
    trained: bool
    trial: Trial
    nibbles: bool = False


def support_command(
    *,
    network: str | None = None,
    nnabla: str | None = None,
    out: str | None = None,
    data_dir: str | None = None,
) -> None:
    """The sub-command `support`; its keyword arguments are the flags.

    Raises:
      ValueError: an engine is missing; the file does not say what it was trained on.
    """
    if out:
        check_replaceable(out)
    rows: list[dict[str, Any]] = []
    packed = [Path(path) for path in (network or NETWORK).split(",")]
    with tempfile.TemporaryDirectory() as folder:
        for subject in subjects(packed, Path(folder), data_dir, network is None):
            rows += list(support_rows(subject, Path(folder), nnabla))
            print(f"{subject.name}: {len(rows)} rows", flush=True)
            if out:  # each network takes up to a minute: what is found is kept
                write_whole(Path(out), json.dumps(rows, indent=2) + "\n")
    print(f"\n{markdown_table(rows, COLUMNS, left=LEFT)}")


def subjects(
    packed: list[Path], folder: Path, data_dir: str | None, fresh: bool
) -> Iterator[Subject]:
    """The packed networks, and, if `fresh`, others of every kind with random weights."""
    for path in packed:
        info = inspect_packed(path)
        asked = TEXTS if reads_text(info) else ASKED
        trial = trial_of(info, asked, part="test", data_dir=data_dir)
        yield Subject(path.stem, path, True, trial, nibbles="1024" in info.network["name"])
    if not fresh:
        return
    loaded = data.load("cifar10", data_dir=data_dir)
    trial, example = image_trial(loaded, "test", ASKED), Classification(loaded.image_shape).example
    about = {
        "num_classes": loaded.num_classes, "mean": [*loaded.mean], "std": [*loaded.std],
    }  # fmt: skip
    own, halves = modes(low="w2a2", high="w8a8"), modes(low="w4a32", high="w8a32")
    for name in FRESH:
        yield _fresh(name, {"name": name, **about, **own.to_json()}, example, folder, trial)
    network = {"name": "mlp", "hidden": [1024, 1024], **about, **halves.to_json()}
    yield _fresh("mlp 1024, w4a32/w8a32", network, example, folder, trial)
    text, halves = loaded.test.images[:2].reshape(-1), modes(low="w4a8", high="w8a8")
    trial = text_trial(text, CONTEXT, TEXTS)
    for name, sizes in OF_TEXT.items():
        network = {"name": name, **sizes, **halves.to_json()}
        yield _fresh(f"{name}, w4a8/w8a8", network, NextByte(CONTEXT).example, folder, trial)


def _fresh(name: str, network: Any, example: Any, folder: Path, trial: Trial) -> Subject:
    model = build_from(network)
    path = folder / name.split(",")[0]
    save_packed(path, model, initial_variables(model, example, 0), network, example)
    return Subject(name, path, False, trial, nibbles="w4" in name)


def support_rows(
    subject: Subject, folder: Path, nnabla: str | None = None
) -> Iterator[dict[str, Any]]:
    """A row for each mode and target."""
    model, variables = load_packed(subject.path)
    info, trial = inspect_packed(subject.path), subject.trial
    structure = structure_of(model, info.example)
    for mode in info.bytes_read:
        ours = partial(jax.jit(partial(model.apply, precision=mode)), variables)
        own = np.asarray(ours(trial.inputs))
        best = {"ours": trial.score(ours)} if subject.trained else {}
        for target, write in _targets(subject, mode, nnabla).items():
            row: dict[str, Any] = {"network": subject.name, "mode": mode, "target": target}
            out = folder / "exported"
            try:
                if target == onnx_of(INTEGER) and not runs_on_integers(structure, mode):
                    raise ValueError("not 8-bit activations: the exact form is the one there is")
                predict = write(out)
                row |= {"works": "yes", "bytes": out.stat().st_size}
                row |= compared(predict(trial.inputs, mode), own) | best
                if subject.trained:
                    row["score"] = trial.score(partial(predict, precision=mode))
            except ValueError as error:
                row |= {"works": "no", "reason": " ".join(str(error).split())[:_REASON]}
            yield row


def _targets(subject: Subject, mode: str, nnabla: str | None) -> dict[str, Callable[[Path], Any]]:
    """Target -> what writes a mode of a packed file, and gives it in the engine."""

    def written(out: Path, target: str, form: str = EXACT) -> Any:
        calibration = subject.trial.calibration if form == INTEGER else None
        return export_to(target, subject.path, out, [mode], form, calibration, nnabla)

    found: dict[str, Callable[[Path], Any]] = {
        NAMES[target]: partial(written, target=target) for target in (STABLEHLO, LITERT)
    }
    forms = [EXACT, INTEGER]
    if subject.trial.calibration is None:  # text
        forms, found[NAMES[GGUF]] = [EXACT], partial(written, target=GGUF)
    if subject.nibbles:
        forms.append(NIBBLES)
    for form in forms:
        found[onnx_of(form)] = partial(written, target=ONNX, form=form)
    if nnabla is not None:
        found[NAMES[NNP]] = partial(written, target=NNP)
    return found


NAMES = {STABLEHLO: "StableHLO", LITERT: "LiteRT", GGUF: "GGUF", NNP: "NNP"}


def onnx_of(form: str) -> str:
    """The target of a form."""
    return f"ONNX, {form}"
