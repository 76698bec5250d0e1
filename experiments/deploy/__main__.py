"""Packs a trained network into one file for all its modes, and says what such a file holds.

- `python -m experiments.deploy pack --workdir=runs/... --out=net.safetensors`: the last checkpoint
  of a run, with its config and its measured accuracies; seconds
- `python -m experiments.deploy report net.safetensors`: what each mode reads and costs
- `python -m experiments.deploy cascade net.safetensors`: low answers what it is sure of, high the
  rest; calibrated on validation data, half a minute
"""

import dataclasses
import json
import math
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags

from dual_precision.costs import layer_cost, layer_energy, mode_cost, mode_energy
from dual_precision.data.catalog import lookup
from dual_precision.deploy import Cascade, PackedInfo, amend_metadata, inspect_packed, save_packed
from dual_precision.deploy.cascade.rule import Point
from dual_precision.deploy.predictor import AUTO, CASCADE
from dual_precision.loading import load
from dual_precision.structure import Layer
from experiments import cli
from experiments.cifar import RESULTS
from experiments.deploy import cascade
from experiments.figures.training import Rows, table
from experiments.workdir import CONFIG, write_whole

USAGE = "pack --workdir=FOLDER --out=FILE, report FILE, or cascade FILE"
_CASCADE_FLAGS = ("dataset", "accuracy", "cost", "mirror", "blend")
_FLAGS = {
    "pack": ("workdir", "out"),
    "report": (),
    "cascade": ("workdir", *_CASCADE_FLAGS, "test", "write", "data_dir", "archive"),
}

_COLUMNS = (
    ("mode", "mode", "{}"),
    ("bytes", "bytes read", "{:,}"),
    ("weight_bits", "weight bits", "{:,}"),
    ("bit_operations", "BitOps/image", "{:.3g}"),
    ("arithmetic", "arithmetic nJ", "{:,.0f}"),
    ("weights", "weights nJ", "{:,.0f}"),
    ("activations", "activations nJ", "{:,.0f}"),
    ("energy", "energy nJ/image", "{:,.0f}"),
    ("validation", "validation %", "{:.2f}"),
    ("test", "test %", "{:.2f}"),
)
_LAYER_COLUMNS = (
    ("widths", "", "{}"),
    ("bytes", "bytes", "{:,}"),
    ("bit_operations", "BitOps", "{:.3g}"),
    ("energy", "nJ", "{:,.0f}"),
)
_ENERGY = (
    "Energy is a model, not a measurement: figures of Horowitz (ISSCC 2014, 45 nm), one image"
    " alone, every\nweight read once from DRAM; in a batch the images share that. See"
    " dual_precision/energy.py."
)


def command_line(words: Sequence[str]) -> str:
    """The command as a file may hold it, of the words behind the program's name: of every path the
    last part alone, as the folders before it are nobody else's business.

    >>> command_line(["pack", "--workdir=/home/me/runs/one/", "--out=net.safetensors"])
    'python -m experiments.deploy pack --workdir=one --out=net.safetensors'
    """
    short = []
    for word in words:
        flag, equals, value = word.rpartition("=") if word.startswith("-") else ("", "", word)
        short.append(f"{flag}{equals}{Path(value).name or value}")
    return shlex.join(["python", "-m", "experiments.deploy", *short])


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
        "command": command_line(sys.argv[1:]),
        "run": {key: config[key] for key in ("preset", "experiment")},
        # An unfinished run has none yet.
        "results": json.loads(results.read_text())["rows"] if results.exists() else [],
    }
    shape = lookup(config["experiment"]["dataset"]).image_shape
    save_packed(out, model, variables, config["network"], shape, metadata)


def report(info: PackedInfo) -> str:
    """Two Markdown tables, what each mode and what each layer costs, and the energy model."""
    modes = [_mode_row(info, mode) for mode in info.bytes_read]
    if CASCADE in info.metadata:
        expected = Cascade.from_json(info.metadata[CASCADE]).expected
        if expected is not None:
            cost = {"bit_operations": expected.cost, "validation": expected.accuracy}
            modes.append({"mode": AUTO, **cost})
    layers = [_layer_row(info.layers, path, [*info.bytes_read]) for path in info.layers]
    columns = [
        ("layer", "layer", "{}"),
        ("kernel", "kernel", "{}"),
        ("macs", "MACs", "{:,}"),
        *(
            (f"{key} {mode}", f"{title} {mode}".strip(), form)
            for key, title, form in _LAYER_COLUMNS
            for mode in info.bytes_read
        ),
    ]
    return f"{table(modes, _COLUMNS)}\n\n{table(layers, columns)}\n\n{_ENERGY}"


def _layer_row(
    layers: Mapping[tuple[str, ...], Layer], path: tuple[str, ...], modes: Sequence[str]
) -> dict[str, Any]:
    layer = layers[path]
    row: dict[str, Any] = {
        "layer": "/".join(path),
        "kernel": "x".join(map(str, layer.kernel)),
        "macs": layer.macs,
    }
    for mode in modes:
        cost = layer_cost(layers, path, mode)
        row |= {
            f"widths {mode}": str(layer.table[mode]),
            f"bytes {mode}": cost.weight_bytes,
            f"bit_operations {mode}": cost.bit_operations,
            f"energy {mode}": layer_energy(layers, path, mode).total,
        }
    return row


