"""The time of a step of two processes with a core each, beside one process with both cores.

    python -m experiments.benchmark pair --model=resnet20 --batch_size=128

Both modes are trained, each on half of the batch; the batch is the same for one process and for
two, which sum over loopback. Images are random numbers. Three minutes on two CPU cores.
"""

import json
import os
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from dual_precision.deploy.file.writer import check_replaceable
from dual_precision.models import IMAGE_MODELS
from experiments.benchmark.scaling.layout_child import Case
from experiments.benchmark.scaling.layouts import Layout, Running, running
from experiments.benchmark.timing import time_rounds
from experiments.figures.tables import markdown_table
from experiments.workdir import write_whole

STEPS = 5
_COLUMNS = (
    ("layout", "layout", "{}"),
    ("milliseconds", "ms of a step", "{:.1f}"),
    ("ratio", "beside one process", "{:.2f}"),
)


def layouts_of(cores: list[int]) -> tuple[Layout, Layout]:
    """One process with the first two of these cores, and two with one each.

    Raises:
      ValueError: there are not so many.
    """
    if len(cores) < 2:
        raise ValueError(f"this process may use {len(cores)} core: expected two or more")
    one, two = map(str, cores[:2])
    return (
        Layout("1 process x 2 cores", 1, 1, joined=False, cores=(f"{one},{two}",)),
        Layout("2 processes x 1 core", 2, 1, cores=(one, two)),
    )


def measure_pair(
    *,
    repeats: int = 7,
    steps: int | None = None,
    model: str = "resnet20",
    batch_size: int = 128,
    out: str | None = None,
) -> None:
    """The sub-command `pair`; its arguments are the flags.

    Raises:
      ValueError: an unknown model, a single core.
    """
    if model not in IMAGE_MODELS:
        raise ValueError(f"model {model!r}: expected one of {sorted(IMAGE_MODELS)}")
    if out:
        check_replaceable(out)
    one, two = layouts_of(sorted(os.sched_getaffinity(0)))
    with TemporaryDirectory() as folder:
        case = Case(model, random_images(Path(folder)), "both", batch_size)
        with running(one, Path(folder)) as first, running(two, Path(folder)) as second:
            started = {one.name: first, two.name: second}
            for own in started.values():  # compiles
                own.ask(case, 2)
            programs = {
                k: partial(_median, own, case, steps or STEPS) for k, own in started.items()
            }
            times = time_rounds(programs, repeats)
    ratios = np.divide(times[two.name], times[one.name])
    rows = [
        {"layout": one.name, "milliseconds": np.median(times[one.name])},
        {"layout": two.name, "milliseconds": np.median(times[two.name])},
    ]
    rows[1]["ratio"] = np.median(ratios)
    print(markdown_table(rows, _COLUMNS, left=["layout"]))
    print(f"\nratios of the rounds: {' '.join(f'{own:.2f}' for own in ratios)}")
    if out:
        write_whole(Path(out), json.dumps(times) + "\n")


def _median(started: Running, case: Case, steps: int) -> float:
    return float(np.median(started.ask(case, steps, anew=False)["milliseconds"]))


def random_images(folder: Path) -> str:
    """A file of images of the size of CIFAR-10, as `Case` names it."""
    generator, path = np.random.default_rng(0), folder / "random.npz"
    images = generator.integers(0, 256, (1024, 32, 32, 3)).astype(np.uint8)
    np.savez(path, images=images, labels=generator.integers(0, 10, 1024).astype(np.int32))
    return str(path)
