"""What the commands share: flags, errors as one line and an exit status."""

import errno
import logging
import signal
import sys
import time
from collections.abc import Callable

from absl import app, flags
from absl import logging as absl_logging

from dual_precision.data import DataError
from dual_precision.training.checkpoint import CheckpointError
from dual_precision.training.compilation import keep_freed_memory
from dual_precision.training.fit import Interrupted, NonFiniteLoss

FLAGS = flags.FLAGS


def run(main: Callable[..., None], trains: bool = True, words: bool = False) -> None:
    """Runs `main` under absl; what users can mend ends as one line and exit status 1 or more.

    Args:
      trains: this process trains, and not only others that it starts.
      words: `main` takes what is not a flag on the command line.
    """

    def guarded(argv: list[str]) -> None:
        _logs_to_stderr()
        if trains:
            keep_freed_memory()
        if argv[1:] and not words:
            sys.exit(f"error: unexpected arguments {argv[1:]}: flags have the form --name=value")
        try:
            main(*argv[1:])
        except Interrupted as stop:
            print(stop, file=sys.stderr)
            sys.exit(128 + stop.signum)
        except KeyboardInterrupt:  # outside of training, where nothing waits to be saved
            print("stopped: start the same command again to go on", file=sys.stderr)
            sys.exit(128 + signal.SIGINT)
        except (ValueError, OSError, DataError, CheckpointError, NonFiniteLoss) as error:
            if FLAGS.traceback:
                raise
            room = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT)
            way_out = "; make room and start the same command again: it goes on" if room else ""
            sys.exit(f"error: {' '.join(str(error).split())}{way_out}")

    app.run(guarded, flags_parser=_parse_flags)


def _parse_flags(argv: list[str]) -> list[str]:
    try:
        return FLAGS(argv)
    except flags.Error as error:
        sys.exit(f"error: {' '.join(str(error).split())}; --help lists the flags")


def _logs_to_stderr() -> None:
    """Our own log lines, plain; of the libraries nothing: what goes wrong there is raised too."""
    absl_logging.set_verbosity(absl_logging.FATAL)
    logging.getLogger("jax").setLevel(logging.ERROR)
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    own = logging.getLogger("dual_precision")
    own.addHandler(handler)
    own.setLevel(logging.INFO)
    own.propagate = False


class Stopwatch:
    """Seconds since it was made."""

    def __init__(self) -> None:
        self._start = time.perf_counter()

    def __str__(self) -> str:
        seconds = time.perf_counter() - self._start
        return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.1f} min"
