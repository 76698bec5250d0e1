"""The child of `damage`: damages a file in some way, opens it, and says what came of it.

    python -m experiments.benchmark.damage_cases FOLDER CASES SEED FIRST

It prints "ready" when the sound files are made, then a JSON line for each case from FIRST on.
Everything follows from the seed and the number of the case.
"""

import copy
import json
import resource
import shutil
import sys
import time
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from dual_precision import load, modes
from dual_precision.data import DataError
from dual_precision.deploy import inspect_packed, load_packed, save_packed
from dual_precision.deploy.file.writer import sealed_header
from dual_precision.models import build_from
from dual_precision.tasks.classification import Classification
from dual_precision.training.checkpoint import CheckpointError, Checkpoints
from dual_precision.training.state import initial_variables
from experiments.benchmark.damage import MEBIBYTES, SECONDS, kind_of
from experiments.deploy.report import packed_report
from experiments.recipes.config import make_config, read_widths
from experiments.summary import read_runs, summary_table
from experiments.workdir import CONFIG, RESULTS, config_of_run, differences, read_json

REFUSED = (ValueError, OSError, CheckpointError, DataError)
SHAPE = (8, 8, 1)
NETWORK = {
    "name": "mlp",
    "num_classes": 4,
    "hidden": [16, 16],
    **modes(low="w2a2", high="w8a8").to_json(),
}
DEEP = "a deep nest"
# What an attacker, or a careless program, may put where something else is expected.
NASTY: tuple[Any, ...] = (
    None, True, -1, 0, 1, 2**31, 2**40, 2**63, 10**30, 1.5, -0.0, 1e308, "", "x", "w2a2", "low",
    "../../x", [], [[]], {}, {"": ""}, [0] * 1000, ["low", 0, "x"], "9" * 5000,
)  # fmt: skip


def main(folder: Path, cases: int, seed: int, first: int) -> None:
    """Runs the cases; see the top of this file."""
    files = make_files(folder)
    print("ready", flush=True)
    for number in range(first, cases):
        kind, rng = kind_of(number), np.random.default_rng([seed, number])
        print(json.dumps(judged(partial(WAYS[kind], files, rng))), flush=True)


def judged(attempt: Callable[[], str]) -> tuple[str, str]:
    """The outcome of one attempt, and what was said."""
    _reset_peak()
    before, start = _memory("VmRSS"), time.monotonic()
    try:
        outcome, about = attempt(), ""
    except REFUSED as error:
        outcome, about = "refused", str(error)[:200]
    except MemoryError:
        outcome, about = "large", "MemoryError"
    except Exception as error:  # what nobody expected is what is looked for
        outcome, about = "crash", f"{type(error).__name__}: {error}"[:300]
    if time.monotonic() - start > SECONDS:
        return "slow", f"{time.monotonic() - start:.1f} s; {about}"
    grown = (_memory("VmHWM") - before) / 1024
    if grown > MEBIBYTES:
        return "large", f"{grown:.0f} MiB; {about}"
    return outcome, about


