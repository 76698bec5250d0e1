"""Dense layers of 4 and 8 bits in ONNX Runtime; part of `python -m experiments.benchmark engines`.

The MLP 784-4096-4096-10 of plane_speed.py, with random weights: a product takes the same time
whatever it multiplies. The weights of both modes are the same two halves of codes, in one file.
"""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from dual_precision.deploy import load_packed, save_packed
from dual_precision.deploy.export.onnx.file import EngineNetwork, save_onnx
from dual_precision.deploy.export.onnx.floats import save_float_onnx
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
from experiments.benchmark.timing import time_rounds, timed_request
from experiments.figures.tables import markdown_table

FLOAT, LOW, HIGH = "ORT float32", "ORT, our low, 4 bits", "ORT, our high, 8 bits"
SHAPE = (28, 28, 1)
_OWN = {"low": "w4a32", "high": "w8a32"}  # of all layers but the last
_WHAT = "784-4096-4096-10, batch 1"
BARS = (
    Bar(f"{_WHAT}: low against float32", LOW, FLOAT, 10, 15),
    Bar(f"{_WHAT}: high against float32", HIGH, FLOAT, 5, 8),
)
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
        save_onnx(file, packed, None if name == "both" else [name], nibbles=True)
    images = np.random.default_rng(0).integers(0, 256, (8, *SHAPE), np.uint8)
    engines = {"float": EngineNetwork(folder / "float.onnx")}
    engines |= {mode: EngineNetwork(files[mode]) for mode in ("low", "high")}
    names = {FLOAT: "float", LOW: "low", HIGH: "high"}
    requests = {
        name: partial(timed_request, partial(engines[mode].predict, images[:1], mode), steps)
        for name, mode in names.items()
    }
    times = time_rounds(requests, repeats)
    differences = _differences(packed, engines, images)
    rows = [
        {"program": name, "ms": median_and_range(times[name], 3), "far": differences.get(mode)}
        for name, mode in names.items()
    ]
    columns = (("program", "program", "{}"), ("ms", "ms, batch 1", "{}"),
               ("far", "relative difference to JAX", "{:.2g}"))  # fmt: skip
    print(f"\n{markdown_table(rows, columns, left=['program'])}\n")
    lines = [
        *judge_bars(BARS, times),
        *bytes_lines({name: file.stat().st_size for name, file in files.items()}),
    ]
    print(*(f"- {line}" for line in lines), sep="\n", flush=True)
    return {"nibbles": {"milliseconds": times, "differences": differences, "bars": lines}}


def _differences(
    packed: Path, engines: Mapping[str, EngineNetwork], images: np.ndarray
) -> dict[str, float]:
    model, variables = load_packed(packed)
    found = {}
    for mode in ("low", "high"):
        ours = np.asarray(model.apply(variables, images, precision=mode))
        found[mode] = relative_difference(engines[mode].predict(images, mode), ours)
    return found


def bytes_lines(sizes: Mapping[str, int]) -> list[str]:
    """What both modes take beside the wide one alone: as two sessions, and as one file."""
    apart = (sizes["low"] + sizes["high"]) / sizes["high"]
    together = sizes["both"] / sizes["high"]
    verdict = verdict_of(apart <= BYTES_BAR, apart <= BYTES_GOAL)
    return [
        f"bytes of weights, both modes as two sessions against high alone: {apart:.3f} x"
        f" (bar {BYTES_BAR}, goal {BYTES_GOAL}) {verdict}",
        f"one file for both modes: {together:.3f} x, whose every run computes both",
    ]
