"""Measures inference: bit planes against float32 and int8, and switching modes under load.

    python -m experiments.benchmark inference --repeats=7 --steps=30

The networks are PrecisionBatching's (Lam et al. 2020): an MLP 784-4096-4096-10 and an LSTM(2048),
with random weights: a product takes the same time whatever it multiplies. PyTorch is measured if
it is installed. Every round runs every program of a group in shuffled order; a figure is the median
over rounds of the median request, a ratio the median over the rounds' own ratios.

Requests follow each other, so that weights which fit stay in the last-level cache: the planes (2.5
to 20 MB of the MLP, 4.2 to 34 MB of the LSTM) and int8 may, float32 (80 and 134 MB) may not. A
service that does other work in between sees the columns "cold", for which a buffer of twice that
cache is written before each request.
"""

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from tqdm import tqdm

from dual_precision.deploy.planes.bit_layers import (
    BitLSTMCell,
    join_gates,
    pack_lstm,
    to_bit_layers,
)
from dual_precision.models import build
from dual_precision.precision import modes
from dual_precision.primitives.native import build as native
from experiments.benchmark import torch_peers
from experiments.benchmark.timing import last_level_cache, speed_ratio, turns, verdict_of

IMAGE = (28, 28, 1)
HIDDEN = 2048
PLANES = (1, 2, 4, 8)
ACTIVATIONS = 8
REQUESTS = 30  # of a program in a round, by default
WARM, WARM_SECONDS = 3, 0.05  # at least so many requests, and so long, before those that count
COLD_REQUESTS = 10
EVICT = 64 << 20  # bytes, at least, that go through the caches to evict what was there
CACHES = (
    "Warm requests follow each other: planes and int8 weights (the MLP's 2.5 MB a plane, the LSTM's"
    " 4.2)\nstay in the last-level cache as far as they fit, float32's 80 and 134 MB do not."
    ' "cold": the same\nrequests, the caches evicted before each. The bars are of the warm ones.'
)

JAX, TORCH, INT8 = "JAX float32", "PyTorch float32", "PyTorch dynamic int8"
XLA = ", XLA alone"  # without the compiled CPU kernel
ONE, EIGHT, CELL = "MLP 784-4096-4096-10, batch 1", "the MLP, batch 8", "LSTM(2048) step, batch 1"

Request = Callable[[], Any]
Times = Mapping[str, Sequence[float]]


@dataclasses.dataclass(frozen=True)
class Bar:
    """How many times as fast as another a program is to be."""

    group: str
    program: str
    other: str
    least: float
    goal: float


def planes_name(planes: int) -> str:
    """What a table calls a number of planes."""
    return f"w{planes}a{ACTIVATIONS}"


BARS = (
    *(
        Bar(ONE, planes_name(planes), other, least, goal)
        for planes, least, goal in ((1, 8, 20), (2, 4, 10), (4, 2.2, 6))
        for other in (JAX, TORCH)
    ),
    Bar(ONE, planes_name(4), planes_name(8), 1.6, 1.9),
    *(Bar(CELL, planes_name(2), other, 3, 8) for other in (JAX, TORCH)),
    *(Bar(EIGHT, planes_name(1), other, 2, 6) for other in (JAX, TORCH)),
)


def forms() -> dict[str, str | None]:
    """Suffix of a row -> `form` of plane_product: the fastest, and XLA's own where that differs."""
    return {"": None, XLA: "xla"} if native.available() else {"": None}


def mlp_programs(rows: int) -> dict[str, Request]:
    """One request of `rows` images by each program."""
    model: Any = build("mlp_4096", num_classes=10, modes=modes())
    images = jax.random.normal(jax.random.key(1), (rows, *IMAGE))
    variables = jax.jit(partial(model.init, precision="float"))(jax.random.key(0), images)
    variables = {"batch_stats": {}, **variables}
    layered, packed = to_bit_layers(model, variables, IMAGE)
    plain = jax.jit(partial(model.apply, precision="float"))
    requests: dict[str, Request] = {JAX: partial(plain, variables, images)}
    for suffix, form in forms().items():
        own = layered.clone(dense=partial(layered.dense, form=form))
        for planes in PLANES:
            name = planes_name(planes)
            requests[name + suffix] = partial(
                jax.jit(partial(own.apply, precision=name)), packed, images
            )
    params = variables["params"]
    layers = [params[name] for name in ("dense1", "dense2", "classifier")]
    return requests | torch_peers.mlp(layers, np.asarray(images).reshape(rows, -1), TORCH, INT8)


