"""Bit planes beside float32 and int8: a part of `python -m experiments.benchmark inference`.

The networks are PrecisionBatching's (Lam et al. 2020): an MLP 784-4096-4096-10 and an LSTM(2048),
with random weights: a product takes the same time whatever it multiplies. PyTorch is measured if
it is installed. Every round runs every program of a group in shuffled order; a figure is the median
over rounds of the median request, a ratio the median over the ratios of the rounds.

Requests follow each other, so that weights which fit stay in the last-level cache: the planes (2.5
to 20 MB of the MLP, 4.2 to 34 MB of the LSTM) and int8 may, float32 (80 and 134 MB) may not. A
service that does other work in between sees the columns "cold", for which a buffer of twice that
cache is written before each request.
"""

import time
from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from dual_precision.deploy.planes.bit_layers import to_bit_layers
from dual_precision.deploy.planes.bit_lstm import BitLSTMCell
from dual_precision.deploy.planes.packing import join_gates, pack_lstm
from dual_precision.models import build
from dual_precision.precision import modes
from dual_precision.primitives.native import planes as native
from experiments.benchmark.comparison import (
    Bar,
    Times,
    judge_bars,
    median_and_range,
    relative_difference,
    speed_ratio,
)
from experiments.benchmark.inference_peers import Request, torch_conditions, torch_lstm, torch_mlp
from experiments.benchmark.machine import last_level_cache
from experiments.benchmark.timing import time_rounds, timed
from experiments.figures.tables import markdown_table

IMAGE = (28, 28, 1)
HIDDEN = 2048
PLANES = (1, 2, 4, 8)
ACTIVATIONS = 8
REQUESTS = 30  # of a program in a round, by default
WARM, WARM_SECONDS = 3, 0.05  # at least so many requests, and so long, before those that count
COLD_REQUESTS = 10
EVICT = 64 << 20  # bytes, at least, that go through the caches to evict what was there
CACHES = (
    "Warm requests follow each other: planes and int8 weights (2.5 MB a plane of the MLP, 4.2 of"
    " the LSTM)\nstay in the last-level cache as far as they fit, float32's 80 and 134 MB do not."
    ' "cold": the same\nrequests, the caches evicted before each. The bars are of the warm ones.'
)

JAX, TORCH, INT8 = "JAX float32", "PyTorch float32", "PyTorch dynamic int8"
XLA = ", XLA alone"  # without the compiled CPU kernel
ONE, EIGHT, CELL = "MLP 784-4096-4096-10, batch 1", "the MLP, batch 8", "LSTM(2048) step, batch 1"


def planes_name(planes: int) -> str:
    """What a table calls a number of planes."""
    return f"w{planes}a{ACTIVATIONS}"


def _against(group: str, planes: int, least: float, goal: float, *others: str) -> list[Bar]:
    program = planes_name(planes)
    what = f"{group}: {program} against"
    return [Bar(f"{what} {other}", program, other, least, goal) for other in others]


BARS = {
    ONE: [
        *_against(ONE, 1, 8, 20, JAX, TORCH),
        *_against(ONE, 2, 4, 10, JAX, TORCH),
        *_against(ONE, 4, 2.2, 6, JAX, TORCH),
        *_against(ONE, 4, 1.6, 1.9, planes_name(8)),
    ],
    EIGHT: _against(EIGHT, 1, 2, 6, JAX, TORCH),
    CELL: _against(CELL, 2, 3, 8, JAX, TORCH),
}


def forms() -> dict[str, str | None]:
    """Suffix of a row -> `form` of plane_product: the fastest, and that of XLA where it differs."""
    return {"": None, XLA: "xla"} if native.available() else {"": None}


def plane_requests(
    build_form: Callable[[str | None], nn.Module], *given: Any
) -> dict[str, Request]:
    """A request with every number of planes to the network in every form; `given` goes into it."""
    found: dict[str, Request] = {}
    for suffix, form in forms().items():
        network = build_form(form)
        for name in map(planes_name, PLANES):
            found[name + suffix] = partial(jax.jit(partial(network.apply, precision=name)), *given)
    return found


