"""Stopping on request: SIGTERM and Ctrl-C let the step at hand finish, and the state be saved."""

import contextlib
import signal
from typing import Any

from tqdm import tqdm


class Interrupted(RuntimeError):
    """A signal asked to stop; the state was saved.

    Attributes:
      signum: number of the signal.
    """

    def __init__(self, message: str, signum: int):
        super().__init__(message)
        self.signum = signum


class Signals:
    """Remembers the first SIGINT or SIGTERM while the block runs; the second acts as usual."""

    def __init__(self) -> None:
        self.received: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Signals":
        for signum in (signal.SIGINT, signal.SIGTERM):
            try:
                self._before[signum] = signal.signal(signum, self._note)
            except ValueError:  # not in the main thread: the caller keeps its own handling
                return self
        return self

    def _note(self, signum: int, _frame: Any) -> None:
        self.received = signum
        # Ctrl-C ends `| tee log` too, and nobody reads; RuntimeError: it came amid another write.
        with contextlib.suppress(OSError, ValueError, RuntimeError):
            tqdm.write(f"{signal.Signals(signum).name}: saving after this step")
        self.__exit__()

    def __exit__(self, *_: Any) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)
        self._before = {}
