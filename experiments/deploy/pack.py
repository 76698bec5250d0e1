"""Packs the last checkpoint of a run into one file for all its modes; seconds.

    python -m experiments.deploy pack --workdir=runs/... --out=net.safetensors [--widths=FILE]

The file holds the config of the run and its measured accuracies too; every mode gives the same
logits as the checkpoint, bit for bit.
"""

import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from dual_precision.data.catalog import Spec, lookup
from dual_precision.deploy import inspect_packed, save_packed
from dual_precision.deploy.file.writer import check_replaceable
from dual_precision.deploy.layer_widths import LayerTexts, with_layer_widths
from dual_precision.loading import load, trained_modes
from dual_precision.structure import Example
from dual_precision.tasks.classification import Classification
from experiments.deploy.report import packed_report
from experiments.recipes.flags import read_widths_file
from experiments.workdir import CONFIG, RESULTS, read_description, read_rows


def pack_command(*, workdir: str, out: str, widths: str | None = None) -> None:
    """The sub-command `pack`: packs, and prints the report; its arguments are the flags."""
    path = Path(out)
    check_replaceable(path)
    pack_run(Path(workdir), path, read_widths_file(widths) if widths else {})
    print(f"{path}: {path.stat().st_size:,} bytes\n\n{packed_report(inspect_packed(path))}")


def pack_run(workdir: Path, out: Path, widths: LayerTexts = MappingProxyType({})) -> None:
    """Packs the last checkpoint of a run into `out`.

    Args:
      widths: of layers that have others in the file; what was measured does not hold then.

    Raises:
      ValueError: `workdir` is not the folder of a run, has no such layers, or trained no mode
        that a packed file holds.
    """
    description = read_description(workdir)
    example = Classification(spec_of_run(workdir, description).image_shape).example
    save_run(out, workdir, description, example, widths)


def spec_of_run(workdir: Path, description: Mapping[str, Any]) -> Spec:
    """The data set of a run with this description.

    Raises:
      ValueError: it names none that is known.
    """
    dataset = description["experiment"].get("dataset")
    if not isinstance(dataset, str):
        raise ValueError(f"{workdir / CONFIG} names the data set {dataset!r}: expected a name")
    return lookup(dataset)


def save_run(
    out: Path,
    workdir: Path,
    description: Mapping[str, Any],
    example: Example,
    widths: LayerTexts = MappingProxyType({}),
    module: str = "experiments.deploy",
) -> None:
    """As `pack_run`, of a run with this description and such an example; `module` has the command
    that packs."""
    model, variables = load(workdir)
    trained, held = [*trained_modes(description, model)], [*model.modes.default]
    if not {*trained} & {*held}:
        raise ValueError(
            f"{workdir} trained {trained}, and a packed file holds {held} alone: expected one"
            " of them; train another run, as --mode=two_phase does (images: from this one, with"
            f" --init={workdir}), and pack that"
        )
    metadata = {**run_metadata(workdir, description, module), "trained": trained}
    network = description["network"]
    if widths:
        model, variables = with_layer_widths(model, variables, example, widths)
        network, metadata["results"] = {**network, **model.modes.to_json()}, []
    save_packed(out, model, variables, network, example, metadata)


def run_metadata(
    workdir: Path, description: Mapping[str, Any], module: str = "experiments.deploy"
) -> dict[str, Any]:
    """What a packed file says of the run in a folder, and of the command of a module, this one,
    that packs it."""
    return {
        "command": recorded_command(sys.argv[1:], module),
        "run": {
            "preset": description["preset"],
            "experiment": recorded_experiment(description["experiment"]),
        },
        # An unfinished run has none yet.
        "results": read_rows(workdir) if (workdir / RESULTS).exists() else [],
    }


def recorded_experiment(experiment: Mapping[str, Any]) -> dict[str, Any]:
    """The config of a run as a file may hold it: likewise of the paths in it the last part alone.

    >>> recorded_experiment({"dataset": "/home/me/novel.txt", "init": "", "low": "w2a2"})
    {'dataset': 'novel.txt', 'init': '', 'low': 'w2a2'}
    """
    paths = {
        key: Path(experiment[key]).name or experiment[key]
        for key in ("init", "dataset")
        if isinstance(experiment.get(key), str)
    }
    return {**experiment, **paths}


def recorded_command(words: Sequence[str], module: str = "experiments.deploy") -> str:
    """The command as a file may hold it, of the words behind the name of the program: of every path
    the last part alone, as the folders before it are not for others to read.

    >>> recorded_command(["pack", "--workdir=/home/me/runs/one/", "--out=net.safetensors"])
    'python -m experiments.deploy pack --workdir=one --out=net.safetensors'
    """
    short = []
    for word in words:
        flag, equals, value = word.rpartition("=") if word.startswith("-") else ("", "", word)
        short.append(f"{flag}{equals}{Path(value).name or value}")
    return shlex.join(["python", "-m", module, *short])
