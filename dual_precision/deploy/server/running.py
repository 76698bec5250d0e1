"""A server from its start to its end: a socket, slow clients, SIGTERM."""

import asyncio
import ipaddress
import signal
import socket
from collections.abc import Callable
from typing import Any

import uvicorn
from starlette.applications import Starlette
from uvicorn.protocols.http.h11_impl import H11Protocol

HEADER_SECONDS = 10.0  # that a client has to send the header of a request
GRACE = 10  # seconds that a request may take after SIGTERM
MOST_CONNECTIONS = 512


class PatientProtocol(H11Protocol):
    """HTTP whose clients have `HEADER_SECONDS` for a header: uvicorn waits for ever."""

    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """A client has come."""
        super().connection_made(transport)
        self._deadline = self.loop.call_later(HEADER_SECONDS, self._give_up)

    def data_received(self, data: bytes) -> None:
        """A part of a request."""
        super().data_received(data)
        answering = self.cycle is not None and not self.cycle.response_complete
        if answering and self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
        elif not answering and self._deadline is None and not self.transport.is_closing():
            self._deadline = self.loop.call_later(HEADER_SECONDS, self._give_up)

    def connection_lost(self, exc: Exception | None) -> None:
        """The client has gone."""
        if self._deadline is not None:
            self._deadline.cancel()
        super().connection_lost(exc)

    def _give_up(self) -> None:
        self._deadline = None
        self.transport.abort()


class _Server(uvicorn.Server):
    def __init__(
        self,
        config: uvicorn.Config,
        started: Callable[[str], None],
        hopeless: Callable[[], bool] = lambda: False,
    ) -> None:
        super().__init__(config)
        self._tell, self._hopeless = started, hopeless

    async def startup(self, sockets: Any = None) -> None:
        await super().startup(sockets)
        host, port = self.servers[0].sockets[0].getsockname()[:2]
        self._tell(f"http://{_in_address(host)}:{port}/")

    async def on_tick(self, counter: int) -> bool:
        """Whether to end; asked ten times a second."""
        return await super().on_tick(counter) or self._hopeless()


def allowed_hosts(host: str) -> tuple[str, ...]:
    """The names by which clients may call a server that listens on `host`; see `make_app`.

    On a loopback address these are the names of loopback: a page of elsewhere, whose name was made
    to lead here, is another one. Elsewhere any name may be right, ("*",).

    >>> allowed_hosts("::1")
    ('127.0.0.1', 'localhost', '[::1]')
    """
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError:  # listening there will fail, and says so
        return ("*",)
    if not all(ipaddress.ip_address(own[4][0]).is_loopback for own in found):
        return ("*",)
    return tuple(dict.fromkeys(("127.0.0.1", "localhost", "[::1]", _in_address(host))))


def _in_address(host: str) -> str:
    """As an address of HTTP has it: IPv6 is in brackets, as its colons are none of a port."""
    return f"[{host}]" if ":" in host else host


def run_app(
    app: Starlette,
    host: str,
    port: int,
    started: Callable[[str], None],
    hopeless: Callable[[], bool],
) -> None:
    """Serves until SIGTERM or SIGINT; then what was asked is answered, and this returns.

    Args:
      port: 0 is one that is free.
      started: is told the address.
      hopeless: whether to end at once, as nothing will ever answer.

    Raises:
      OSError: it cannot listen there.
    """
    config = uvicorn.Config(
        app,
        http=PatientProtocol,
        ws="none",
        log_config=None,  # uvicorn's own would end the handlers that a program has
        log_level="error",
        access_log=False,
        timeout_graceful_shutdown=GRACE,
        timeout_keep_alive=15,
        limit_concurrency=MOST_CONNECTIONS,
        server_header=False,
    )
    # uvicorn raises the signal again when it has ended well; that is not to end the process.
    before = {s: signal.signal(s, signal.SIG_IGN) for s in (signal.SIGTERM, signal.SIGINT)}
    try:
        with _listening(host, port) as listening:
            _Server(config, started, hopeless).run([listening])
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _listening(host: str, port: int) -> socket.socket:
    """A socket that is made here, as uvicorn ends the process where it cannot make one."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as error:
        why = (error.strerror or "").partition(" (")[0]  # the rest is the address once more
        raise OSError(
            f"cannot listen on {host}, port {port} ({why}): expected an address of this"
            " machine, and a port that is free; 0 chooses one"
        ) from None
