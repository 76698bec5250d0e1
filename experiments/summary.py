"""Mean and spread of several finished runs, one row per mode.

for seed in 0 1 2; do python -m experiments.cifar --mode=two_phase --seed=$seed; done
python -m experiments.summary runs/cifar10-two_phase-joint-w2a2-w8a8-quick-seed*
"""

import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

from experiments.cifar import RESULTS
from experiments.workdir import CONFIG


def read_runs(workdirs: Sequence[Path]) -> list[list[dict]]:
    """The rows of each run's results.

    Raises:
      ValueError: a run is not finished, or the runs differ in more than their seed.
    """
    runs, configs = [], set()
    for workdir in workdirs:
        if not (workdir / RESULTS).exists():
            raise ValueError(f"{workdir} has no {RESULTS}: expected a finished run")
        runs.append(json.loads((workdir / RESULTS).read_text())["rows"])
        experiment = json.loads((workdir / CONFIG).read_text())["experiment"]
        configs.add(json.dumps({**experiment, "seed": None}))
    if len(configs) != 1:
        raise ValueError(
            f"{len(configs)} configs in {len(runs)} runs: expected all but the seed alike"
        )
    return runs


def summary(runs: Sequence[list[dict]]) -> str:
    """A Markdown table: mean and sample standard deviation over the runs."""
    lines = ["| mode | bits | validation % | test % | runs |", "|---|---|---:|---:|---:|"]
    for rows in zip(*runs, strict=True):
        cells = [_spread([row[split] for row in rows]) for split in ("validation", "test")]
        lines.append(
            f"| {rows[0]['mode']} | {rows[0]['bits']} | {' | '.join(cells)} | {len(rows)} |"
        )
    return "\n".join(lines)


def _spread(values: Sequence[float]) -> str:
    if len(values) == 1:
        return f"{values[0]:.2f}"
    return f"{statistics.mean(values):.2f} ± {statistics.stdev(values):.2f}"


if __name__ == "__main__":
    try:
        if not sys.argv[1:]:
            raise ValueError("no workdirs given: expected the folders of finished runs")
        print(summary(read_runs([Path(name) for name in sys.argv[1:]])))
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
