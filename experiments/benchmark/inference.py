"""Inference: bit planes, switching modes under load, accuracy and speed of the cascade.

    python -m experiments.benchmark inference --repeats=7 --steps=30

Two to three minutes on two CPU cores. Every part prints its bars, and is in the JSON file (--out),
when it is done. Expected on a CPU with AVX512-VNNI: 1, 2 and 4 planes at least 14, 15 and 9 times
as fast as JAX float32, no wrong answer and no compilation under load, the cascade 0.3 points above
high at 30 % of its BitOps. PyTorch is measured too where it is installed.
"""

import json
from pathlib import Path
from typing import Any

from dual_precision.deploy.dispatch import compute_in_calling_thread
from dual_precision.deploy.file.writer import check_replaceable
from experiments.benchmark import plane_speed, switching
from experiments.benchmark.cascade_accuracy import cascade_lines, check_cascade
from experiments.benchmark.cascade_speed import cascade_times
from experiments.benchmark.machine import describe_machine
from experiments.workdir import write_whole


def measure_inference(
    *, network: str, requests: int, repeats: int, steps: int | None = None, out: str | None = None
) -> None:
    """The sub-command `inference`; its arguments are the flags. Errors as `check_cascade`."""
    compute_in_calling_thread()  # as a server does
    path = Path(network)
    if out:
        check_replaceable(out)
    settings = check_cascade(path)
    steps = steps or plane_speed.REQUESTS
    about = {
        **describe_machine(),
        **plane_speed.planes_conditions(),
        "repeats": repeats,
        "requests a round": steps,
    }
    print(", ".join(f"{key} {value}" for key, value in about.items()))
    print(f"\n{plane_speed.CACHES}", flush=True)
    found: dict[str, Any] = {"about": about, "milliseconds": {}, "cold": {}, "bars": []}

    def save() -> None:
        if out:
            write_whole(Path(out), json.dumps(found, indent=2) + "\n")

    def keep(lines: list[str]) -> None:
        print(*(f"- {line}" for line in lines), sep="\n", flush=True)
        found["bars"] += lines
        save()

    for group in plane_speed.GROUPS:
        warm, cold, lines = plane_speed.measure_group(group, repeats, steps)
        found["milliseconds"][group], found["cold"][group] = warm, cold
        keep(lines)
    keep(switching.measure_switching(path, requests))
    keep(cascade_lines(path, settings))
    found["cascade"], lines = cascade_times(path, settings.dataset, repeats)
    keep(lines)
