"""The routes of the server, as an ASGI application of Starlette.

POST /predict?precision=low|high|auto|budget    a PNG, a JPEG, or an .npy of uint8 [N, H, W, C]
GET  /healthz, /metrics, /about, /history       for machines
GET  /, /samples, /samples/3.npy                for the page
"""

import asyncio
import contextlib
import dataclasses
import io
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from importlib import resources
from typing import Any, TypeVar

import numpy as np
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from dual_precision.deploy.server.service import Service
from dual_precision.deploy.server.uploads import Refused, decode_upload

_Answer = TypeVar("_Answer")
_log = logging.getLogger(__name__)
_PAGE = {"": ("index.html", "text/html"), "page.js": ("page.js", "text/javascript")}
# Nothing from elsewhere: the page needs no network.
_POLICY = "default-src 'self'; img-src 'self' blob: data:; style-src 'self' 'unsafe-inline'"


@dataclasses.dataclass(frozen=True, eq=False)
class Samples:
    """Images that the page offers: uint8 [N, H, W, C], their classes, and names of all classes."""

    images: np.ndarray
    labels: np.ndarray
    names: Sequence[str]


Load = Callable[[], Awaitable[None]]


def make_app(
    service: Service, load: Load, samples: Samples | None = None, hosts: Sequence[str] = ("*",)
) -> Starlette:
    """The application.

    Args:
      load: puts engines into the service; runs beside it from the start on.
      samples: None is none.
      hosts: names by which clients may call the server; the page of another name, which a browser
        was led to, gets nothing.
    """
    pages = _Pages(service, samples)
    routes = [
        Route("/predict", pages.predict, methods=["POST"]),
        Route("/healthz", pages.health),
        Route("/metrics", pages.metrics),
        Route("/about", pages.about),
        Route("/history", pages.history),
        Route("/samples", pages.list_samples),
        Route("/samples/{index:int}.npy", pages.sample),
        Route("/", pages.static),
        Route("/{name}", pages.static),
    ]

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        tasks = [asyncio.create_task(work()) for work in (service.batcher.run, service.control)]
        loading = asyncio.create_task(_loaded(service, load))
        try:
            yield
        finally:
            for task in (*tasks, loading):
                task.cancel()
            await asyncio.gather(*tasks, loading, return_exceptions=True)

    return Starlette(
        routes=routes,
        lifespan=lifespan,
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=list(hosts))],
        exception_handlers={Refused: _refusal},
    )


async def _loaded(service: Service, load: Load) -> None:
    try:
        await load()
    except Exception as error:  # a file may be damaged in any way; the server says so
        service.failed = f"the network cannot be loaded: {error}"
        if not isinstance(error, ValueError | OSError):  # no word of ours about the file
            _log.error("%s", service.failed, exc_info=error)
        if not service.hopeless:  # else the server ends, and its command says so
            _log.warning("%s; the modes that are there go on", service.failed)


async def _refusal(_: Request, error: Exception) -> Response:
    assert isinstance(error, Refused)
    return JSONResponse({"error": str(error)}, error.status, error.headers)


async def _body(request: Request, most: int, seconds: float) -> bytes:
    """The body, read piece by piece: no more than `most` bytes of it, no longer than `seconds`."""
    large = Refused(413, f"a body of more than {most} bytes: send fewer images at a time")
    claimed = request.headers.get("content-length", "0")
    if not claimed.isdecimal() or int(claimed) > most:
        raise large
    parts, size = [], 0
    try:
        async with asyncio.timeout(seconds):
            async for part in request.stream():
                size += len(part)
                if size > most:
                    raise large
                parts.append(part)
    except TimeoutError:
        raise Refused(
            408, f"no whole request within {seconds:g} s", {"Connection": "close"}
        ) from None
    except ClientDisconnect:
        raise _gone() from None
    return b"".join(parts)


