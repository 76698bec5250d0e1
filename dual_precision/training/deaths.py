"""How a process of a group ends when another one dies: one line, and an exit status.

JAX tells of a death in two ways. A collective that waits for the dead process raises, within
milliseconds. The coordination service, which exchanges heartbeats, ends this process by
`LOG(FATAL)`: its stack trace, and SIGABRT. JAX has no public hook there, and a callback that its
private client takes fails with std::bad_cast in jaxlib 0.10.2. So this module catches the signal,
and keeps what C++ writes to stderr until it knows whether anybody should read it.
"""

import contextlib
import ctypes
import io
import os
import re
import signal
import sys
import threading
from collections.abc import Callable

EXIT_STATUS = 75  # EX_TEMPFAIL of sysexits.h: the same command goes on
_TAIL = 1 << 20  # bytes: what C++ writes in hours may be more, and its last words count
_FATAL = re.compile(r"^F\d{4} ", re.MULTILINE)  # how a LOG(FATAL) begins
_SAID_BY_SERVICE = re.compile(r"coordination|distributed service|preemption_sync", re.IGNORECASE)

_once = threading.Lock()
_kept: dict[str, object] = {}  # what C holds a pointer to, or Python would close


def end_now(line: str, status: int = EXIT_STATUS) -> None:
    """Ends this process with one line on stderr; the first of several threads speaks.

    Nothing is waited for: the threads of JAX and of Orbax wait for the dead process.
    """
    if not _once.acquire(blocking=False):
        threading.Event().wait()  # another thread is about to end the process
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
        print(line, file=sys.stderr, flush=True)
    os._exit(status)


def catch_aborts(explain: Callable[[str], tuple[str, int]]) -> None:
    """From now on, an abort by the coordination service is `end_now(*explain(what it wrote))`.

    Any other abort writes what it had to say, and stays an abort. Python's own stderr is not kept.
    """
    native = os.memfd_create("stderr")
    own = os.dup(2)
    os.dup2(native, 2)
    sys.stderr = io.TextIOWrapper(io.FileIO(own, "w"), line_buffering=True, write_through=True)

    def aborted(signum: int) -> None:
        start = max(os.fstat(native).st_size - _TAIL, 0)
        text = os.pread(native, _TAIL, start).decode(errors="replace")
        fatal = _FATAL.split(text)[1:]  # what is before them the service says in good health, too
        if fatal and _SAID_BY_SERVICE.search(fatal[-1]):
            end_now(*explain(text))
        os.write(own, text.encode())
        signal.signal(signum, signal.SIG_DFL)  # the C function below returns, and abort() goes on

    handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(aborted)
    libc = ctypes.CDLL(None)
    libc.signal.restype = ctypes.c_void_p
    libc.signal(signal.SIGABRT, handler)
    _kept.update(handler=handler, stderr=sys.stderr)
