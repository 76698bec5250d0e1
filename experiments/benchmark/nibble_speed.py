"""Dense layers of 4 and 8 bits in ONNX Runtime; part of `python -m experiments.benchmark engines`.

The MLP 784-4096-4096-10 of plane_speed.py, with random weights: a product takes the same time
whatever it multiplies. The weights of both modes are the same two halves of codes, in one file with
a switch.
"""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from dual_precision.deploy import load_packed, save_packed
from dual_precision.deploy.export.onnx.file import EngineNetwork, save_onnx
from dual_precision.deploy.export.onnx.floats import save_float_onnx
from dual_precision.deploy.export.onnx.layers import NIBBLES
from dual_precision.models import build_from
from dual_precision.precision import modes
from dual_precision.tasks.classification import Classification
from dual_precision.training.state import initial_variables
from experiments.benchmark.comparison import (
    Bar,
    judge_bars,
    median_and_range,
    relative_difference,
    verdict_of,
)
from experiments.benchmark.plane_speed import time_requests
from experiments.benchmark.resident import resident_bytes
from experiments.figures.tables import markdown_table

FLOAT, LOW, HIGH = "ORT float32", "ORT, our low, 4 bits", "ORT, our high, 8 bits"
BOTH_LOW, BOTH_HIGH = "ORT, both modes, low", "ORT, both modes, high"
SHAPE = (28, 28, 1)
_OWN = {"low": "w4a32", "high": "w8a32"}  # of all layers but the last
_WHAT = "784-4096-4096-10, batch 1"
BARS = (
    Bar(f"{_WHAT}: low against float32", LOW, FLOAT, 10, 15),
    Bar(f"{_WHAT}: high against float32", HIGH, FLOAT, 5, 8),
    Bar(f"{_WHAT}, both modes in one file: low against float32", BOTH_LOW, FLOAT, 10, 15),
    Bar(f"{_WHAT}, both modes in one file: high against float32", BOTH_HIGH, FLOAT, 5, 8),
)
COLD_STEPS = 3  # requests in a round before which the caches are evicted
BYTES_BAR, BYTES_GOAL = 1.1, 1.02


def measure_nibbles(folder: Path, repeats: int, steps: int) -> dict[str, Any]:
    """Prints times, differences and bars; the same as JSON types."""
    own = modes({"dense1": _OWN}, low=_OWN["low"], high=_OWN["high"])
    network = {"name": "mlp_4096", "num_classes": 10, **own.to_json()}
    model, example = build_from(network), Classification(SHAPE).example
    variables = initial_variables(model, example, 0)
    save_packed(packed := folder / "mlp", model, variables, network, example)
    save_float_onnx(folder / "float.onnx", model, variables, example)
    files = {name: folder / f"{name}.onnx" for name in ("low", "high", "both")}
    for name, file in files.items():
        save_onnx(file, packed, None if name == "both" else [name], NIBBLES)
    images = np.random.default_rng(0).integers(0, 256, (8, *SHAPE), np.uint8)
    engines = {"float": EngineNetwork(folder / "float.onnx")}
    engines |= {name: EngineNetwork(file) for name, file in files.items()}
    asked = {
        FLOAT: ("float", "float"), LOW: ("low", "low"), HIGH: ("high", "high"),
        BOTH_LOW: ("both", "low"), BOTH_HIGH: ("both", "high"),
    }  # fmt: skip
    requests = {
        name: partial(engines[file].predict, images[:1], mode)
        for name, (file, mode) in asked.items()
    }
    times, cold = time_requests(requests, repeats, steps, COLD_STEPS)
    differences = {
        name: _difference(packed, engines[file], images, mode)
        for name, (file, mode) in asked.items()
        if file != "float"
    }
    rows = [
        {
            "program": name,
            "ms": median_and_range(times[name], 3),
            "cold": median_and_range(cold[name], 3),
            "far": differences.get(name),
        }
        for name in asked
    ]
    columns = (("program", "program", "{}"), ("ms", "ms, batch 1", "{}"),
               ("cold", "cold caches: ms", "{}"),
               ("far", "relative difference to JAX", "{:.2g}"))  # fmt: skip
    print(f"\n{markdown_table(rows, columns, left=['program'])}\n")
    lines = [
        *judge_bars(BARS, times, cold),
        *bytes_lines(measure_bytes(folder, files)),
    ]
    print(*(f"- {line}" for line in lines), sep="\n", flush=True)
    return {"nibbles": {"milliseconds": times, "differences": differences, "bars": lines}}


def _difference(packed: Path, engine: EngineNetwork, images: np.ndarray, mode: str) -> float:
    model, variables = load_packed(packed)
    ours = np.asarray(model.apply(variables, images, precision=mode))
    return relative_difference(engine.predict(images, mode), ours)


def measure_bytes(folder: Path, files: Mapping[str, Path]) -> dict[str, int]:
    """Resident bytes of files, each in a fresh process, and of two modes as two sessions."""
    network: dict[str, Any] = {"name": "mlp", "num_classes": 10, "hidden": [8]}
    network |= modes(low=_OWN["low"], high=_OWN["high"]).to_json()
    model, example = build_from(network), Classification(SHAPE).example
    save_float_onnx(small := folder / "small", model, initial_variables(model, example, 0), example)
    loaded = {**{name: [file] for name, file in files.items()}, "float": [folder / "float.onnx"]}
    loaded["apart"] = [files["low"], files["high"]]
    return {name: resident_bytes(small, own) for name, own in loaded.items()}


def bytes_lines(resident: Mapping[str, int]) -> list[str]:
    """What both modes take beside the wide one alone: in one file, and as two sessions."""
    together, apart = (resident[name] / resident["high"] for name in ("both", "apart"))
    verdict = verdict_of(together <= BYTES_BAR, together <= BYTES_GOAL)
    sizes = ", ".join(f"{name} {size / 1e6:.1f} MB" for name, size in resident.items())
    return [
        f"resident bytes, both modes in one file against high alone: {together:.3f} x"
        f" (bar {BYTES_BAR}, goal {BYTES_GOAL}) {verdict}; as two sessions {apart:.3f} x",
        f"resident bytes: {sizes}",
    ]