def _gone() -> Refused:
    """What nobody reads, but for the metrics: 499 is the word of nginx for it."""
    return Refused(499, "the client has gone")


async def _while_there(request: Request, answer: Coroutine[Any, Any, _Answer]) -> _Answer:
    """The answer to a request whose body was read; cancelled where the client goes first.

    uvicorn says that a client has gone, and cancels nothing itself.

    Raises:
      Refused: 499, the client has gone; what `answer` raises.
    """
    answering, going = asyncio.create_task(answer), asyncio.create_task(_disconnected(request))
    try:
        await asyncio.wait((answering, going), return_when=asyncio.FIRST_COMPLETED)
        if not answering.done():
            raise _gone()
        return answering.result()
    finally:
        answering.cancel()
        going.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


class _Pages:
    def __init__(self, service: Service, samples: Samples | None) -> None:
        self._service, self._samples = service, samples

    async def predict(self, request: Request) -> Response:
        service, asked = self._service, request.query_params.get("precision", "budget")
        status = 500  # of whatever else is raised
        try:
            response = await self._predicted(request, asked)
            status = 200
        except Refused as error:
            status = error.status
            raise
        finally:  # counted is what was answered, so the answer is made first
            # Names that nobody knows share one label: clients do not make new series.
            label = asked if asked in service.names else "unknown"
            service.metrics.requests.labels(label, status).inc()
        return response

    async def _predicted(self, request: Request, asked: str) -> Response:
        service = self._service
        service.check_asked(asked)
        limits, shape = service.limits, service.ready.shape
        body = await _body(request, limits.bytes(shape), limits.read)
        images = decode_upload(body, shape, limits.rows)
        reply, cost = await _while_there(request, service.answer(images, asked))
        found = reply.found
        logits = found.logits.astype(np.float64)
        powers = np.exp(logits - logits.max(1, keepdims=True))
        return JSONResponse(
            {
                "asked": asked,
                "mode": found.mode,
                "classes": logits.argmax(1).tolist(),
                "probabilities": (powers / powers.sum(1, keepdims=True)).round(6).tolist(),
                "logits": logits.tolist(),
                "escalated": None if found.escalated is None else found.escalated.tolist(),
                "milliseconds": {
                    "waited": round(reply.waited, 3),
                    "computed": round(reply.computed, 3),
                },
                "batch": reply.batch,
                "bit_operations": cost,
            }
        )

    async def health(self, request: Request) -> Response:
        """200 where something answers: "low" before the rest of the file is there."""
        del request
        service = self._service
        _ = service.ready  # Refused where nothing answers yet
        names = [own.name for own in service.modes]
        status = "complete" if service.complete else "loading the rest"
        return JSONResponse({"status": service.failed or status, "modes": names})

    async def metrics(self, _: Request) -> Response:
        return Response(self._service.metrics.text(), media_type="text/plain; version=0.0.4")

    async def about(self, _: Request) -> Response:
        names = [*self._samples.names] if self._samples else []
        return JSONResponse({**self._service.about(), "classes": names})

    async def history(self, _: Request) -> Response:
        return JSONResponse([*self._service.history])

    async def list_samples(self, _: Request) -> Response:
        labels = self._samples.labels.tolist() if self._samples else []
        return JSONResponse({"labels": labels})

    async def sample(self, request: Request) -> Response:
        index = request.path_params["index"]
        if self._samples is None or index >= len(self._samples.images):
            raise Refused(404, f"no sample {index}")
        file = io.BytesIO()
        np.save(file, self._samples.images[index], allow_pickle=False)
        return Response(file.getvalue(), media_type="application/octet-stream")

    async def static(self, request: Request) -> Response:
        found = _PAGE.get(request.path_params.get("name", ""))
        if found is None:
            raise Refused(404, "no such page")
        name, kind = found
        text = resources.files("dual_precision.deploy.server").joinpath("page", name).read_text()
        return Response(text, media_type=kind, headers={"Content-Security-Policy": _POLICY})
