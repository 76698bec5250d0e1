"""Packs a trained network into one file for all its modes, and says what such a file holds.

- `python -m experiments.deploy pack --workdir=runs/... --out=net.safetensors`: the last checkpoint
  of a run, with its config and its measured accuracies; seconds
- `python -m experiments.deploy report net.safetensors`: what each mode reads and costs
"""

import json
import math
import shlex
import sys
from pathlib import Path
from typing import Any

from absl import flags

from dual_precision.data.catalog import lookup
from dual_precision.deploy import PackedInfo, inspect_packed, save_packed
from dual_precision.describe import mode_cost
from dual_precision.loading import load
from experiments import cli
from experiments.cifar import RESULTS
from experiments.report import Rows, table
from experiments.workdir import CONFIG

USAGE = "pack --workdir=FOLDER --out=FILE, or report FILE"

_COLUMNS = (
    ("mode", "mode", "{}"),
    ("bytes", "bytes read", "{:,}"),
    ("weight_bits", "weight bits", "{:,}"),
    ("bit_operations", "BitOps/image", "{:.3g}"),
    ("validation", "validation %", "{:.2f}"),
    ("test", "test %", "{:.2f}"),
)


def pack(workdir: Path, out: Path) -> None:
    """Packs the last checkpoint of a run into `out`.

    Raises:
      ValueError: `workdir` is not the folder of a run.
    """
    if not (workdir / CONFIG).exists():
        raise ValueError(f"{workdir} has no {CONFIG}: expected the folder of a run")
    config = json.loads((workdir / CONFIG).read_text())
    model, variables = load(workdir)
    results = workdir / RESULTS
    metadata = {
        "command": shlex.join(["python", "-m", "experiments.deploy", *sys.argv[1:]]),
        "run": {key: config[key] for key in ("preset", "experiment")},
        # An unfinished run has none yet.
        "results": json.loads(results.read_text())["rows"] if results.exists() else [],
    }
    shape = lookup(config["experiment"]["dataset"]).image_shape
    save_packed(out, model, variables, config["network"], shape, metadata)


def report(info: PackedInfo) -> str:
    """Two Markdown tables: what each mode costs, and the widths of each layer."""
    modes = [_mode_row(info, mode) for mode in info.bytes_read]
    layers = [
        {
            "layer": "/".join(path),
            "kernel": "x".join(map(str, layer.kernel)),
            **{mode: str(layer.table[mode]) for mode in info.bytes_read},
        }
        for path, layer in info.layers.items()
    ]
    columns = [(key, key, "{}") for key in layers[0]]
    return f"{table(modes, _COLUMNS)}\n\n{table(layers, columns)}"


def _mode_row(info: PackedInfo, mode: str) -> dict[str, Any]:
    results: Rows = info.metadata.get("results", [])
    measured = next((row for row in results if row["mode"] == mode), {})
    return {
        "mode": mode,
        "bytes": info.bytes_read[mode],
        "weight_bits": sum(
            math.prod(layer.kernel) * (layer.table[mode].weights or 32)
            for layer in info.layers.values()
        ),
        "bit_operations": mode_cost(info.layers, mode).bit_operations,
        **{split: measured[split] for split in ("validation", "test") if split in measured},
    }


def main(*words: str) -> None:
    match words:
        case ["pack"] if cli.FLAGS.workdir and cli.FLAGS.out:
            out = Path(cli.FLAGS.out)
            pack(Path(cli.FLAGS.workdir), out)
            print(f"{out}: {out.stat().st_size:,} bytes\n\n{report(inspect_packed(out))}")
        case ["report", name]:
            info = inspect_packed(name)
            size = "x".join(map(str, info.image_shape))
            print(f"{name}: {info.network['name']}, images {size}\n\n{report(info)}")
        case _:
            raise ValueError(f"command {' '.join(words)!r}: expected {USAGE}")


if __name__ == "__main__":
    flags.DEFINE_string("workdir", None, "pack: folder of a run")
    flags.DEFINE_string("out", None, "pack: the file to write")
    flags.DEFINE_bool("traceback", False, "on an error, show where it came from")
    cli.run(main, trains=False, words=True)
