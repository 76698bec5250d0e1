"""Accuracy of a network that was trained in float, against the planes of its weights that are read.

- `python -m experiments.methods.planes --workdir=runs/mnist-float`: no training and no
  calibration; two minutes on two busy CPU cores. MNIST, test: float 98.75 %, w1a8 79.1 %, w2a8
  98.41 %, w3a8 98.67 %, w4a8 to w8a8 98.74 to 98.76 %

The run is one of `python -m experiments.cifar --mode=float` with --model=mlp or mlp_4096. The
numbers are left in its folder as planes.json, the curve as planes.png.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags
from flax import linen as nn
from tqdm import tqdm

from dual_precision import data
from dual_precision.costs import mode_cost
from dual_precision.data.arrays import Images
from dual_precision.deploy.file.writer import check_replaceable
from dual_precision.deploy.planes.bit_layers import to_bit_layers
from dual_precision.deploy.planes.packing import STORED, plane_bytes
from dual_precision.loading import load
from dual_precision.precision import FLOAT_NAME
from dual_precision.primitives.fixed_point import WIDTHS
from dual_precision.structure import structure_of
from dual_precision.tasks.classification import Classification
from dual_precision.training.metrics import evaluate
from experiments import cli
from experiments.figures.drawing import pyplot_for_files, save_figure
from experiments.figures.tables import Rows, markdown_table
from experiments.workdir import config_of_run, write_whole

_COLUMNS = (
    ("precision", "precision", "{}"),
    ("planes", "planes", "{}"),
    ("megabytes", "MB read", "{:.2f}"),
    ("validation", "validation %", "{:.2f}"),
    ("test", "test %", "{:.2f}"),
    ("difference", "difference to float", "{:+.2f}"),
)


def activation_widths(names: Sequence[str]) -> list[int]:
    """["8", "16"] -> [8, 16], of the widths that fixed-point activations have, each once."""
    known = {str(bits): bits for bits in WIDTHS}
    if not names or not set(names) <= set(known) or len(set(names)) < len(names):
        raise ValueError(
            f"activations {','.join(names)!r}: expected some of {', '.join(known)}, each once"
        )
    return [known[name] for name in names]


def measure_planes(
    model: nn.Module,
    variables: Mapping[str, Any],
    splits: Mapping[str, Images],
    activations: Sequence[int],
) -> list[dict[str, Any]]:
    """A row for float, then one for every number of planes with each width of activations.

    Args:
      model: an MLP; variables: as `load` gives.
      splits: "validation", and "test" if it is to be read; the difference is that of the last.
    """
    task = Classification(splits["validation"].images.shape[1:])
    layered, packed = to_bit_layers(model, variables, task.example)

    def row(precision: str, size: int, **about: int) -> dict[str, Any]:
        is_float = precision == FLOAT_NAME
        network, tree = (model, variables) if is_float else (layered, packed)
        accuracy = {
            split: 100 * evaluate(network, tree, part, task=task, precision=precision)["accuracy"]
            for split, part in splits.items()
        }
        return {"precision": precision, **about, "megabytes": size / 1e6, **accuracy}

    structure = structure_of(model, task.example)
    rows = [row(FLOAT_NAME, mode_cost(structure, FLOAT_NAME).weight_bytes)]
    wanted = [(n, bits) for bits in activations for n in range(1, STORED + 1)]
    for n, bits in tqdm(wanted, unit=" precisions", disable=None):
        size = plane_bytes(packed["params"], n)
        rows.append(row(f"w{n}a{bits}", size, planes=n, activations=bits))
        last = list(splits)[-1]
        rows[-1]["difference"] = rows[-1][last] - rows[0][last]
    return rows


def curves_of(rows: Rows, split: str) -> dict[str, dict[int, float]]:
    """What `draw_planes` takes: a curve for each width of activations, narrowest first."""
    widths = sorted({row["activations"] for row in rows if "activations" in row})
    return {
        f"{bits}-bit activations": {
            row["planes"]: row[split] for row in rows if row.get("activations") == bits
        }
        for bits in widths
    }


def plot_planes(rows: Rows, title: str, path: Path) -> None:
    """Error against planes, as PNG; see `draw_planes`."""
    pyplot_for_files()  # before a figure is made
    from experiments.figures.bit_planes import draw_planes

    split = "test" if "test" in rows[0] else "validation"
    whole = (FLOAT_NAME, rows[0][split])
    save_figure(draw_planes(curves_of(rows, split), whole, title, split), path)


def main(
    *, workdir: str, activations: Sequence[str], test: bool, data_dir: str | None = None
) -> None:
    """The command; its arguments are the flags.

    Raises:
      ValueError: `workdir` is not the folder of a run of --mode=float; other activations than
        8, 16 and 32 bits.
    """
    clock, folder, widths = cli.Stopwatch(), Path(workdir), activation_widths(activations)
    config = config_of_run(folder)
    if config.mode != FLOAT_NAME:
        raise ValueError(f"a run of --mode={config.mode}: expected one of --mode=float")
    for name in ("planes.png", "planes.json"):
        check_replaceable(folder / name)
    model, variables = load(folder)
    dataset = data.load(config.dataset, data_dir=data_dir)
    splits = {"validation": dataset.validation}
    if test:
        splits["test"] = dataset.test
    rows = measure_planes(model, variables, splits, widths)
    picture = folder / "planes.png"
    plot_planes(rows, f"{config.model} on {config.dataset}, trained in float", picture)
    run = {key: config.to_json()[key] for key in ("dataset", "model", "passes", "seed")}
    content = {"run": run, "split_of_difference": list(splits)[-1], "rows": rows}
    write_whole(folder / "planes.json", json.dumps(content, indent=1) + "\n")
    print(f"{markdown_table(rows, _COLUMNS)}\n\nplot: {picture}\n{clock} in all")


if __name__ == "__main__":
    flags.DEFINE_string("workdir", None, "folder of a run of --mode=float")
    flags.DEFINE_list("activations", ["8", "16"], "bits of fixed-point activations: 8, 16, 32")
    flags.DEFINE_bool("test", True, "read the test set, once")
    flags.DEFINE_string("data_dir", None, "folder of prepared TFDS data sets")
    cli.run(main, trains=False)
