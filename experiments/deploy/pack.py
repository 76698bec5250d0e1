"""Packs the last checkpoint of a run into one file for all its modes; seconds.

    python -m experiments.deploy pack --workdir=runs/... --out=net.safetensors

The file holds the config of the run and its measured accuracies too; every mode gives the same
logits as the checkpoint, bit for bit.
"""

import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from dual_precision.data.catalog import lookup
from dual_precision.deploy import inspect_packed, save_packed
from dual_precision.loading import load
from experiments.deploy.report import packed_report
from experiments.workdir import RESULTS, read_description


def pack_command(*, workdir: str, out: str) -> None:
    """The sub-command `pack`: packs, and prints the report; its arguments are the flags."""
    path = Path(out)
    pack_run(Path(workdir), path)
    print(f"{path}: {path.stat().st_size:,} bytes\n\n{packed_report(inspect_packed(path))}")


def pack_run(workdir: Path, out: Path) -> None:
    """Packs the last checkpoint of a run into `out`.

    Raises:
      ValueError: `workdir` is not the folder of a run.
    """
    description = read_description(workdir)
    model, variables = load(workdir)
    results = workdir / RESULTS
    metadata = {
        "command": recorded_command(sys.argv[1:]),
        "run": {key: description[key] for key in ("preset", "experiment")},
        # An unfinished run has none yet.
        "results": json.loads(results.read_text())["rows"] if results.exists() else [],
    }
    shape = lookup(description["experiment"]["dataset"]).image_shape
    save_packed(out, model, variables, description["network"], shape, metadata)


def recorded_command(words: Sequence[str]) -> str:
    """The command as a file may hold it, of the words behind the name of the program: of every path
    the last part alone, as the folders before it are not for others to read.

    >>> recorded_command(["pack", "--workdir=/home/me/runs/one/", "--out=net.safetensors"])
    'python -m experiments.deploy pack --workdir=one --out=net.safetensors'
    """
    short = []
    for word in words:
        flag, equals, value = word.rpartition("=") if word.startswith("-") else ("", "", word)
        short.append(f"{flag}{equals}{Path(value).name or value}")
    return shlex.join(["python", "-m", "experiments.deploy", *short])
