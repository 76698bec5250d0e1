"""64 clients in mixed modes, one of which sends garbage.

    python -m experiments.benchmark clients --seconds=60

Only the garbage may be refused, every other answer must have the classes that the mode gave alone,
and the memory of the server stays where it was after the first fifth of the time.
"""

import collections
import re
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np

from dual_precision.deploy import Predictor, inspect_packed
from experiments.benchmark.comparison import goal_verdict, verdict_of
from experiments.benchmark.serving.child import as_npy, served

CLIENTS = 64
MODES = ("low", "high", "auto")
GROWTH = 64 << 20
TAIL_GOAL = 5.0


def measure_clients(*, network: str, seconds: float = 12.0) -> None:
    """The sub-command `clients`; its arguments are the flags.

    Raises:
      ValueError: something happened that must not.
    """
    shape = inspect_packed(network).image_shape
    images = np.random.default_rng(0).integers(0, 256, (8, *shape), np.uint8)
    predictor = Predictor(network)
    modes = MODES if predictor.cascade else MODES[:2]
    right = {mode: predictor.predict(images, mode).argmax(1).tolist() for mode in modes}
    del predictor
    counts: collections.Counter[str] = collections.Counter()
    times: list[float] = []
    memory: list[int] = []
    with served(network, "--nosamples") as (address, process):
        end = time.monotonic() + seconds

        def client(number: int) -> None:
            rng = np.random.default_rng(number)
            with httpx.Client(base_url=address, verify=False, timeout=60) as own:
                while time.monotonic() < end:
                    if number == 0:
                        body = rng.bytes(int(rng.integers(1, 5000)))
                        code = own.post("/predict?precision=low", content=body).status_code
                        counts["garbage refused" if 400 <= code < 500 else "garbage taken"] += 1
                        time.sleep(0.05)
                        continue
                    mode, index = modes[int(rng.integers(len(modes)))], int(rng.integers(8))
                    start = time.perf_counter()
                    answer = own.post(
                        f"/predict?precision={mode}", content=as_npy(images[index : index + 1])
                    )
                    times.append(time.perf_counter() - start)
                    good = answer.status_code == 200
                    wrong = good and answer.json()["classes"] != right[mode][index : index + 1]
                    counts["wrong" if wrong else f"status {answer.status_code}"] += 1

        with ThreadPoolExecutor(CLIENTS) as pool:
            work = [pool.submit(client, number) for number in range(CLIENTS)]
            while time.monotonic() < end:
                memory.append(_resident(process))
                time.sleep(min(1.0, seconds / 20))
            for each in work:
                each.result()
    fifth = memory[len(memory) // 5]
    grown = max(memory[len(memory) // 5 :]) - fifth
    tails = 1e3 * np.percentile(times, [50, 99])
    good = not counts["wrong"] and not counts["garbage taken"] and grown <= GROWTH
    good = good and all(key in ("status 200", "garbage refused") for key in +counts)
    print(f"{dict(counts)}, p50 {tails[0]:.0f} ms, p99 {tails[1]:.0f} ms", end=": ")
    print(
        f"{tails[1] / tails[0]:.1f} x (goal {TAIL_GOAL:g}) {goal_verdict(tails[1] <= 5 * tails[0])}"
    )
    print(f"memory {fifth / 2**20:.0f} MiB, then at most {grown / 2**20:+.0f} {verdict_of(good)}")
    if not good:
        raise ValueError(f"{dict(counts)}: expected that garbage alone is refused, and flat memory")


def _resident(process: int) -> int:
    found = re.search(r"^VmRSS:\s*(\d+) kB$", Path(f"/proc/{process}/status").read_text(), re.M)
    return int(found[1]) << 10 if found else 0