def mlp_programs(rows: int) -> dict[str, Request]:
    """One request of `rows` images by each program."""
    model: Any = build("mlp_4096", num_classes=10, modes=modes())
    images = jax.random.normal(jax.random.key(1), (rows, *IMAGE))
    variables = jax.jit(partial(model.init, precision="float"))(jax.random.key(0), images)
    variables = {"batch_stats": {}, **variables}
    plain = jax.jit(partial(model.apply, precision="float"))
    requests: dict[str, Request] = {JAX: partial(plain, variables, images)}
    layered, packed = to_bit_layers(model, variables, jax.ShapeDtypeStruct(IMAGE, jnp.uint8))

    def build_form(form: str | None) -> nn.Module:
        return layered.clone(dense=partial(layered.dense, form=form))

    requests |= plane_requests(build_form, packed, images)
    params = variables["params"]
    layers = [params[name] for name in ("dense1", "dense2", "classifier")]
    return requests | torch_mlp(layers, np.asarray(images).reshape(rows, -1), TORCH, INT8)


def plain_step(
    kernels: jax.Array, bias: jax.Array, carry: tuple[jax.Array, jax.Array], x: jax.Array
) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
    """A step in float32 with the kernels of all gates in one [in + H, 4H], as a service keeps them.

    The cell of flax joins its eight kernels at every step, which takes ten times as long.
    """
    c, h = carry
    i, f, g, o = jnp.split(jnp.concatenate([x, h], axis=1) @ kernels + bias[None], 4, axis=1)
    c = nn.sigmoid(f) * c + nn.sigmoid(i) * jnp.tanh(g)
    h = nn.sigmoid(o) * jnp.tanh(c)
    return (c, h), h


def stack_gates(params: Mapping[str, Any]) -> tuple[jax.Array, jax.Array]:
    """The kernels [in + H, 4H] and biases [4H] of an LSTM cell of flax, for `plain_step`."""
    inputs, hidden, bias = join_gates(params)
    return jnp.concatenate([inputs, hidden]), bias


def lstm_programs() -> dict[str, Request]:
    """One step of a cell of 2048 units, for one sequence."""
    cell = nn.OptimizedLSTMCell(HIDDEN)
    keys = jax.random.split(jax.random.key(0), 4)
    x, c, h = (jax.random.normal(key, (1, HIDDEN)) for key in keys[:3])
    params = jax.jit(cell.init)(keys[3], (c, h), x)["params"]
    requests: dict[str, Request] = {
        JAX: partial(jax.jit(plain_step), *stack_gates(params), (c, h), x)
    }
    packed = {"params": pack_lstm(params)}
    requests |= plane_requests(lambda form: BitLSTMCell(HIDDEN, form=form), packed, (c, h), x)
    given = (np.asarray(x), np.asarray(h), np.asarray(c))
    return requests | torch_lstm(params, given, TORCH, INT8)


GROUPS: dict[str, Callable[[], dict[str, Request]]] = {
    ONE: partial(mlp_programs, 1),
    EIGHT: partial(mlp_programs, 8),
    CELL: lstm_programs,
}
COLD = (ONE, CELL)  # the groups that are measured with cold caches too


def relative_errors(requests: Mapping[str, Request]) -> dict[str, float]:
    """|y - y of JAX float32| / |y of JAX float32| of every program: they compute the same."""
    exact = _output(requests[JAX]())
    return {name: relative_difference(_output(run()), exact) for name, run in requests.items()}


def _output(result: Any) -> np.ndarray:
    """Logits, or what an LSTM gives out."""
    leaf = result[1] if isinstance(result, tuple) else result
    return np.asarray(leaf)