def plain_step(
    kernels: jax.Array, bias: jax.Array, carry: tuple[jax.Array, jax.Array], x: jax.Array
) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
    """A step in float32 with the kernels of all gates in one [in + H, 4H], as a service keeps them.

    flax's own cell joins its eight kernels at every step, which takes ten times as long.
    """
    c, h = carry
    i, f, g, o = jnp.split(jnp.concatenate([x, h], axis=1) @ kernels + bias[None], 4, axis=1)
    c = nn.sigmoid(f) * c + nn.sigmoid(i) * jnp.tanh(g)
    h = nn.sigmoid(o) * jnp.tanh(c)
    return (c, h), h


def joined(params: Mapping[str, Any]) -> tuple[jax.Array, jax.Array]:
    """The kernels [in + H, 4H] and biases [4H] of flax's LSTM cell, for `plain_step`."""
    inputs, hidden, bias = join_gates(params)
    return jnp.concatenate([inputs, hidden]), bias


def lstm_programs() -> dict[str, Request]:
    """One step of a cell of 2048 units, for one sequence."""
    cell = nn.OptimizedLSTMCell(HIDDEN)
    keys = jax.random.split(jax.random.key(0), 4)
    x, c, h = (jax.random.normal(key, (1, HIDDEN)) for key in keys[:3])
    params = jax.jit(cell.init)(keys[3], (c, h), x)["params"]
    requests: dict[str, Request] = {JAX: partial(jax.jit(plain_step), *joined(params), (c, h), x)}
    packed = {"params": pack_lstm(params)}
    for suffix, form in forms().items():
        own = BitLSTMCell(HIDDEN, form=form)
        for planes in PLANES:
            name = planes_name(planes)
            step = jax.jit(partial(own.apply, precision=name))
            requests[name + suffix] = partial(step, packed, (c, h), x)
    given = (np.asarray(x), np.asarray(h), np.asarray(c))
    return requests | torch_peers.lstm(params, given, TORCH, INT8)


GROUPS: dict[str, Callable[[], dict[str, Request]]] = {
    ONE: partial(mlp_programs, 1),
    EIGHT: partial(mlp_programs, 8),
    CELL: lstm_programs,
}
COLD = (ONE, CELL)  # the groups that are measured with cold caches too


def as_array(result: Any) -> np.ndarray:
    """Logits, or an LSTM's output."""
    leaf = result[1] if isinstance(result, tuple) else result
    return np.asarray(leaf)


def differences(requests: Mapping[str, Request]) -> dict[str, float]:
    """|y - y of JAX float32| / |y of JAX float32| of every program: they compute the same."""
    exact = as_array(requests[JAX]())
    return {
        name: float(np.linalg.norm(as_array(run()) - exact) / np.linalg.norm(exact))
        for name, run in requests.items()
    }


def one_round(run: Request, steps: int) -> float:
    """Median milliseconds of a request, warm: the weights are where the last request left them.

    What ran before has filled the caches, and threads of its pool may still wait busily.
    """
    start, warm = time.perf_counter(), 0
    while warm < WARM or time.perf_counter() - start < WARM_SECONDS:
        jax.block_until_ready(run())
        warm += 1
    return float(np.median([timed(run) for _ in range(steps)]))


def cold_round(run: Request, steps: int, buffer: np.ndarray) -> float:
    """Median milliseconds of a request before which the caches were filled with `buffer`."""
    taken = []
    for _ in range(steps):
        np.add(buffer, 1, out=buffer)
        taken.append(timed(run))
    return float(np.median(taken))


def timed(run: Request) -> float:
    """Milliseconds of a request."""
    start = time.perf_counter()
    jax.block_until_ready(run())
    return 1e3 * (time.perf_counter() - start)


