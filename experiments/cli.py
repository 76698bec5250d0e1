"""What the commands share: flags, sub-commands, errors as one line and an exit status."""

import errno
import inspect
import logging
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence

from absl import app, flags
from absl import logging as absl_logging

from dual_precision.data import DataError
from dual_precision.training.checkpoint import CheckpointError
from dual_precision.training.compilation import keep_freed_memory
from dual_precision.training.fit import Interrupted, NonFiniteLoss

Command = Callable[..., None]  # see `run`
Commands = Mapping[str, Command]

FLAGS = flags.FLAGS
flags.DEFINE_bool("traceback", False, "on an error, show where it came from")


def run(command: Command | Commands, trains: bool = True) -> None:
    """Runs a command; what its user can mend ends as one line and exit status 1 or more.

    A command is a function. Its positional parameters are words of the command line, its
    keyword-only ones are the values of the flags that it reads, by their names: one without a
    default must be given. Of several commands by name, the first word says which is run, and a
    flag that only others read is an error.

    Args:
      trains: this process trains, and not only others that it starts.
    """

    def guarded(argv: list[str]) -> None:
        _logs_to_stderr()
        if trains:
            keep_freed_memory()
        try:
            start_command(command, argv[1:])
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


def start_command(command: Command | Commands, words: Sequence[str]) -> None:
    """Calls a command with what the command line says; see `run`.

    Raises:
      ValueError: an unknown sub-command; other words than the command takes; a flag that it needs
        is missing; one that only other sub-commands read is given.
    """
    if isinstance(command, Mapping):
        command, words = _choose_command(command, words)
    elif words and not _words_of(command):
        raise ValueError(f"unexpected arguments {words}: flags have the form --name=value")
    flags_read = _flags_of(command)
    given = {flag: FLAGS[flag].value for flag in flags_read}
    if missing := [f"--{flag}" for flag in given if flags_read[flag] and given[flag] is None]:
        raise ValueError(f"{', '.join(missing)} must be given, as --name=value")
    command(*words, **given)


def _choose_command(commands: Commands, words: Sequence[str]) -> tuple[Command, Sequence[str]]:
    """The sub-command that the first word names, and the words behind it."""
    name, *rest = words or [""]
    chosen = commands.get(name)
    if chosen is None or len(rest) != len(_words_of(chosen)):
        usages = [" ".join([key, *_words_of(other)]) for key, other in commands.items()]
        raise ValueError(f"command {' '.join(words)!r}: expected one of {usages}")
    others = {flag for other in commands.values() for flag in _flags_of(other)}
    if idle := [f for f in sorted(others - {*_flags_of(chosen)}) if FLAGS[f].present]:
        raise ValueError(f"{idle} has no effect on {name!r}: leave it out")
    return chosen, rest


def _words_of(command: Command) -> list[str]:
    """The words that a command takes, as a usage line names them."""
    parameters = inspect.signature(command).parameters.values()
    return [p.name.upper() for p in parameters if p.kind is not p.KEYWORD_ONLY]


def _flags_of(command: Command) -> dict[str, bool]:
    """Flag that a command reads -> whether it must be given."""
    parameters = inspect.signature(command).parameters.values()
    return {p.name: p.default is p.empty for p in parameters if p.kind is p.KEYWORD_ONLY}


def _parse_flags(argv: list[str]) -> list[str]:
    for flag in FLAGS.flags_by_module_dict().get(__name__, []):  # so that --help lists them
        FLAGS.register_key_flag_for_module(argv[0], flag)
    try:
        words = FLAGS(argv)
        _check_not_empty(FLAGS)
        return words
    except flags.Error as error:
        sys.exit(f"error: {' '.join(str(error).split())}; --help lists the flags")


def _check_not_empty(values: flags.FlagValues) -> None:
    """Raises where a flag is given as --name=, which is not to leave it out: of a study the pairs
    that are left out are all of them, and hours."""
    for name in values:
        if values[name].present and values[name].value in ("", []):
            raise flags.IllegalFlagValueError(f"--{name}= is empty: give a value, or leave it out")


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
