"""Serves a packed file over HTTP, on loopback, with a page in the browser; until SIGTERM.

    python -m experiments.deploy serve net.safetensors --port=8000
    python -m experiments.deploy serve mnist.safetensors --planes=2,8 --budget=latency:50

The file, or its http:// address, is read from its begin on: low answers before the rest is there.
`--budget` says what `?precision=budget` holds: latency:50, the p95 of the requests in ms;
bit_operations:2e7 or energy:50000 (nJ, a model), the mean of an image. See docs/serving.md.
"""

import asyncio
import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from dual_precision import data
from dual_precision.data.catalog import lookup
from dual_precision.data.provision.prepared import open_builder
from dual_precision.deploy.dispatch import compute_in_calling_thread
from dual_precision.deploy.file.packed import PackedFile
from experiments.deploy.trials import dataset_of

SAMPLES = 24


def serve_command(
    file: str,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    planes: Sequence[str] | None = None,
    budget: str = "latency:50",
    rate: float | None = None,
    samples: bool = True,
) -> None:
    """The sub-command `serve`; its keyword arguments are the flags.

    Raises:
      ValueError: a budget, planes or rate that mean nothing; no extra [pages]; what cannot be
        loaded. PackedError, OSError: as `inspect_packed`; an address or a port that is not free.
    """
    try:
        from dual_precision.deploy.server.app import make_app
        from dual_precision.deploy.server.engines import check_planes
        from dual_precision.deploy.server.running import allowed_hosts, run_app
        from dual_precision.deploy.server.service import Service
        from dual_precision.deploy.server.settings import BudgetSettings, Limits
        from dual_precision.deploy.server.sources import check_source
    except ImportError as error:
        raise ValueError(f"{error}: pip install -e '.[pages]' has what a server needs") from None
    compute_in_calling_thread()
    counts = [_count(text) for text in planes] if planes else None
    if counts is not None:
        check_planes(counts)
    check_source(file, rate)
    service = Service(BudgetSettings.parse(budget), Limits())
    load = functools.partial(_load, service, file, counts, rate)
    shown = _samples(file) if samples else None
    app = make_app(service, load, shown, allowed_hosts(host))

    def started(address: str) -> None:
        print(f"{file}: {address}", flush=True)

    run_app(app, host, port, started, lambda: service.hopeless)
    if service.hopeless:
        raise ValueError(f"{file}: {service.failed}")
    print("stopped", flush=True)


def _count(text: str) -> int:
    if not text.isdecimal():
        raise ValueError(f"--planes={text}: expected numbers, as in --planes=2,8")
    return int(text)


async def _load(service: Any, file: str, planes: list[int] | None, rate: float | None) -> None:
    """Puts low into service, then all modes; on planes, all of them at once."""
    from dual_precision.deploy.server.engines import PlanesEngine, PredictorEngine
    from dual_precision.deploy.server.service import measured
    from dual_precision.deploy.server.sources import opened_source

    run = functools.partial(asyncio.get_running_loop().run_in_executor, None)
    with opened_source(file, rate) as source:
        if planes is not None:
            ready = await run(lambda: measured(PlanesEngine(source, planes)))
            service.put(*ready, complete=True)
            return
        priced = await run(lambda: _modes_of(source))
        service.expect(priced)
        if len(priced) > 1 and priced[0].trained:
            first = [priced[0].name]
            ready = await run(lambda: measured(PredictorEngine(source, first)))
            service.put(*ready, complete=False)
        ready = await run(lambda: measured(PredictorEngine(source)))
        service.put(*ready, complete=True)


def _modes_of(source: Any) -> Any:
    from dual_precision.deploy.server.engines import priced_modes

    with PackedFile(source) as header:
        return priced_modes(header.info)


def _samples(file: str) -> Any:
    """Test images for the page, where the data set of the file is prepared; else None."""
    from dual_precision.deploy.server.app import Samples

    try:
        with PackedFile(file) as header:
            name = dataset_of(header.info)
        if not open_builder(lookup(name), None).is_prepared():
            return None
        found = data.load(name)
    except (ValueError, OSError, data.DataError):
        return None
    chosen = np.arange(SAMPLES)
    return Samples(found.test.images[chosen], found.test.labels[chosen], found.class_names)
