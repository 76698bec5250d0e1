"""A server in a thread of the test."""

import threading

import pytest

from dual_precision.deploy.server import running
from dual_precision.deploy.server.app import make_app


class Running:
    """A server in a thread; its address."""

    def __init__(self, service, engine, samples=None):
        self.service = service

        async def load():
            if engine is not None:
                service.put(*engine, complete=True)

        config = running.uvicorn.Config(
            make_app(service, load, samples), port=0, http=running.PatientProtocol, ws="none",
            log_level="error", access_log=False,
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
    """(service, engine, samples) -> a server, which ends with the test."""
    started = []

    def start(*given):
        started.append(Running(*given))
        return started[-1]

    yield start
    for own in started:
        own.stop()
