"""The train step beside plain flax and PyTorch, each program in a process of its own, in turns.

    python -m experiments.benchmark train_apart --repeats=7 --steps=5

So a user has them: nothing else has the memory or the threads of the process. `train` has them in
one process, and more peers. Two to four minutes on two CPU cores, and about 12 GiB of memory for
ResNet-20 at batch 128.
"""

import contextlib
import json
import multiprocessing
from collections.abc import Iterator
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

from dual_precision.deploy.file.writer import check_replaceable
from dual_precision.training.compilation import keep_freed_memory
from experiments.benchmark.comparison import judge_bars
from experiments.benchmark.inference_peers import has_torch
from experiments.benchmark.machine import describe_machine
from experiments.benchmark.timing import time_rounds
from experiments.benchmark.train_step import (
    BARS,
    OURS,
    PLAIN,
    RATE,
    SIZES,
    STEPS,
    Program,
    build_resnet,
    our_programs,
    peer_programs,
    random_batch,
    steps_table,
)
from experiments.benchmark.train_torch import TORCH, TORCH_BF16, TorchStep, torch_steps
from experiments.workdir import write_whole

START_SECONDS = 600  # until a process has compiled its program


def build_one(name: str, model: str, batch_size: int) -> Program | TorchStep:
    """A program by its name, alone in this process."""
    if name in OURS:
        keep_freed_memory()  # as `experiments.cifar` does; it has to come first
    network = build_resnet(model)
    images, labels = random_batch(batch_size)
    if name in (TORCH, TORCH_BF16):
        sizes = {key: getattr(network, key) for key in SIZES}
        return torch_steps(sizes, images, labels, RATE)[0][name]
    if name == PLAIN:
        return peer_programs((PLAIN,), network, images, labels)[0][PLAIN]
    return our_programs(network, images, labels, (name,))[name]


def run_turns(pipe: Connection, name: str, model: str, batch_size: int) -> None:
    """What a process does: builds a program, then runs so many steps whenever it is told to."""
    program = build_one(name, model, batch_size)
    program.run(2)
    pipe.send(program.difference)
    with contextlib.suppress(EOFError):  # nobody asks any more
        while True:
            steps: int = pipe.recv()
            program.run(1)  # its arrays come back into the caches
            pipe.send(program.run(steps))


class Apart:
    """A program in another process.

    Attributes:
      difference: see `train_step.Program`.
    """

    def __init__(self, name: str, model: str, batch_size: int) -> None:
        context = multiprocessing.get_context("spawn")  # JAX has threads, and cannot be forked
        self._name = name
        self._pipe, other = context.Pipe()
        arguments = (other, name, model, batch_size)
        self._process = context.Process(target=run_turns, args=arguments, daemon=True)
        self._process.start()
        other.close()
        self.difference: float | None = self._answer(START_SECONDS)

    def run(self, steps: int) -> float:
        """Milliseconds per step, over so many steps in a row."""
        self._pipe.send(steps)
        milliseconds = self._answer(START_SECONDS)
        assert milliseconds is not None
        return milliseconds

    def close(self) -> None:
        """Ends the process."""
        self._pipe.close()
        self._process.join(10)
        self._process.kill()

    def _answer(self, seconds: float) -> float | None:
        try:
            if self._pipe.poll(seconds):
                found: float | None = self._pipe.recv()
                return found
        except EOFError:
            pass
        raise RuntimeError(f"the process of {self._name!r} ended, or says nothing; see above")


@contextlib.contextmanager
def started(names: list[str], model: str, batch_size: int) -> Iterator[dict[str, Apart]]:
    """The programs, each in a process, one started after the other; they end with the block."""
    with contextlib.ExitStack() as stack:
        programs: dict[str, Apart] = {}
        for name in names:
            print(f"starting {name}", flush=True)
            programs[name] = Apart(name, model, batch_size)
            stack.callback(programs[name].close)
        yield programs


def measure_train_apart(
    *, model: str, batch_size: int, repeats: int, steps: int | None = None, out: str | None = None
) -> None:
    """The sub-command `train_apart`; its arguments are the flags."""
    if out:
        check_replaceable(out)
    build_resnet(model)  # a ValueError before anything is started
    about = {**describe_machine(), "model": model, "batch_size": batch_size, "repeats": repeats}
    about["steps"] = steps or STEPS
    print(", ".join(f"{key} {value}" for key, value in about.items()) + "\n", flush=True)
    names = [PLAIN, *OURS, *((TORCH, TORCH_BF16) if has_torch() else ())]
    with started(names, model, batch_size) as programs:
        each = {name: partial(p.run, steps or STEPS) for name, p in programs.items()}
        times = time_rounds(each, repeats)
        lines = judge_bars([bar for bar in BARS if {bar.program, bar.other} <= set(names)], times)
        print(steps_table(times, programs, batch_size), "", sep="\n")
        print(*(f"- {line}" for line in lines), sep="\n")
    if not has_torch():
        print("- PyTorch: not installed; pip install -e '.[benchmark]'")
    if out:
        results = {"about": about, "milliseconds": times, "bars": lines}
        write_whole(Path(out), json.dumps(results, indent=2) + "\n")