def warm_milliseconds(run: Request, steps: int) -> float:
    """Of a request, the median: the weights are where the last request left them.

    What ran before has filled the caches, and threads of its pool may still wait busily.
    """
    start, warm = time.perf_counter(), 0
    while warm < WARM or time.perf_counter() - start < WARM_SECONDS:
        jax.block_until_ready(run())
        warm += 1
    return float(np.median([timed(run)[0] for _ in range(steps)]))


def cold_milliseconds(run: Request, steps: int, buffer: np.ndarray) -> float:
    """Of a request before which the caches were filled with `buffer`, the median."""
    taken = []
    for _ in range(steps):
        np.add(buffer, 1, out=buffer)
        taken.append(timed(run)[0])
    return float(np.median(taken))


def time_requests(
    requests: Mapping[str, Request], repeats: int, steps: int, cold_steps: int
) -> tuple[Times, Times]:
    """Milliseconds of a request, of each program in each round; warm, and with cold caches.

    Args:
      cold_steps: requests with cold caches; with 0 nothing is measured so.
    """
    buffer = np.zeros(max(EVICT, 2 * (last_level_cache() or 0)), np.uint8)
    programs = {
        (name, "warm"): partial(warm_milliseconds, run, steps) for name, run in requests.items()
    }
    if cold_steps:
        programs |= {
            (name, "cold"): partial(cold_milliseconds, run, cold_steps, buffer)
            for name, run in requests.items()
        }
    times = time_rounds(programs, repeats)
    warm, cold = (
        {name: each for (name, kind), each in times.items() if kind == wanted}
        for wanted in ("warm", "cold")
    )
    return warm, cold


def requests_table(
    times: Times, off: Mapping[str, float], cold: Times = MappingProxyType({})
) -> str:
    """One line per program, in Markdown; the last column names what is faster than it, warm.

    Args:
      times, cold: milliseconds of a request, warm and with cold caches; the latter may be missing.
      off: see `relative_errors`.
    """
    others = [name for name in (JAX, TORCH, INT8) if name in times]
    rows = []
    for name, rounds in times.items():
        ratios = {other: speed_ratio(times, name, other) for other in others}
        row = {"program": name, "warm": median_and_range(rounds, digits=3), **ratios}
        if cold:
            row["cold"] = np.median(cold[name])
            row |= {f"cold {other}": speed_ratio(cold, name, other) for other in others}
        row["off"] = 100 * off[name]
        row["slower"] = ", ".join(o for o, r in ratios.items() if o != name and r and r < 1)
        rows.append(row)
    columns = [
        ("program", "program", "{}"),
        ("warm", "ms, median (min..max)", "{}"),
        *((name, f"x {name}", "{:.2f}") for name in others),
        ("cold", "cold: ms", "{:.3f}"),
        *((f"cold {name}", f"cold: x {name}", "{:.2f}") for name in others),
        ("off", "off float, %", "{:.1f}"),
        ("slower", "slower than", "{}"),
    ]
    return markdown_table(rows, columns, left=("program", "slower"))


def measure_group(group: str, repeats: int, steps: int) -> tuple[Times, Times, list[str]]:
    """Runs a group, printing its table; its times, warm and cold, and a line for every bar."""
    print(f"\n{group}: preparing", flush=True)
    requests = GROUPS[group]()
    off = relative_errors(requests)  # compiles
    cold_steps = min(steps, COLD_REQUESTS) if group in COLD else 0
    warm, cold = time_requests(requests, repeats, steps, cold_steps)
    print(f"\n{requests_table(warm, off, cold)}\n", flush=True)
    return warm, cold, judge_bars(BARS[group], warm, cold)


def planes_conditions() -> dict[str, Any]:
    """What else the times depend on, of this machine and the peers."""
    cache = last_level_cache()
    return {
        "last-level cache": f"{cache / 2**20:g} MiB" if cache else "unknown",
        "compiled CPU kernel": native.available(),
        **torch_conditions(),
    }