def time_rounds(
    requests: Mapping[str, Request], repeats: int, steps: int, cold_steps: int
) -> tuple[Times, Times]:
    """Milliseconds of a request, of each program in each round; warm, and with cold caches.

    Args:
      cold_steps: requests with cold caches; with 0 nothing is measured so.
    """
    names = list(requests)
    warm: dict[str, list[float]] = {name: [] for name in names}
    cold: dict[str, list[float]] = {name: [] for name in names} if cold_steps else {}
    buffer = np.zeros(max(EVICT, 2 * (last_level_cache() or 0)), np.uint8)
    with tqdm(total=len(names) * repeats, disable=None, leave=False) as bar:
        for order in turns(names, repeats):
            for name in order:
                bar.set_description(name)
                warm[name].append(one_round(requests[name], steps))
                if cold:
                    cold[name].append(cold_round(requests[name], cold_steps, buffer))
                bar.update()
    return warm, cold


def table(times: Times, off: Mapping[str, float], cold: Times = MappingProxyType({})) -> str:
    """One line per program, in Markdown; the last column names what is faster than it, warm.

    Args:
      times, cold: milliseconds of a request, warm and with cold caches; the latter may be missing.
      off: see `differences`.
    """
    others = [name for name in (JAX, TORCH, INT8) if name in times]
    peers = others if cold else []
    heads = [
        "program",
        "ms, median (min..max)",
        *(f"x {name}" for name in others),
        *["cold: ms"] * bool(cold),
        *(f"cold: x {name}" for name in peers),
        "off float's",
        "slower than",
    ]
    lines = [f"| {' | '.join(heads)} |", f"|:--|{'--:|' * (len(heads) - 2)}:--|"]
    for name, own in times.items():
        ratios = {other: speed_ratio(times, name, other) for other in others}
        slower = [o for o, ratio in ratios.items() if o != name and ratio and ratio < 1]
        cells = [
            name,
            f"{np.median(own):.3f} ({min(own):.3f}..{max(own):.3f})",
            *(f"{ratio:.2f}" for ratio in ratios.values()),
            *([f"{np.median(cold[name]):.3f}"] if cold else []),
            *(f"{speed_ratio(cold, name, other):.2f}" for other in peers),
            f"{100 * off[name]:.1f} %",
            ", ".join(slower),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def judge(group: str, times: Times, cold: Times = MappingProxyType({})) -> list[str]:
    """One line per bar of a group: its figure, a verdict, and the figure with cold caches."""
    lines = []
    for bar in BARS:
        if bar.group != group:
            continue
        what = f"{bar.group}: {bar.program} against {bar.other}"
        ratio = speed_ratio(times, bar.program, bar.other)
        if ratio is None:
            lines.append(f"{what}: not measured")
            continue
        verdict = verdict_of(ratio >= bar.least, ratio >= bar.goal)
        line = f"{what}: {ratio:.2f} x (bar {bar.least}, goal {bar.goal}) {verdict}"
        evicted = speed_ratio(cold, bar.program, bar.other)
        lines.append(line if evicted is None else f"{line}; cold caches: {evicted:.2f} x")
    return lines


def measure(group: str, repeats: int, steps: int) -> tuple[Times, Times, list[str]]:
    """Runs a group, printing its table; its times, warm and cold, and a line for every bar."""
    print(f"\n{group}: preparing", flush=True)
    requests = GROUPS[group]()
    off = differences(requests)  # compiles
    cold_steps = min(steps, COLD_REQUESTS) if group in COLD else 0
    warm, cold = time_rounds(requests, repeats, steps, cold_steps)
    print(f"\n{table(warm, off, cold)}\n", flush=True)
    return warm, cold, judge(group, warm, cold)


def conditions() -> dict[str, Any]:
    """What else the times depend on, of this machine and the peers."""
    cache = last_level_cache()
    return {
        "last-level cache": f"{cache / 2**20:g} MiB" if cache else "unknown",
        "compiled CPU kernel": native.available(),
        **torch_peers.conditions(),
    }
