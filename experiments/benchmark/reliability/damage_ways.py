"""The ways to damage a file and to open it; the files that are sound before.

A way takes the sound files and a random generator. It returns "right" or "wrong", or raises what
the program said.
"""

import io
import json
import os
import shutil
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image

from dual_precision import load, modes
from dual_precision.data import DataError
from dual_precision.data.provision.png import decode_png, encode_png
from dual_precision.deploy import (
    Cascade,
    Predictor,
    amend_metadata,
    inspect_packed,
    load_packed,
    save_packed,
)
from dual_precision.deploy.predictor import CASCADE
from dual_precision.models import build_from
from dual_precision.models.lstm import LSTM
from dual_precision.structure import batch_of
from dual_precision.tasks.classification import Classification
from dual_precision.tasks.language import NextByte
from dual_precision.training.checkpoint import Checkpoints
from dual_precision.training.reading import CheckpointError
from dual_precision.training.state import initial_variables
from experiments.benchmark.reliability.changes import (
    changed_bytes,
    changed_json,
    forged_packed,
    forged_png,
    nested_text,
)
from experiments.deploy.cascade_evaluation import cascade_settings
from experiments.deploy.report import packed_report
from experiments.recipes.config import make_config
from experiments.recipes.flags import read_widths_file
from experiments.summary import read_runs, summary_table
from experiments.workdir import (
    CONFIG,
    RESULTS,
    config_of_run,
    differences,
    open_workdir,
    read_description,
)

REFUSED = (ValueError, OSError, CheckpointError, DataError)
SHAPE = (8, 8, 1)  # of digits
IMAGE, TEXT = Classification(SHAPE).example, NextByte(context=8).example
NAMES = ("low", "high")
MODES = modes(low="w2a2", high="w8a8").to_json()
NETWORK = {
    "name": "mlp",
    "num_classes": 4,
    "hidden": [16, 16],
    **MODES,
}
# Of a kind each: what they make of a number in their description differs.
FORGED = {
    "resnet20": {"name": "resnet20", "num_classes": 4, "widths": [2, 2, 2], **MODES},
    "lstm": {"name": "lstm", "features": 4, **MODES},
}
WIDTHS = "widths.json"
JSONS = (CONFIG, RESULTS, WIDTHS)
SPARSE = 3 << 30  # bytes of a file that takes no room on the disk

Files = dict[str, Any]
Way = Callable[[Files, np.random.Generator], str]


