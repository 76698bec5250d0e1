"""Modes of ours in ONNX Runtime, beside its own float32 and int8.

    python -m experiments.benchmark engines --checkpoint=resnet20-12fca82f.th --repeats=9

One to two minutes on two CPU cores. The networks: the ResNet-20 of a PyTorch checkpoint, packed
without training (low w4a8, high w8a8), resnet8_fast with its first weights, for requests of several
sizes, and the MLP 784-4096-4096-10 with random weights (low 4, high 8 bits, as two nibbles). ONNX
Runtime's own int8 is `quantize_static` of the float graph, per channel, calibrated on the same
images as ours. Its sums overflow in kernels for processors without VNNI; ours of the form "integer"
do not, and those of "vnni", in a row of their own, do. Accuracies are of the test set.
"""

import dataclasses
import json
import tempfile
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from dual_precision import data
from dual_precision.data.arrays import Images
from dual_precision.deploy import load_packed
from dual_precision.deploy.dispatch import compute_in_calling_thread
from dual_precision.deploy.export.extras import needed
from dual_precision.deploy.export.onnx.file import EngineNetwork, save_onnx
from dual_precision.deploy.export.onnx.floats import save_float_onnx
from dual_precision.deploy.export.onnx.layers import INTEGER, VNNI
from dual_precision.deploy.file.writer import check_replaceable
from experiments.benchmark import nibble_speed
from experiments.benchmark.batch_sizes import SIZES, measure_batch_sizes, sizes_table
from experiments.benchmark.comparison import (
    Bar,
    judge_bars,
    median_and_range,
    verdict_of,
)
from experiments.benchmark.engine_networks import pack_checkpoint, pack_fresh
from experiments.benchmark.machine import describe_machine
from experiments.benchmark.timing import time_rounds, timed_request
from experiments.figures.tables import markdown_table
from experiments.workdir import write_whole

CALIBRATE = 256
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
FLOAT, STATIC, HIGH, LOW = "ORT float32", "ORT static int8", "ORT, our high", "ORT, our low"
HIGH_VNNI = "ORT, our high, vnni"
JAX_HIGH = "JAX, our high"
FRESH = "resnet8_fast"
MODES = {FLOAT: "float", STATIC: "float", HIGH: "high", LOW: "low", HIGH_VNNI: "high"}
BARS = (
    Bar("ResNet-20, batch 1: our high against float32", HIGH, FLOAT, 1.8, 2.2),
    Bar("ResNet-20, batch 1: our high against ORT's static int8", HIGH, STATIC, 0.952, 1.0),
    Bar("ResNet-20, batch 1, vnni: our high against float32", HIGH_VNNI, FLOAT, 1.8, 2.2),
)
_COLUMNS = (
    ("program", "program", "{}"),
    ("milliseconds", "ms, batch 1", "{}"),
    ("accuracy", "test %", "{:.2f}"),
    ("bytes", "file bytes", "{:,}"),
)


