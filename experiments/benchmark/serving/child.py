"""`python -m experiments.deploy serve` as a child process, and requests to it."""

import contextlib
import io
import os
import subprocess
import sys
import time
from collections.abc import Iterator

import httpx
import numpy as np

PATIENCE = 300.0  # seconds that a server may take to be complete


@contextlib.contextmanager
def served(*arguments: str, complete: bool = True) -> Iterator[tuple[str, int]]:
    """(address, process id) of a server on loopback, which is ended behind the block.

    Args:
      arguments: of the command.
      complete: wait until all modes are there.

    Raises:
      ValueError: it does not start.
    """
    command = [sys.executable, "-m", "experiments.deploy", "serve", *arguments, "--port=0"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=dict(os.environ)
    ) as child:
        assert child.stdout is not None
        assert child.stderr is not None
        try:
            said = child.stdout.readline()
            if "http" not in said:
                raise ValueError(f"the server did not start: {child.stderr.read()[-500:]}")
            address = said.split()[-1]
            if complete:
                wait_for(address, "complete")
            yield address, child.pid
        finally:
            child.terminate()
            child.wait(60)


def wait_for(address: str, status: str) -> float:
    """Seconds until /healthz says so.

    Raises:
      ValueError: it does not.
    """
    start = time.perf_counter()
    with httpx.Client(verify=False, timeout=10) as client:
        while time.perf_counter() - start < PATIENCE:
            try:
                answer = client.get(f"{address}healthz").json()
            except httpx.TransportError as error:
                raise ValueError(f"{address}: the server has ended ({error})") from None
            if status in answer.get("status", ""):
                return time.perf_counter() - start
            time.sleep(0.05)
    raise ValueError(f"{address}: not {status!r} within {PATIENCE:g} s")


def as_npy(images: np.ndarray) -> bytes:
    """The body of a request."""
    file = io.BytesIO()
    np.save(file, images, allow_pickle=False)
    return file.getvalue()
