"""The train step compiled for many devices, and how it would scale over them by a stated model.

    python -m experiments.benchmark scale --models=resnet20,resnet56,transformer --devices=1,8,64

Compiles the phase that trains both modes for so many virtual CPU devices, a process for each, and
runs none of it. The collectives, their bytes and the memory of a device are read from the compiled
programs; scaling curves follow from them by curves.py, whose figures are stated, not measured. Four
minutes on two busy CPU cores. Another backend than XLA's CPU would fuse collectives otherwise.
"""

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dual_precision.deploy import inspect_packed
from dual_precision.deploy.file.writer import check_replaceable
from dual_precision.models import IMAGE_MODELS
from dual_precision.primitives.native.build import SWITCH
from experiments.benchmark.scaling.collectives import Collective, describe_collectives
from experiments.benchmark.scaling.curves import (
    EFFICIENT,
    INTERCONNECTS,
    Interconnect,
    StepCost,
    Way,
    as_compiled,
    overlapped,
    strong_limit,
    strong_speedup,
    weak_efficiency,
    weak_limit,
    with_trees,
)
from experiments.figures.scaling import Curves, plot_scaling
from experiments.figures.tables import markdown_table
from experiments.workdir import write_whole

PATIENCE = 900.0  # seconds for one compilation
COUNTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1000)
SHOWN = (8, 64, 256, 1000)  # of them, in the table
STRONG = 32  # a batch that all devices share is that of so many devices
SHARES = 2  # rows that a device needs: one for each mode
LARGER = 8  # times the batch of a device
REPLICAS = (1, 8, 64, 1000)
WAYS: Mapping[str, Way] = {
    "as compiled": as_compiled,
    "trees where faster": with_trees,
    "one all-reduce, overlapped": overlapped,
}
_COMPILED = (
    ("model", "model", "{}"),
    ("devices", "devices", "{}"),
    ("rows", "rows of a device", "{}"),
    ("collectives", "collectives", "{}"),
    ("largest", "kB of the largest", "{:.1f}"),
    ("others", "kB of all others", "{:.1f}"),
    ("state", "state MB", "{:.2f}"),
    ("data", "data MB", "{:.1f}"),
    ("temporary", "temporary MB", "{:.0f}"),
)
_STARTS = (
    ("replicas", "replicas", "{}"),
    ("low", "MB until all answer in low", "{:.2f}"),
    ("high", "MB until all answer in high", "{:.2f}"),
)


def compiled_steps(
    models: Sequence[str], devices: Sequence[int], batch_size: int
) -> list[dict[str, Any]]:
    """What the child of each model and number of devices found, see compiled.py.

    Raises:
      ValueError: one of them failed.
    """
    found = []
    for model in models:
        for count in devices:
            found.append(_run_child(model, count, batch_size))
            print(f"compiled {model} for {count}", file=sys.stderr, flush=True)
    return found


def _run_child(model: str, devices: int, batch_size: int) -> dict[str, Any]:
    command = ["-m", "experiments.benchmark.scaling.compiled", model, str(batch_size)]
    # Without the flags of this process, which may ask for other devices; and without our own
    # kernels, which only a process with one device would use, and whose work XLA does not count.
    kept = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
    asked = {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices), SWITCH: "0"}
    try:
        done = subprocess.run(
            [sys.executable, *command],
            env=kept | asked,
            capture_output=True,
            text=True,
            check=True,
            timeout=PATIENCE,
        )
    except subprocess.TimeoutExpired:
        raise ValueError(
            f"{model} on {devices} devices: not compiled in {PATIENCE:g} s; name fewer devices"
        ) from None
    except subprocess.CalledProcessError as error:
        said = error.stderr[-500:]
        raise ValueError(f"{model} on {devices} devices: not compiled: {said}") from None
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return {**found, "collectives": [Collective(*own) for own in found["collectives"]]}


def compiled_table(found: Sequence[Mapping[str, Any]]) -> str:
    """One line for every program, in Markdown."""
    rows = []
    for own in found:
        largest, *others = sorted((one.bytes for one in own["collectives"]), reverse=True) or [0]
        rows.append(
            {
                **own,
                "collectives": describe_collectives(own["collectives"]),
                "largest": largest / 1e3,
                "others": sum(others) / 1e3,
                **{key: own[key] / 1e6 for key in ("state", "data", "temporary")},
            }
        )
    return markdown_table(rows, _COMPILED, left=["model", "collectives"])


def step_cost(found: Mapping[str, Any], teraflops: float) -> StepCost:
    """What the model of scaling takes, of a program for several devices.

    Raises:
      ValueError: a collective that the model has no time for.
    """
    own: Sequence[Collective] = found["collectives"]
    if foreign := sorted({one.kind for one in own} - {"all-reduce"}):
        raise ValueError(f"{found['model']}: {foreign}: the model knows all-reduce alone")
    compute = found["operations"] / (teraflops * 1e12)
    sizes = tuple(one.bytes for one in own)
    return StepCost(found["rows"], compute, sizes, found["parameters"])


