"""A tiny network, compiled once for all files here; a server in a thread of the test."""

import threading

import numpy as np
import pytest

from dual_precision import modes
from dual_precision.deploy import Cascade, inspect_packed, save_packed
from dual_precision.deploy.predictor import CASCADE
from dual_precision.deploy.server import running
from dual_precision.deploy.server.app import make_app
from dual_precision.deploy.server.engines import PredictorEngine
from dual_precision.deploy.server.service import measured
from dual_precision.models import build_from
from dual_precision.tasks.classification import Classification
from dual_precision.training.state import initial_variables
from experiments.benchmark.reliability.damage_ways import save_tiny_packed

SIZES = (4,)  # one program for each way to answer


@pytest.fixture(scope="session")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("server") / "net.safetensors"
    save_tiny_packed(path)
    return path


@pytest.fixture(scope="session")
def make_path(tmp_path_factory):
    """(cascade or None, mode="w2a2", ...) -> a file of an untrained network."""

    def make(cascade=None, **widths):
        network = {"name": "mlp", "num_classes": 4, "hidden": [16, 16], **modes(**widths).to_json()}
        model, example = build_from(network), Classification((8, 8, 1)).example
        path = tmp_path_factory.mktemp("made") / "net.safetensors"
        metadata = {} if cascade is None else {CASCADE: Cascade(*cascade).to_json()}
        variables = initial_variables(model, example, 0)
        save_packed(path, model, variables, network, example, metadata)
        return path

    return make


@pytest.fixture(scope="session")
def engine(path):
    return measured(PredictorEngine(path, sizes=SIZES))


@pytest.fixture(scope="session")
def images(path):
    shape = inspect_packed(path).image_shape
    return np.random.default_rng(0).integers(0, 256, (3, *shape), np.uint8)


class Running:
    """A server in a thread; its address."""

    def __init__(self, service, engine, samples=None, host="127.0.0.1", hosts=("*",)):
        self.service = service

        async def load():
            if engine is not None:
                service.put(*engine, complete=True)

        config = running.uvicorn.Config(
            make_app(service, load, samples, hosts), host=host, port=0,
            http=running.PatientProtocol, ws="none",
            log_config=None, log_level="error", access_log=False,
        )  # fmt: skip
        there = threading.Event()

        def started(address):
            self.address = address
            there.set()

        self._server = running._Server(config, started)
        self._thread = threading.Thread(target=self._server.run)
        self._thread.start()
        assert there.wait(30)

    def stop(self):
        self._server.should_exit = True
        self._thread.join(30)
        assert not self._thread.is_alive()


@pytest.fixture
def start_server():
    """(service, engine, samples, host, hosts) -> a server, which ends with the test."""
    started = []

    def start(*given):
        started.append(Running(*given))
        return started[-1]

    yield start
    for own in started:
        own.stop()
