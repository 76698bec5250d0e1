"""What the commands share: flags, sub-commands, errors as one line and an exit status."""

import dataclasses
import errno
import inspect
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from absl import app, flags
from absl import logging as absl_logging

from dual_precision.data import DataError
from dual_precision.training.compilation import keep_freed_memory
from dual_precision.training.deaths import end_now
from dual_precision.training.fit import Interrupted, NonFiniteLoss
from dual_precision.training.processes import (
    Group,
    death_in,
    has_joined,
    is_first,
    join,
    leave,
    leave_by_error,
)
from dual_precision.training.reading import CheckpointError

# What a user can mend, besides what is no RuntimeError.
_OF_THE_USER = (ValueError, OSError, DataError, CheckpointError, NonFiniteLoss)

Command = Callable[..., None]  # see `run`
Commands = Mapping[str, Command]

FLAGS = flags.FLAGS
GROUP_FLAGS = tuple(field.name for field in dataclasses.fields(Group))
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
        start = partial(join_group, argv[1] if isinstance(command, Mapping) and argv[1:] else "")
        if trains:
            keep_freed_memory(start)
        else:
            start()
        try:
            start_command(command, argv[1:])
            leave()
        except Interrupted as stop:
            _end(str(stop), 128 + stop.signum)
        except KeyboardInterrupt:  # outside of training, where nothing waits to be saved
            _end("stopped: start the same command again to go on", 128 + signal.SIGINT)
        except (ValueError, OSError, RuntimeError, DataError, CheckpointError) as error:
            if death := death_in(error):
                end_now(*death)
            if FLAGS.traceback or not isinstance(error, _OF_THE_USER):
                raise
            room = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT)
            way_out = "; make room and start the same command again: it goes on" if room else ""
            said = _missing_file(error, command, argv[1:]) or " ".join(str(error).split())
            _end(f"error: {said}{way_out}", 1)

    app.run(guarded, flags_parser=_parse_flags)


def _missing_file(error: Exception, command: Command | Commands, words: Sequence[str]) -> str:
    """What is said of a file that is not there, with the argument that names it; "" where none
    does, or where something else is wrong."""
    if not isinstance(error, FileNotFoundError) or error.filename is None:
        return ""
    path = Path(os.fsdecode(error.filename))
    given = [
        f"--{name} ({FLAGS[name].help})"
        for name in FLAGS
        if FLAGS[name].present and path == Path(str(FLAGS[name].value))
    ]
    if isinstance(command, Mapping):
        command, words = _choose_command(command, words)
    names = _words_of(command)
    given += [names[min(at, len(names) - 1)] for at, word in enumerate(words) if path == Path(word)]
    return f"{path}, given as {given[0]}: {error.strerror}; check the path" if given else ""


def _end(line: str, status: int) -> NoReturn:
    if has_joined():
        leave_by_error(line, status)
    if status == 1:
        sys.exit(line)
    print(line, file=sys.stderr)
    sys.exit(status)


def define_process_flags(values: flags.FlagValues = flags.FLAGS) -> None:
    """The flags of a command that several processes can run together; see docs/scale.md."""
    string = partial(flags.DEFINE_string, flag_values=values)
    integer = partial(flags.DEFINE_integer, flag_values=values)
    string("coordinator", None, "HOST:PORT of process 0, or auto: the scheduler says")
    integer("processes", None, "with --coordinator: how many there are")
    integer("process", None, "with --coordinator: which one this is, from 0")
    integer("join_seconds", 60, "with --coordinator: wait so long for the others")
    about = "with --coordinator: a process that is not heard of for so long is dead"
    integer("silence_seconds", 10, about)


def join_group(subcommand: str = "") -> None:
    """Joins the processes that the flags name, if any; all but the first are then silent.

    Args:
      subcommand: the first word of the command line: such a one runs in one process.
    """
    known = [name for name in GROUP_FLAGS if name in FLAGS]
    given: dict[str, Any] = {name: FLAGS[name].value for name in known}
    idle = ", ".join(f"--{name}" for name in known if FLAGS[name].present)
    if idle and subcommand:
        sys.exit(f"error: {idle} has no effect on {subcommand!r}: leave it out")
    if not given.get("coordinator"):
        if idle:
            sys.exit(f"error: {idle} without --coordinator: give it, or leave them out")
        return
    try:
        group = Group(**given)
    except ValueError as error:
        sys.exit(f"error: {error}")
    join(group)
    if not is_first():
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 for the rest of the process
        logging.getLogger("dual_precision").setLevel(logging.ERROR)


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
    _list_in_help(argv[0])
    try:
        words = FLAGS(argv)
        _check_not_empty(FLAGS)
        return words
    except flags.Error as error:
        sys.exit(f"error: {' '.join(str(error).split())}; --help lists the flags")


def _list_in_help(command: str) -> None:
    """--help lists the flags of the command's file alone, unless others are keys of it too: here
    those that files of ours have defined for it, and none of the libraries."""
    ours = __name__.partition(".")[0]
    for module, defined in FLAGS.flags_by_module_dict().items():
        if module.partition(".")[0] == ours:
            for flag in defined:
                FLAGS.register_key_flag_for_module(command, flag)


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
    handler = _ToStderr()
    handler.setFormatter(logging.Formatter("%(message)s"))
    own = logging.getLogger("dual_precision")
    own.addHandler(handler)
    own.setLevel(logging.INFO)
    own.propagate = False


class _ToStderr(logging.Handler):
    """Writes to what sys.stderr is at that moment: joining a group puts another one in its place,
    for what is written to the first is kept and not shown; see `catch_aborts`."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            print(self.format(record), file=sys.stderr, flush=True)
        except Exception:  # as every handler of `logging` does
            self.handleError(record)


class Stopwatch:
    """Seconds since it was made."""

    def __init__(self) -> None:
        self._start = time.perf_counter()

    def __str__(self) -> str:
        seconds = time.perf_counter() - self._start
        return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.1f} min"