def scaling_rows(step: StepCost) -> list[dict[str, Any]]:
    """For every interconnect and way: weak efficiency, strong speed-up, and where they end."""
    larger = step.with_rows(LARGER * step.rows)
    cases = [(name, way, step) for name, way in WAYS.items()]
    cases.append((f"as compiled, {LARGER} x the batch", as_compiled, larger))
    return [
        _scaling_row(name, way, own, link) for link in INTERCONNECTS for name, way, own in cases
    ]


def _scaling_row(name: str, way: Way, step: StepCost, link: Interconnect) -> dict[str, Any]:
    batch = STRONG * step.rows
    weak = {n: weak_efficiency(way, step, n, link) for n in COUNTS}
    shared = [n for n in COUNTS if batch / n >= SHARES]
    strong = {n: strong_speedup(way, step, batch, n, link) for n in shared}
    return {
        "link": link.name,
        "way": name,
        "weak": weak,
        "strong": strong,
        "weak_limit": weak_limit(way, step, COUNTS, link),
        "strong_limit": strong_limit(way, step, batch, shared, link),
        **{f"weak{n}": 100 * weak[n] for n in SHOWN},
        **{f"strong{n}": strong.get(n) for n in SHOWN},
    }


def scaling_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """One line for every interconnect and way, in Markdown."""
    columns = [
        ("link", "each device has", "{}"),
        ("way", "all-reduces", "{}"),
        *((f"weak{n}", f"weak {n}, %", "{:.0f}") for n in SHOWN),
        ("weak_limit", f"{EFFICIENT:.0%} up to", "{}"),
        *((f"strong{n}", f"strong {n}, x", "{:.1f}") for n in SHOWN),
        ("strong_limit", "fastest at", "{}"),
    ]
    return markdown_table(rows, columns, left=["link", "way"])


def starts_table(network: str) -> str:
    """Bytes that go out until so many replicas have read a packed file, in Markdown."""
    read = inspect_packed(network).bytes_read
    low, high = min(read.values()), max(read.values())
    rows = [{"replicas": n, "low": n * low / 1e6, "high": n * high / 1e6} for n in REPLICAS]
    return markdown_table(rows, _STARTS)


def read_counts(devices: Sequence[str]) -> list[int]:
    """The numbers of devices that a flag names, fewest first.

    Raises:
      ValueError: not all are whole numbers from 1 on; none is above 1, where nothing is sent.
    """
    if not all(word.isdecimal() and 0 < int(word) <= 1024 for word in devices):
        raise ValueError(f"--devices={','.join(devices)}: expected whole numbers, 1 to 1024")
    counts = sorted({int(word) for word in devices})
    if counts[-1] < 2:
        raise ValueError(f"--devices={','.join(devices)}: expected one of 2 or more among them")
    return counts


def check_scalable(models: Sequence[str]) -> None:
    """Raises ValueError for other networks than those that `scale` compiles."""
    known = sorted(IMAGE_MODELS)
    known.append("transformer")
    if foreign := [name for name in models if name not in known]:
        raise ValueError(f"--models: {foreign}: expected some of {known}")


def measure_scale(
    *,
    models: Sequence[str] = ("resnet20", "resnet56", "transformer"),
    devices: Sequence[str] = ("1", "8", "64"),
    batch_size: int = 128,
    teraflops: float = 10.0,
    network: str,
    picture: str | None = None,
    out: str | None = None,
) -> None:
    """The sub-command `scale`; its arguments are the flags."""
    counts = read_counts(devices)
    check_scalable(models)
    for path in (picture, out):
        if path:
            check_replaceable(path)
    starts = starts_table(network)
    found = compiled_steps(models, counts, batch_size)
    print(
        f"read from programs that XLA compiled for virtual CPU devices:\n\n{compiled_table(found)}"
    )
    curves: dict[str, list[dict[str, Any]]] = {}
    for own in found:
        if own["devices"] != counts[-1]:
            continue
        step = step_cost(own, teraflops)
        curves[own["model"]] = rows = scaling_rows(step)
        about = _assumed(own, step, teraflops)
        print(f"\n{about}\n\n{scaling_table(rows)}")
    print(f"\nto start replicas from one packed file, {Path(network).name}:\n\n{starts}")
    if picture:
        plot_scaling(_curves_of(curves), Path(picture))
    if out:
        plain = [
            {**f, "collectives": [dataclasses.astuple(c) for c in f["collectives"]]} for f in found
        ]
        write_whole(Path(out), json.dumps({"compiled": plain, "curves": curves}, indent=2) + "\n")


def _assumed(found: Mapping[str, Any], step: StepCost, teraflops: float) -> str:
    """What the curves of a model stand on."""
    operations, rows = found["operations"] / 1e9, int(step.rows)
    return (
        f"{found['model']}, by a model, not measured: {operations:.1f} G operations of a device at"
        f" {teraflops:g} T/s (assumed) take {1e3 * step.compute:.2f} ms; {rows} rows of each"
        f" device, or {STRONG * rows} shared by all ({LARGER} times as many where said);"
        f" all-reduces of the program for {found['devices']}"
    )


def _curves_of(curves: Mapping[str, Sequence[Mapping[str, Any]]]) -> Curves:
    return {
        model: {(row["link"], row["way"]): (row["weak"], row["strong"]) for row in rows}
        for model, rows in curves.items()
    }
