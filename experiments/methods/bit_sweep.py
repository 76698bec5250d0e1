"""What finished runs of --mode=bsq found: bits, compression, accuracy; a table and a figure.

    for alpha in 0.1 0.2 0.3; do
    python -m experiments.cifar --mode=bsq --dataset=digits --init=runs/digits-float \\
        --set alpha=$alpha --workdir=runs/bsq-$alpha; done
    python -m experiments.methods.bit_sweep runs/bsq-*

Bits per weight are those of BSQ: of the layers whose bits are trained, the sign not counted, 0 in a
layer of zeros. Compression is of the network that the project stores: bytes of all weights in
float, over bytes of all weights at the widths that were found, with the sign, the steps, and the
layers that keep 8 bits.
"""

from pathlib import Path
from typing import Any

from absl import flags

from dual_precision import data
from dual_precision.costs import mode_cost
from dual_precision.models import build_from
from dual_precision.precision import FLOAT_NAME, parse
from dual_precision.structure import structure_of
from dual_precision.tasks.classification import Classification
from dual_precision.training.methods.trained_bits import mean_bits
from experiments import cli
from experiments.figures.drawing import pyplot_for_files, save_figure
from experiments.figures.tables import markdown_table
from experiments.recipes.bsq import BITS_FILE, Bsq
from experiments.recipes.flags import read_widths_file
from experiments.workdir import config_of_run, read_description, read_json, read_rows

_COLUMNS = (
    ("alpha", "alpha", "{:g}"),
    ("seed", "seed", "{}"),
    ("bits_per_weight", "bits/weight", "{:.2f}"),
    ("compression", "compression", "{:.2f}"),
    ("validation", "validation %", "{:.2f}"),
    ("test", "test %", "{:.2f}"),
)


def _bits(entry: dict[str, str]) -> int:
    return parse(entry["high"]).weight_bits


def row_of(folder: Path, example: Any) -> tuple[dict[str, Any], dict[str, int]]:
    """The row of a run, and layer -> bits.

    Raises:
      ValueError: it is no finished run of --mode=bsq.
    """
    config = config_of_run(folder)
    if not isinstance(config.recipe, Bsq):
        raise ValueError(f"{folder} is a run of --mode={config.mode}: expected one of bsq")
    (result,) = read_rows(folder)
    widths = read_widths_file(str(folder / "widths.json"))
    found = read_json(folder / BITS_FILE)
    bits = {tuple(name.split("/")): count for name, count in found.items()}
    network = read_description(folder)["network"]
    own: dict[str, Any] = {"modes": {"low": "w2a2", "high": "w8a8"}, "layers": widths, "stored": 8}
    structure = structure_of(build_from(network | own), example)
    sizes = [mode_cost(structure, mode).weight_bytes for mode in (FLOAT_NAME, "high")]
    row: dict[str, Any] = {
        "alpha": config.recipe.alpha,
        "seed": config.seed,
        "bits_per_weight": mean_bits(bits, structure.layers),
        "compression": sizes[0] / sizes[1],
        **{split: result[split] for split in ("validation", "test") if split in result},
    }
    return row, {name: _bits(entry) for name, entry in widths.items()}


def main(*folders: str, picture: str, data_dir: str | None = None) -> None:
    """The command; its words are the folders of finished runs.

    Raises:
      ValueError: none are given, or not of bsq; runs of other data or networks.
    """
    if not folders:
        raise ValueError("no workdirs given: expected the folders of finished runs of --mode=bsq")
    configs = [config_of_run(Path(folder)) for folder in folders]
    if len(names := {(config.dataset, config.model) for config in configs}) != 1:
        raise ValueError(f"runs of {sorted(names)}: expected one data set and one network")
    pyplot_for_files()  # before a figure is made
    from experiments.figures.bits import draw_sweep

    example = Classification.of(data.load(configs[0].dataset, data_dir=data_dir)).example
    found = [row_of(Path(folder), example) for folder in folders]
    rows = sorted((row for row, _ in found), key=lambda row: (row["alpha"], row["seed"]))
    maps: dict[str, dict[str, int]] = {}
    for folder, (row, bits) in zip(folders, found, strict=True):
        name = f"alpha {row['alpha']:g}, seed {row['seed']}"
        maps[f"{name}, {Path(folder).name}" if name in maps else name] = bits
    split = "test" if all("test" in row for row in rows) else "validation"
    save_figure(draw_sweep(rows, maps, split), Path(picture))
    print(f"{markdown_table(rows, _COLUMNS)}\n\nplot: {picture}")


if __name__ == "__main__":
    flags.DEFINE_string("picture", "bit_sweep.png", "where the figure goes")
    flags.DEFINE_string("data_dir", None, "folder of prepared TFDS data sets")
    cli.run(main, trains=False)