def _mode_row(info: PackedInfo, mode: str) -> dict[str, Any]:
    results: Rows = info.metadata.get("results", [])
    measured = next((row for row in results if row["mode"] == mode), {})
    energy = mode_energy(info.layers, mode)
    return {
        "mode": mode,
        "bytes": info.bytes_read[mode],
        "weight_bits": sum(
            math.prod(layer.kernel) * (layer.table[mode].weights or 32)
            for layer in info.layers.values()
        ),
        "bit_operations": mode_cost(info.layers, mode).bit_operations,
        **dataclasses.asdict(energy),
        "energy": energy.total,
        **{split: measured[split] for split in ("validation", "test") if split in measured},
    }


def calibrate(path: Path) -> None:
    """Calibrates the file's cascade; leaves tables, a plot and JSON in a folder."""
    values = {name: getattr(cli.FLAGS, name) for name in _CASCADE_FLAGS}
    settings = cascade.read_settings(inspect_packed(path), **values)
    folder = Path(cli.FLAGS.workdir or Path("runs") / f"cascade-{path.stem}")
    options = {"data_dir": cli.FLAGS.data_dir, "archive": cli.FLAGS.archive}
    clock = cli.Stopwatch()
    found = cascade.run(path, settings, options, cli.FLAGS.test)
    folder.mkdir(parents=True, exist_ok=True)
    command = command_line(sys.argv[1:])
    lines = json.dumps({"command": command, **found}, indent=1)
    plot(found, folder / "cascade.png")
    write_whole(folder / "cascade.json", f"{lines}\n")
    print(f"\n{cascade.text(found)}\n\n{folder}/cascade.png, cascade.json; {clock} in all")
    if cli.FLAGS.write:
        amend_metadata(path, {CASCADE: found["cascade"], "cascade_command": command})
        print(f"{path}: calibration written; Predictor({str(path)!r}) has it")


def plot(found: Mapping[str, Any], path: Path) -> None:
    """Validation accuracy over BitOps and over the latency of a batch, as PNG.

    Args:
      found: what `experiments.deploy.cascade.run` gives.
    """
    import matplotlib

    matplotlib.use("Agg")
    from experiments.figures import deployed as deploy_figures

    names = {"curve": "auto", "curve_without_mirror": "auto without the mirrored look"}
    curves = {names[key]: [Point(**own) for own in found[key]] for key in names if key in found}
    low, *autos, high = found["sweep"]
    places = {row["way"]: (row["full"], row["accuracy"]) for row in autos}
    timed = deploy_figures.Timed(
        modes=[(row["full"], row["accuracy"]) for row in (low, high)],
        chosen=places.pop(cascade.CHOSEN),
        autos=[*places.values()],
        device=found["device"],
    )
    alone = {row["way"]: (row["relative"], row["accuracy"]) for row in (low, high)}
    chosen = Point(**found["cascade"]["expected"])
    figure = deploy_figures.draw_cascade(curves, alone, chosen, "validation", timed)
    deploy_figures.save(figure, path)


def _refuse_idle(command: str) -> None:
    """Raises ValueError where a flag is given that the command does not read."""
    others = {name for names in _FLAGS.values() for name in names} - {*_FLAGS[command]}
    if idle := [f for f in sorted(others) if f in cli.FLAGS and cli.FLAGS[f].present]:
        raise ValueError(f"{idle} has no effect on {command!r}: leave it out")


def main(*words: str) -> None:
    if words[:1] and words[0] in _FLAGS:
        _refuse_idle(words[0])
    match words:
        case ["pack"] if cli.FLAGS.workdir and cli.FLAGS.out:
            out = Path(cli.FLAGS.out)
            pack(Path(cli.FLAGS.workdir), out)
            print(f"{out}: {out.stat().st_size:,} bytes\n\n{report(inspect_packed(out))}")
        case ["report", name]:
            info = inspect_packed(name)
            size = "x".join(map(str, info.image_shape))
            print(f"{name}: {info.network['name']}, images {size}\n\n{report(info)}")
        case ["cascade", name]:
            calibrate(Path(name))
        case _:
            raise ValueError(f"command {' '.join(words)!r}: expected {USAGE}")


def define_flags() -> None:
    flags.DEFINE_string("workdir", None, "pack: folder of a run; cascade: of what it leaves")
    flags.DEFINE_string("out", None, "pack: the file to write")
    flags.DEFINE_string("dataset", None, "cascade: by default what the network was trained on")
    flags.DEFINE_float("accuracy", None, "cascade: wanted difference to high, points; -0.1")
    flags.DEFINE_float("cost", None, "cascade: wanted share of high's BitOps, instead of accuracy")
    flags.DEFINE_bool("mirror", None, "cascade: low looks at the mirrored image before high does")
    flags.DEFINE_float("blend", None, "cascade: weight of low's logits in high's answers")
    flags.DEFINE_bool("test", True, "cascade: read the test set, once, at the end")
    flags.DEFINE_bool("write", False, "cascade: write the calibration into the file")
    flags.DEFINE_string("data_dir", None, "cascade: folder of prepared TFDS data sets")
    flags.DEFINE_string("archive", None, "cascade: archive of the data set")
    flags.DEFINE_bool("traceback", False, "on an error, show where it came from")


if __name__ == "__main__":
    define_flags()
    cli.run(main, trains=False, words=True)