def measure_engines(
    *, checkpoint: str, repeats: int, steps: int | None = None, out: str | None = None
) -> None:
    """The sub-command `engines`; its arguments are the flags.

    Raises:
      ValueError: onnx or onnxruntime is missing; no checkpoint of such a network.
    """
    compute_in_calling_thread()  # as the other engine does
    if out:
        check_replaceable(out)
    steps = steps or 100
    engine = needed("onnxruntime", "this measurement")
    about = {**describe_machine(), "onnxruntime": engine.__version__, "requests a round": steps}
    print(", ".join(f"{key} {value}" for key, value in about.items()), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        made = make_networks(Path(checkpoint), Path(folder))
        rows, times = measure_resnet(made, repeats, steps)
        lines = [*judge_bars(BARS, times), *accuracy_lines(rows)]
        print(f"\n{markdown_table(rows, _COLUMNS, left=['program'])}\n")
        print(*(f"- {line}" for line in lines), sep="\n", flush=True)
        own = {name: made.engines[name] for name in (FLOAT, STATIC)}
        networks = {
            "ResNet-20": (made.packed, own),
            FRESH: make_fresh(Path(folder), made.test.images),
        }
        sizes = {
            name: measure_sizes(name, *network, made.test.images, (repeats, steps))
            for name, network in networks.items()
        }
        nibbles = nibble_speed.measure_nibbles(Path(folder), repeats, steps)
    if out:
        found = {"about": about, "milliseconds": times, "rows": rows, "batch sizes": sizes}
        found |= {"bars": lines, **nibbles}
        write_whole(Path(out), json.dumps(found, indent=2) + "\n")


def measure_sizes(
    name: str,
    packed: Path,
    own: Mapping[str, EngineNetwork],
    images: np.ndarray,
    rounds: tuple[int, int],
) -> dict[str, Any]:
    """Prints, and gives, what `measure_batch_sizes` found."""
    rows, lines = measure_batch_sizes(packed, own, images, rounds, name)
    print(f"\n{name}\n\n{sizes_table(rows, SIZES, 'program')}\n")
    print(*(f"- {line}" for line in lines), sep="\n", flush=True)
    return {"rows": rows, "bars": lines}


def make_fresh(folder: Path, images: np.ndarray) -> tuple[Path, dict[str, EngineNetwork]]:
    """resnet8_fast with its first weights, packed and as two programs of ONNX Runtime."""
    packed, images = folder / "fresh", images[:CALIBRATE]
    model, variables = pack_fresh(FRESH, packed, images, 10)
    files = folder / "fresh.onnx", folder / "fresh8.onnx"
    save_float_onnx(files[0], model, variables, jax.ShapeDtypeStruct(images.shape[1:], np.uint8))
    quantize_static(*files, images)
    return packed, dict(zip((FLOAT, STATIC), map(EngineNetwork, files), strict=True))


@dataclasses.dataclass(frozen=True)
class Networks:
    """One ResNet-20: packed, and as programs of ONNX Runtime by name."""

    packed: Path
    files: Mapping[str, Path]
    engines: Mapping[str, EngineNetwork]
    test: Images


def make_networks(checkpoint: Path, folder: Path) -> Networks:
    """Of a checkpoint, files in the folder."""
    loaded = data.load("cifar10")
    images = loaded.train.images[:CALIBRATE]
    packed = folder / "net"
    model, variables = pack_checkpoint(checkpoint, packed, images, MEAN, STD)
    files = {name: folder / f"{index}.onnx" for index, name in enumerate(MODES)}
    example = jax.ShapeDtypeStruct(loaded.image_shape, np.uint8)
    save_float_onnx(files[FLOAT], model, variables, example)
    quantize_static(files[FLOAT], files[STATIC], images)
    save_onnx(files[HIGH], packed, ["high"], INTEGER, images)
    save_onnx(files[LOW], packed, ["low"], INTEGER, images)
    save_onnx(files[HIGH_VNNI], packed, ["high"], VNNI, images)
    return Networks(packed, files, {n: EngineNetwork(files[n]) for n in files}, loaded.test)


def measure_resnet(
    made: Networks, repeats: int, steps: int
) -> tuple[list[dict[str, Any]], Mapping[str, list[float]]]:
    """Rows of programs, and the milliseconds of a request of one image in each round."""
    one = made.test.images[:1]
    requests = {n: partial(engine.predict, one, MODES[n]) for n, engine in made.engines.items()}
    times = time_rounds({k: partial(timed_request, r, steps) for k, r in requests.items()}, repeats)
    rows = [
        {
            "program": name,
            "milliseconds": median_and_range(times[name], 3),
            "accuracy": accuracy_of(partial(engine.predict, precision=MODES[name]), made.test),
            "bytes": made.files[name].stat().st_size,
        }
        for name, engine in made.engines.items()
    ]
    network, own = load_packed(made.packed)
    ours = jax.jit(partial(network.apply, own, precision="high"))
    rows.append({"program": JAX_HIGH, "accuracy": accuracy_of(ours, made.test)})
    return rows, times


def accuracy_lines(rows: list[dict[str, Any]]) -> list[str]:
    """Accuracies against JAX and against the engine's own int8."""
    found = {row["program"]: row["accuracy"] for row in rows if "accuracy" in row}
    to_jax, to_static = (found[HIGH] - found[name] for name in (JAX_HIGH, STATIC))
    return [
        f"our high in ORT against JAX: {to_jax:+.2f} points (goal within 0.1)"
        f" {verdict_of(abs(to_jax) <= 0.1)}",
        f"our high against ORT's static int8: {to_static:+.2f} points (bar -0.1, goal 0)"
        f" {verdict_of(to_static >= -0.1, to_static >= 0)}",
    ]


def accuracy_of(predict: Callable[[np.ndarray], Any], split: Any, batch: int = 500) -> float:
    """Percent of a split."""
    right = 0
    for start in range(0, len(split.images), batch):
        part = slice(start, start + batch)
        right += int(np.sum(np.argmax(predict(split.images[part]), 1) == split.labels[part]))
    return 100 * right / len(split.images)


def quantize_static(source: Path, out: Path, images: np.ndarray) -> None:
    """ONNX Runtime's own static int8 of a float graph: Q/DQ nodes, weights per channel."""
    needed("onnxruntime", "this measurement")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on what its tools are to become
        from onnxruntime import quantization

        class Images(quantization.CalibrationDataReader):  # type: ignore[misc, unused-ignore]
            def __init__(self) -> None:
                self.left = [images[i : i + 32] for i in range(0, len(images), 32)]

            def get_next(self) -> dict[str, np.ndarray] | None:
                return {"images": self.left.pop()} if self.left else None

        quantization.quantize_static(
            str(source), str(out), Images(),
            quant_format=quantization.QuantFormat.QDQ, per_channel=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
        )  # fmt: skip