def some_inputs(count: int = 8, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    """Always the same images, or texts: uint8 [count, *shape]."""
    return np.random.default_rng(0).integers(0, 256, (count, *shape), dtype=np.uint8)


def save_tiny_packed(path: Path, seed: int = 0) -> tuple[Any, Any]:
    """A packed file of an untrained network of 16 neurons, with a cascade; (model, variables)."""
    model = build_from(NETWORK)
    variables = initial_variables(model, IMAGE, seed)
    run = {"preset": "digits", "experiment": make_config("digits", {"dataset": "digits"}).to_json()}
    rows = [{"mode": name, "bits": "w2a2", "validation": 1.0, "test": 1.0} for name in NAMES]
    metadata = {"run": run, "results": rows, CASCADE: Cascade(*NAMES, 0.1).to_json()}
    save_packed(path, model, variables, NETWORK, IMAGE, metadata)
    return model, variables


def save_forged(path: Path, name: str) -> bytes:
    """A packed file of an untrained network of `FORGED`."""
    network, example = FORGED[name], TEXT if name == "lstm" else IMAGE
    model = build_from(network)
    save_packed(path, model, initial_variables(model, example, 1), network, example)
    return path.read_bytes()


def make_files(folder: Path) -> Files:
    """A packed file, a workdir of two checkpoints with its JSON, images; and what they give."""
    packed, workdir = folder / "net.safetensors", folder / "run"
    model, variables = save_tiny_packed(packed, seed=1)
    states = {1: variables, 2: initial_variables(model, IMAGE, seed=2)}
    info = inspect_packed(packed)
    description = {**info.metadata["run"], "network": NETWORK}
    if not (workdir / RESULTS).exists():
        with Checkpoints(workdir, description) as checkpoints:
            for step, state in states.items():
                checkpoints.save(step, {"step": np.int32(step), **state}, {"phase": 0}, 0.5)
        (workdir / CONFIG).write_text(json.dumps(description))
        (workdir / RESULTS).write_text(json.dumps({"rows": info.metadata["results"]}))
        (workdir / WIDTHS).write_text(json.dumps({"hidden_0": {"low": "w1a2"}}))
    Predictor(packed, batch_sizes=(1,))  # the compiler keeps its programs
    return {
        "packed": packed.read_bytes(),
        "sealed": [packed.read_bytes(), *(save_forged(folder / "other", name) for name in FORGED)],
        "workdir": workdir,
        "folder": folder,
        "right": [logits_of(model, state, NAMES) for state in states.values()],
        "images": [*map(_png_and_pixels, ((8, 8, 1), (32, 32, 3)), (True, False))],
    }


def _png_and_pixels(shape: tuple[int, int, int], ours: bool) -> tuple[bytes, np.ndarray]:
    """A PNG of our writer, or of the one of Pillow."""
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    if ours:
        return encode_png(pixels), pixels
    Image.fromarray(pixels).save(out := io.BytesIO(), "PNG")
    return out.getvalue(), pixels


@lru_cache(maxsize=8)
def _predict(model: Any) -> Callable[..., jax.Array]:
    return jax.jit(model.apply, static_argnames="precision")


def logits_of(model: Any, variables: Any, names: Sequence[str]) -> dict[str, bytes]:
    """Mode -> the bits of its logits on inputs that are always the same."""
    predict = _predict(model)
    inputs = some_inputs(shape=TEXT.shape if isinstance(model, LSTM) else SHAPE)
    return {
        name: np.asarray(predict(variables, inputs, precision=name)).tobytes() for name in names
    }


def each_of(*attempts: Callable[[], object]) -> None:
    """All of them, whatever is refused before; raises the last refusal."""
    refusal: Exception | None = None
    for attempt in attempts:
        try:
            attempt()
        except REFUSED as error:
            refusal = error
    if refusal is not None:
        raise refusal


def enlarge(path: Path) -> None:
    """Adds zeros that take no room on the disk."""
    os.truncate(path, path.stat().st_size + SPARSE)


def try_bytes(files: Files, rng: np.random.Generator) -> str:
    """A packed file whose bytes were changed."""
    path = files["folder"] / "damaged.safetensors"
    if rng.random() < 0.05:
        path.write_bytes(files["packed"])
        enlarge(path)
    else:
        path.write_bytes(changed_bytes(files["packed"], rng))
    name = [None, *NAMES][rng.integers(3)]
    model, variables = load_packed(path, precision=name)
    found = logits_of(model, variables, ("low",) if name == "low" else NAMES)
    return "right" if found.items() <= files["right"][0].items() else "wrong"


def try_resealed(files: Files, rng: np.random.Generator) -> str:
    """A packed file that was sealed again with something else in it: any number may be in it."""
    path = files["folder"] / "resealed.safetensors"
    sealed = files["sealed"]
    path.write_bytes(forged_packed(sealed[rng.integers(len(sealed))], rng))

    def predict() -> None:
        predictor = Predictor(path, batch_sizes=(1,))
        for name in predictor.precisions:
            row = batch_of(predictor.info.example, 1)
            given = tuple(np.ones(leaf.shape, leaf.dtype) for leaf in row)
            predictor.predict(given if len(given) > 1 else given[0], name)

    each_of(
        lambda: packed_report(inspect_packed(path)),
        lambda: cascade_settings(inspect_packed(path)),
        lambda: logits_of(*load_packed(path), tuple(inspect_packed(path).bytes_read)),
        predict if rng.random() < 0.25 else lambda: None,  # which compiles
        lambda: amend_metadata(path, {"note": "amended"}),
    )
    return "right"


def try_checkpoint(files: Files, rng: np.random.Generator) -> str:
    """A workdir with one of its files damaged, huge, gone or under another name."""
    workdir = files["folder"] / "damaged_run"
    shutil.rmtree(workdir, ignore_errors=True)
    shutil.copytree(files["workdir"], workdir)
    paths = sorted(path for path in (workdir / "checkpoints").rglob("*") if path.is_file())
    path = paths[rng.integers(len(paths))]
    match rng.integers(0, 8):
        case 0:
            path.unlink()
        case 1:
            one, two, spare = (workdir / "checkpoints" / name for name in ("1", "2", "spare"))
            one.rename(spare), two.rename(one), spare.rename(two)
        case 2:
            shutil.rmtree(path.parent)
            path.parent.mkdir()
        case 3:
            enlarge(path)
        case 4:
            path = _a_json(paths, rng)
            text = json.dumps(changed_json(json.loads(path.read_text()), rng))
            path.write_text(nested_text(text, rng))
        case _:
            path.write_bytes(changed_bytes(path.read_bytes(), rng))
    step: str | int = ("latest", "best", 1)[rng.integers(3)]
    found = logits_of(*load(workdir, step), NAMES)
    return "right" if found in files["right"][: 1 if step == 1 else 2] else "wrong"


def _a_json(paths: Sequence[Path], rng: np.random.Generator) -> Path:
    """What Orbax writes beside the arrays says where they are and of what shape."""
    found = [path for path in paths if path.read_bytes()[:1] == b"{"]
    return found[rng.integers(len(found))]


def try_json(files: Files, rng: np.random.Generator) -> str:
    """A JSON file of a run with something else in it, as the commands read it."""
    workdir = files["folder"] / "changed_run"
    workdir.mkdir(exist_ok=True)
    for name in JSONS:
        shutil.copy(files["workdir"] / name, workdir / name)
    path = workdir / JSONS[rng.integers(len(JSONS))]
    text = nested_text(json.dumps(changed_json(json.loads(path.read_text()), rng)), rng)
    path.write_bytes(changed_bytes(text.encode(), rng) if rng.random() < 0.3 else text.encode())
    if rng.random() < 0.05:
        enlarge(path)
    each_of(
        lambda: summary_table(read_runs([workdir])),
        lambda: differences(workdir / CONFIG, make_config("digits", {}).to_json()),
        lambda: config_of_run(workdir),
        lambda: open_workdir(workdir, read_description(files["workdir"]), resume=True),
        lambda: read_widths_file(str(workdir / WIDTHS)),
    )
    return "right"


def try_image(files: Files, rng: np.random.Generator) -> str:
    """A PNG whose bytes were changed, or which holds something else with the right checksums."""
    png, pixels = files["images"][rng.integers(len(files["images"]))]
    if rng.random() < 0.7:
        found = decode_png(changed_bytes(png, rng), pixels.shape)
        return "right" if np.array_equal(found, pixels) else "wrong"
    found = decode_png(forged_png(png, rng), pixels.shape)
    return "right" if (found.shape, found.dtype) == (pixels.shape, pixels.dtype) else "wrong"


WAYS: dict[str, Way] = {
    "bytes": try_bytes,
    "resealed": try_resealed,
    "checkpoint": try_checkpoint,
    "json": try_json,
    "image": try_image,
}
