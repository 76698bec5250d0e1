"""The child of `damage`: damages files in some way, opens them, and says what came of it.

    python -m experiments.benchmark.reliability.damage_child FOLDER CASES SEED FIRST

It prints "ready" when the sound files are made, then a JSON line for each case from FIRST on.
Everything follows from the seed and the number of the case.
"""

import json
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from experiments.benchmark.machine import process_memory
from experiments.benchmark.reliability.damage import LARGEST_GROWTH, READY, SECONDS, kind_of
from experiments.benchmark.reliability.damage_ways import REFUSED, WAYS, make_files


def main(folder: Path, cases: int, seed: int, first: int) -> None:
    """Runs the cases; see the top of this file."""
    files = make_files(folder)
    print(READY, flush=True)
    for number in range(first, cases):
        rng = np.random.default_rng([seed, number])
        print(json.dumps(judged(partial(WAYS[kind_of(number)], files, rng))), flush=True)


def judged(attempt: Callable[[], str]) -> tuple[str, str]:
    """The outcome of one attempt, and what was said."""
    _reset_peak()
    before, start = process_memory("VmRSS"), time.process_time()
    try:
        outcome, about = attempt(), ""
    except REFUSED as error:
        outcome, about = "refused", str(error)[:200]
    except MemoryError:
        outcome, about = "large", "MemoryError"
    except Exception as error:  # what nobody expected is what is looked for
        outcome, about = "crash", f"{type(error).__name__}: {error}"[:300]
    if time.process_time() - start > SECONDS:
        return "slow", f"{time.process_time() - start:.1f} s; {about}"
    grown = process_memory("VmHWM") - before
    if grown > LARGEST_GROWTH:
        return "large", f"{grown >> 20} MiB; {about}"
    return outcome, about


def _reset_peak() -> None:
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:  # another system than Linux
        return


if __name__ == "__main__":
    main(Path(sys.argv[1]), *(int(word) for word in sys.argv[2:5]))
