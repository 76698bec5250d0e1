"""Several processes that train one network together, on JAX's multi-controller runtime.

Every process runs the same program. `join` comes before anything asks JAX for its devices; `agree`
makes sure that all of them are about to do the same; `leave` comes last. With one process that
never joined, all of them do nothing.
"""

import dataclasses
import hashlib
import ipaddress
import json
import os
import re
import threading
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.extend.backend import register_backend_factory

from dual_precision.training.deaths import EXIT_STATUS, catch_aborts, end_now

AUTOMATIC = "auto"
_SECONDS_TO_LEAVE = 10


class ProcessesDiffer(ValueError):
    """The processes of one run were not given the same."""


@dataclasses.dataclass(frozen=True)
class Group:
    """The processes of one run.

    Attributes:
      coordinator: HOST:PORT of process 0; "auto" asks the scheduler (SLURM, Open MPI, TPU pods).
      processes: how many there are; None with "auto".
      process: which one this is, from 0; None with "auto".
      join_seconds: how long is waited for the others.
      silence_seconds: one that is not heard of for so long is dead.
    """

    coordinator: str
    processes: int | None = None
    process: int | None = None
    join_seconds: int = 60
    silence_seconds: int = 10

    def __post_init__(self) -> None:
        if self.coordinator == AUTOMATIC:
            if (self.processes, self.process) != (None, None):
                raise ValueError(
                    f"coordinator 'auto' with processes={self.processes} and"
                    f" process={self.process}: expected none, the scheduler says them"
                )
        elif not re.fullmatch(r"[^:/\s]+:\d{1,5}|\[[0-9a-fA-F:]+\]:\d{1,5}", self.coordinator):
            raise ValueError(
                f"coordinator {self.coordinator!r}: expected HOST:PORT of process 0, or 'auto'"
            )
        elif self.processes is None or self.process is None:
            raise ValueError(
                f"coordinator {self.coordinator!r} with processes={self.processes} and"
                f" process={self.process}: expected a number each, such as 2 and 0"
            )
        elif not 0 <= self.process < self.processes:
            raise ValueError(
                f"process={self.process} of {self.processes}: expected 0 to {self.processes - 1}"
            )
        for name in ("join_seconds", "silence_seconds"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: expected 1 or more")

    def __str__(self) -> str:
        own = "" if self.process is None else f"process {self.process} of {self.processes}, "
        return f"{own}coordinator {self.coordinator}"


def join(group: Group) -> None:
    """Makes this process one of the group; from now on a death of another ends it, see `deaths`.

    Raises:
      RuntimeError: something has used JAX's devices before.
    """
    joined = threading.Event()
    # Aborting is all that JAX's C++ client does where it cannot join, too.
    catch_aborts(lambda text: _death_of(text) if joined.is_set() else _why_not(group, text))
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    # It takes SIGTERM for itself and writes to stderr; `fit` asks the processes in another way.
    jax.config.update("jax_enable_preemption_service", False)
    if loopback := _loopback_of(group.coordinator):
        _sum_at(loopback)
    try:
        jax.distributed.initialize(
            None if group.coordinator == AUTOMATIC else group.coordinator,
            group.processes,
            group.process,
            initialization_timeout=group.join_seconds,
            heartbeat_timeout_seconds=group.silence_seconds,
            shutdown_timeout_seconds=_SECONDS_TO_LEAVE,
            coordinator_bind_address=group.coordinator if loopback else None,
        )
        _cut_sums_alike()
        jax.devices()  # the processes tell each other theirs
    except (RuntimeError, ValueError) as error:
        if "before" in str(error):
            raise
        end_now(*_why_not(group, str(error)))
    joined.set()


def _loopback_of(coordinator: str) -> str | None:
    """The host of a coordinator that only this machine reaches; None of any other."""
    host = coordinator.rpartition(":")[0].strip("[]")
    if host == "localhost":
        return host
    try:
        return host if ipaddress.ip_address(host).is_loopback else None
    except ValueError:  # a name
        return None


def _sum_at(host: str) -> None:
    """Has gloo listen at a host, and not where the name of this machine leads.

    JAX makes its CPU client without saying it, and gloo reads no setting: so this says it, with
    the functions by which JAX makes it.
    """
    from jax._src import distributed, xla_bridge
    from jaxlib import _jax

    def client() -> Any:
        own = distributed.global_state.client
        sums = _jax.make_gloo_tcp_collectives(distributed_client=own, hostname=host)
        return xla_bridge.make_cpu_client(sums)

    register_backend_factory("cpu", client, fail_quietly=False)


def _cut_sums_alike() -> None:
    """Gives XLA's CPU client as many threads as one process with all virtual devices has.

    It cuts a long sum into as many parts as it has threads, at least one for each of its devices:
    with four of them the bits would be others than with eight. `NPROC`, which it reads, may be set
    by hand.
    """
    from jax._src.distributed import global_state

    virtual = re.search(r"host_platform_device_count=(\d+)", os.environ.get("XLA_FLAGS", ""))
    own = jax.config.values["jax_num_cpu_devices"]  # -1: not said
    devices = own if own > 0 else int(virtual[1]) if virtual else 1
    if devices > 1:
        threads = max(devices * (global_state.num_processes or 1), os.cpu_count() or 1)
        os.environ.setdefault("NPROC", str(threads))


def has_joined() -> bool:
    """Whether this process is one of a group, maybe the only one."""
    return jax.distributed.is_initialized()


def is_first() -> bool:
    """Whether this process speaks for all: it writes logs, and what is not a checkpoint."""
    return jax.process_index() == 0


def leave() -> None:
    """Waits for the others, and goes."""
    if has_joined():
        jax.distributed.shutdown()


def leave_by_error(line: str, status: int) -> None:
    """Ends this process of a group after an error.

    Where all of them have the same error, each says it: they wait a moment for each other.
    """
    thread = threading.Thread(target=_leave_quietly, daemon=True)
    thread.start()
    thread.join(timeout=2)
    end_now(line, status)


def _leave_quietly() -> None:
    try:
        jax.distributed.shutdown()
    except RuntimeError:
        return


def together(name: str) -> None:
    """Returns when all processes are here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def largest(number: int) -> int:
    """The largest of the numbers that the processes bring."""
    if jax.process_count() == 1:
        return number
    return int(np.max(multihost_utils.process_allgather(np.int32(number))))


def agree(about: Mapping[str, Any]) -> None:
    """Checks that all processes bring the same JSON.

    Raises:
      ProcessesDiffer: on every process; those that differ from the first say in what.
    """
    if jax.process_count() == 1:
        return
    about = {**about, "processes": jax.process_count(), "jax": jax.__version__}
    text = json.dumps(about, sort_keys=True).encode()
    length = int(multihost_utils.broadcast_one_to_all(np.int32(len(text))))
    padded = np.frombuffer(text.ljust(length)[:length], np.uint8)
    first = json.loads(bytes(multihost_utils.broadcast_one_to_all(padded)))
    own = json.loads(text)
    differ = np.ravel(multihost_utils.process_allgather(np.int32(own != first)))
    if own != first:
        there, here = _flat(first), _flat(own)
        names = sorted(k for k in there.keys() | here.keys() if there.get(k) != here.get(k))
        pairs = [f"{k} (there {there.get(k)!r:.60}, here {here.get(k)!r:.60})" for k in names]
        found = ", ".join(pairs)
        raise ProcessesDiffer(
            f"process {jax.process_index()} was given something else than process 0: {found};"
            " start all of them with the same flags and data"
        )
    if differ.any():
        raise ProcessesDiffer(
            f"processes {np.flatnonzero(differ).tolist()} were given something else than process 0"
            " (they say what): start all of them with the same flags and data"
        )


def digest_of(arrays: Mapping[str, Any]) -> str:
    """sha256 of named arrays, to compare data by."""
    digest = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        array = np.ascontiguousarray(array)
        digest.update(f"{name}{array.dtype}{array.shape}".encode())
        digest.update(array.data)
    return digest.hexdigest()


def _flat(tree: Any, name: str = "") -> dict[str, Any]:
    if not isinstance(tree, dict):
        return {name: tree}
    found: dict[str, Any] = {}
    for key, value in tree.items():
        found |= _flat(value, f"{name}.{key}" if name else key)
    return found


def death_in(error: BaseException) -> tuple[str, int] | None:
    """What to say where an error means that another process has died; None where it does not."""
    if jax.process_count() == 1:
        return None
    text = str(error)
    lost = re.search(r"gloo|nccl|connection (closed|reset)|coordination|heartbeat", text, re.I)
    return _death_of(text) if lost else None


def _death_of(text: str) -> tuple[str, int]:
    silent = re.search(r"stopped sending heartbeats\):\s*((\d+[\s,]*)+)", text)
    who = f"process {' '.join(silent[1].split())}" if silent else "another process"
    return (
        f"error: {who} of this run ended or fell silent, and this one with it (pid {os.getpid()});"
        " start the same command again for all processes: they go on from the last checkpoint",
        EXIT_STATUS,
    )


def _why_not(group: Group, text: str) -> tuple[str, int]:
    """Why this process could not join, in one line; exit status 1."""
    text = text.partition("*** Check failure")[0]  # a stack trace follows
    if re.search(r"ALREADY_EXISTS|incarnation|already (registered|connected)", text, re.I):
        reason = "another process has the same number: give each a number of its own"
    elif re.search(r"address already in use|failed to start|add port|to bind", text, re.I):
        reason = "the port is in use on this machine, or the address is not its own: choose another"
    elif re.search(r"DEADLINE_EXCEEDED|timed out|UNAVAILABLE", text, re.I) and group.process:
        reason = (
            f"no group came together there in {group.join_seconds} s: expected process 0 at that"
            f" address, all {group.processes} processes, and no other one with number"
            f" {group.process}"
        )
    elif re.search(r"DEADLINE_EXCEEDED|timed out", text, re.I):
        reason = (
            f"not all processes joined in {group.join_seconds} s: expected {group.processes},"
            " each with the same coordinator and a number of its own"
        )
    else:
        reason = " ".join(text.split())[:300]
    return f"error: {group}: {reason}", 1