def _memory(field: str) -> int:
    """KiB, as Linux tells; elsewhere the peak of the process."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith(field)).split()[1])
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _reset_peak() -> None:
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


# -- sound files -----------------------------------------------------------------------------------


@cache
def _predict(model: Any) -> Callable[..., jax.Array]:
    return jax.jit(model.apply, static_argnames="precision")


def logits_of(model: Any, variables: Any, names: tuple[str, ...]) -> dict[str, bytes]:
    """Mode -> the bits of its logits on images that are always the same."""
    images = np.random.default_rng(0).integers(0, 256, (8, *SHAPE), dtype=np.uint8)
    predict = _predict(model)
    return {
        name: np.asarray(predict(variables, images, precision=name)).tobytes() for name in names
    }


def make_files(folder: Path) -> dict[str, Any]:
    """A packed file, a workdir of two checkpoints with its JSON, and what they give."""
    model, example = build_from(NETWORK), Classification(SHAPE).example
    packed, workdir = folder / "net.safetensors", folder / "run"
    steps = {step: initial_variables(model, example, seed=step) for step in (1, 2)}
    config = make_config("digits", {}).to_json()
    description = {"preset": "digits", "experiment": config, "network": NETWORK}
    modes_used = ("low", "high")
    rows = [{"mode": mode, "bits": "w2a2", "validation": 1.0, "test": 1.0} for mode in modes_used]
    metadata = {"run": description, "results": rows}
    if not packed.exists():
        save_packed(packed, model, steps[1], NETWORK, example, metadata)
    if not (workdir / RESULTS).exists():
        with Checkpoints(workdir, description) as checkpoints:
            for step, variables in steps.items():
                checkpoints.save(step, {"step": np.int32(step), **variables}, {"phase": 0}, 0.5)
        (workdir / CONFIG).write_text(json.dumps(description))
        (workdir / RESULTS).write_text(json.dumps({"rows": rows}))
    names = ("low", "high")
    right = [logits_of(model, variables, names) for variables in steps.values()]
    return {"packed": packed.read_bytes(), "workdir": workdir, "folder": folder, "right": right}


# -- ways to damage --------------------------------------------------------------------------------


def changed_bytes(raw: bytes, rng: np.random.Generator) -> bytes:
    """Bits turned, bytes set, parts cut, doubled, emptied or exchanged; once to three times."""
    array = np.frombuffer(raw, np.uint8).copy()
    for _ in range(rng.integers(1, 4)):
        if array.size < 4:
            break
        first, last = sorted(rng.integers(0, array.size + 1, 2))
        match rng.integers(0, 6):
            case 0:
                array[rng.integers(array.size)] ^= np.uint8(1 << rng.integers(8))
            case 1:
                array[rng.integers(array.size)] = rng.integers(256)
            case 2:
                array = array[:first] if rng.integers(2) else array[first:]
            case 3:
                array = np.concatenate([array[:last], array[first:]])
            case 4:
                array[first:last] = 0
            case _:
                array = np.concatenate([array[last:], array[first:last], array[:first]])
    return array.tobytes()


def changed_json(value: Any, rng: np.random.Generator, depth: int = 0) -> Any:
    """JSON with one thing in it replaced, left out, added or nested."""
    if depth and (not isinstance(value, dict | list) or not value or rng.random() < 0.25):
        if rng.random() < 0.05:
            return DEEP
        return copy.deepcopy(NASTY[rng.integers(len(NASTY))])
    result = copy.copy(value)
    keys = list(result) if isinstance(result, dict) else list(range(len(result)))
    key = keys[rng.integers(len(keys))]
    if rng.random() < 0.2:
        del result[key]
    else:
        result[key] = changed_json(result[key], rng, depth + 1)
    return result


def written(value: Any, rng: np.random.Generator) -> str:
    """JSON text, with something nested in the place of DEEP, too deeply to be written by json."""
    depth = int(rng.integers(1, 100_000))
    return json.dumps(value).replace(json.dumps(DEEP), "[" * depth + "0" + "]" * depth)


def try_bytes(files: dict[str, Any], rng: np.random.Generator) -> str:
    """A packed file whose bytes were changed."""
    path = files["folder"] / "damaged.safetensors"
    path.write_bytes(changed_bytes(files["packed"], rng))
    name = [None, "low", "high"][rng.integers(3)]
    model, variables = load_packed(path, precision=name)
    names = ("low",) if name == "low" else ("low", "high")
    found = logits_of(model, variables, names)
    return "right" if all(found[n] == files["right"][0][n] for n in names) else "wrong"


def try_resealed(files: dict[str, Any], rng: np.random.Generator) -> str:
    """A packed file with another header, sealed as if it were sound: any number may be in it."""
    raw = files["packed"]
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    meta = header["__metadata__"]
    inner = {key: json.loads(meta[key]) for key in meta if key not in ("format", "sha256")}
    if rng.random() < 0.8:
        inner = changed_json(inner, rng)
    else:
        rest = {key: value for key, value in header.items() if key != "__metadata__"}
        header = {"__metadata__": meta, **changed_json(rest, rng)}
    path = files["folder"] / "resealed.safetensors"
    table = {key: value for key, value in header.items() if key != "__metadata__"}
    path.write_bytes(sealed_header(inner, table) + raw[8 + length :])
    info = inspect_packed(path)
    packed_report(info)
    model, variables = load_packed(path)
    logits_of(model, variables, tuple(info.bytes_read))
    return "right"


def try_checkpoint(files: dict[str, Any], rng: np.random.Generator) -> str:
    """A workdir with one of its files damaged, gone or under another name."""
    workdir = files["folder"] / "damaged_run"
    shutil.rmtree(workdir, ignore_errors=True)
    shutil.copytree(files["workdir"], workdir)
    paths = sorted(path for path in (workdir / "checkpoints").rglob("*") if path.is_file())
    path = paths[rng.integers(len(paths))]
    match rng.integers(0, 5):
        case 0:
            path.unlink()
        case 1:
            one, two, spare = (workdir / "checkpoints" / name for name in ("1", "2", "spare"))
            one.rename(spare), two.rename(one), spare.rename(two)
        case 2:
            shutil.rmtree(path.parent)
            path.parent.mkdir()
        case _:
            path.write_bytes(changed_bytes(path.read_bytes(), rng))
    model, variables = load(workdir)
    found = logits_of(model, variables, ("low", "high"))
    return "right" if found in files["right"] else "wrong"


def try_json(files: dict[str, Any], rng: np.random.Generator) -> str:
    """config.json or results.json with something else in it, as the commands read them."""
    workdir = files["folder"] / "changed_run"
    workdir.mkdir(exist_ok=True)
    for name in (CONFIG, RESULTS):
        shutil.copy(files["workdir"] / name, workdir / name)
    path = workdir / (CONFIG, RESULTS)[rng.integers(2)]
    value = changed_json(json.loads(path.read_text()), rng)
    text = written(value, rng)
    path.write_bytes(changed_bytes(text.encode(), rng) if rng.random() < 0.3 else text.encode())
    attempts: tuple[Callable[[], object], ...] = (
        lambda: summary_table(read_runs([workdir])),
        lambda: differences(workdir / CONFIG, make_config("digits", {}).to_json()),
        lambda: config_of_run(workdir),
        lambda: read_widths(read_json(path)),
    )
    attempts[rng.integers(len(attempts))]()
    return "right"


WAYS = {
    "bytes": try_bytes,
    "resealed": try_resealed,
    "checkpoint": try_checkpoint,
    "json": try_json,
}

if __name__ == "__main__":
    main(Path(sys.argv[1]), *(int(word) for word in sys.argv[2:5]))
