"""Time to the first answer with a slow source: the first part of the file against the whole of it.

    python -m experiments.benchmark first_answer --network=mnist.safetensors --rate=1e6

Both read the file at so many bytes a second, compile a mode for its batch sizes, and answer one
image in low: one when low has come, the other when all has. Processor time is in both.
"""

import time

import numpy as np

from dual_precision.deploy import inspect_packed
from dual_precision.deploy.server.engines import PredictorEngine
from dual_precision.deploy.server.sources import opened_source
from experiments.benchmark.comparison import verdict_of

BAR = 0.5


def measure_first_answer(*, network: str, rate: float = 1e6) -> None:
    """The sub-command `first_answer`; its arguments are the flags."""
    info = inspect_packed(network)
    low, *_, high = info.bytes_read
    image = np.zeros((1, *info.image_shape), np.uint8)
    with opened_source(network) as source:  # what a first use compiles is not of the source
        PredictorEngine(source, [low]).answer(image, low)
    seconds = {}
    for name, modes in (("the first part", [low]), ("the whole file", [low, high])):
        start = time.perf_counter()
        with opened_source(network, rate) as source:
            PredictorEngine(source, modes).answer(image, low)
        seconds[name] = time.perf_counter() - start
        print(f"{name}: {seconds[name]:.2f} s to the first answer", flush=True)
    part, whole = seconds.values()
    print(
        f"{part / whole:.3f} x (bar {BAR}) {verdict_of(part <= BAR * whole)}; of the bytes"
        f" {info.bytes_read[low] / info.bytes_read[high]:.3f}"
    )
