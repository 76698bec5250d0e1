"""Serves the page of one session to browsers of this machine, and runs its search beside it."""

import contextlib
import socket
import threading
from functools import partial
from typing import Any

from dual_precision.search.session import Session

ADDRESS = "127.0.0.1"
_IDLE = 0.05  # seconds between two looks for something to do


class Worker:
    """Runs the search of a session in a thread, so that the page answers meanwhile.

    Attributes:
      trouble: what went wrong, for those who look on; "" is nothing.
      training: whether the shared weights are being trained now.
      halted: whether it waits after trouble that the log does not have as a pause, because it
        cannot be written; the pause is tried again until it can.
      exhausted: whether no new candidate is found in the space as it is.
    """

    def __init__(self, session: Session, evaluations: int) -> None:
        self.session, self.evaluations = session, evaluations
        self.trouble, self.training, self.halted = "", False, False
        self.analysts = 0
        self._nothing_at: int | None = None  # the version of the session that proposes nothing
        self._asked, self._over = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="search", daemon=True)

    @property
    def version(self) -> tuple[Any, ...]:
        """Differs where there is something new to draw."""
        return self.session.version, self.trouble, self.training, self.halted, self.exhausted

    @property
    def exhausted(self) -> bool:
        # What is proposed follows from the state alone: with the next edit it is looked for again.
        return self._nothing_at == self.session.version

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Waits for the candidate at hand."""
        self._over.set()
        self._thread.join()

    def ask_for_training(self) -> None:
        """Training comes after the candidate at hand."""
        self._asked.set()

    def new_analyst(self) -> str:
        """A name for who opens the page."""
        self.analysts += 1
        return f"analyst {self.analysts}"

    def _run(self) -> None:
        while not self._over.is_set():
            try:
                busy = not self.halted and self._one()
                self.trouble = "" if busy else self.trouble
            except Exception as error:  # whatever it is, the page stays and says so
                self.trouble, busy = f"{type(error).__name__}: {error}", False
                self.halted = True
            if self.halted:
                self._pause_search()
            if not busy:
                self._over.wait(_IDLE)

    def _pause_search(self) -> None:
        with contextlib.suppress(OSError):  # what cannot write the log may be what went wrong
            self.session.pause(True, "search")
            self.halted = False

    def _one(self) -> bool:
        if self._asked.is_set():
            self._asked.clear()
            self.training = True
            try:
                self.session.train()
            finally:
                self.training = False
            return True
        if self.exhausted or len(self.session.state.evaluated) >= self.evaluations:
            return False
        version = self.session.version  # of before: an edit meanwhile makes it another one
        stepped = self.session.step()
        self._nothing_at = None if stepped or self.session.state.paused else version
        return stepped


def open_server(worker: Worker, port: int) -> Any:
    """A Bokeh server, not started yet; `server.port` says where.

    Raises:
      ValueError: Bokeh is not installed, or the port is taken.
    """
    try:
        from bokeh.server.server import Server
    except ImportError:
        raise ValueError(
            "the page needs Bokeh: install the extra [pages], pip install 'dual_precision[pages]'"
        ) from None
    from dual_precision.search.page.views import add_views

    port = port or free_port()
    origins = [f"{name}:{port}" for name in (ADDRESS, "localhost")]
    try:
        return Server(
            {"/": partial(add_views, worker=worker)},
            address=ADDRESS,
            port=port,
            allow_websocket_origin=origins,
        )
    except OSError as error:
        raise ValueError(f"port {port} is taken ({error}): give another, 0 is any") from None


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind((ADDRESS, 0))
        port: int = probe.getsockname()[1]
    return port


def serve_page(session: Session, evaluations: int, port: int) -> None:
    """Until Ctrl-C; the search goes on while nobody looks."""
    worker = Worker(session, evaluations)
    server = open_server(worker, port)
    server.start()
    worker.start()
    print(f"page: http://{ADDRESS}:{server.port}/ (Ctrl-C ends it)", flush=True)
    try:
        server.io_loop.start()
    except KeyboardInterrupt:
        pass
    finally:
        server.stop()
        worker.stop()
