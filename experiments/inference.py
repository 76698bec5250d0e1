"""Measures inference: bit planes against float32 and int8, and switching modes under load.

    python -m experiments.benchmark inference --repeats=7 --steps=30

The networks are PrecisionBatching's (Lam et al. 2020): an MLP 784-4096-4096-10 and an LSTM(2048),
with random weights: a product takes the same time whatever it multiplies. PyTorch is measured if
it is installed. Every round runs every program of a group in turning order; a figure is the median
over rounds of the median request, a ratio the median over the rounds' own ratios.
"""

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from tqdm import tqdm

from dual_precision.deploy.bit_layers import BitLSTMCell, pack_lstm, to_bit_layers
from dual_precision.models import build
from dual_precision.precision import modes
from dual_precision.primitives import native
from experiments import torch_peers

IMAGE = (28, 28, 1)
HIDDEN = 2048
PLANES = (1, 2, 4, 8)
ACTIVATIONS = 8
WARM = 3  # requests before a round's own: what ran before has filled the caches

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
    """The kernels [in + H, 4H] and biases [4H] of flax's LSTM cell, gates i, f, g, o."""
    sides = [jnp.concatenate([params[s + gate]["kernel"] for gate in "ifgo"], 1) for s in "ih"]
    return jnp.concatenate(sides), jnp.concatenate([params[f"h{g}"]["bias"] for g in "ifgo"])


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
    """Median milliseconds of a request."""
    taken = []
    for _ in range(WARM + steps):
        start = time.perf_counter()
        jax.block_until_ready(run())
        taken.append(time.perf_counter() - start)
    return 1e3 * float(np.median(taken[WARM:]))


def time_rounds(requests: Mapping[str, Request], repeats: int, steps: int) -> dict[str, list]:
    """Milliseconds of a request, of each program in each round."""
    names = list(requests)
    times: dict[str, list[float]] = {name: [] for name in names}
    with tqdm(total=len(names) * repeats, disable=None, leave=False) as bar:
        for turn in range(repeats):
            first = turn % len(names)
            for name in names[first:] + names[:first]:
                bar.set_description(name)
                times[name].append(one_round(requests[name], steps))
                bar.update()
    return times


def speed_ratio(times: Times, name: str, other: str) -> float | None:
    """How many times as fast as `other`, median over rounds; None where one is missing."""
    if name not in times or other not in times:
        return None
    return float(np.median(np.divide(times[other], times[name])))


def table(times: Times, off: Mapping[str, float]) -> str:
    """One line per program, in Markdown; the last column names what is faster than it."""
    others = [name for name in (JAX, TORCH, INT8) if name in times]
    lines = [
        f"| program | ms, median (min..max) | {' | '.join(f'x {name}' for name in others)}"
        " | off float's | slower than |",
        f"|:--|--:|{'--:|' * len(others)}--:|:--|",
    ]
    for name, own in times.items():
        ratios = {other: speed_ratio(times, name, other) for other in others}
        slower = [o for o, ratio in ratios.items() if o != name and ratio and ratio < 1]
        cells = [
            name,
            f"{np.median(own):.3f} ({min(own):.3f}..{max(own):.3f})",
            *(f"{ratio:.2f}" for ratio in ratios.values()),
            f"{100 * off[name]:.1f} %",
            ", ".join(slower),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def judge(times: Mapping[str, Times]) -> list[str]:
    """One line per bar, with its figure and a verdict."""
    lines = []
    for bar in BARS:
        what = f"{bar.group}: {bar.program} against {bar.other}"
        ratio = speed_ratio(times[bar.group], bar.program, bar.other)
        if ratio is None:
            lines.append(f"{what}: not measured")
            continue
        verdict = verdict_of(ratio >= bar.least, ratio >= bar.goal)
        lines.append(f"{what}: {ratio:.2f} x (bar {bar.least}, goal {bar.goal}) {verdict}")
    return lines


def verdict_of(passed: bool, goal: bool) -> str:
    """As `benchmark train` says it."""
    return "PASS, goal met" if goal else "PASS" if passed else "short"


def measure(repeats: int, steps: int) -> tuple[dict[str, Times], list[str]]:
    """Runs every group, printing its table; the times, and a line for every bar."""
    times: dict[str, Times] = {}
    for group, programs in GROUPS.items():
        print(f"\n{group}: preparing", flush=True)
        requests = programs()
        off = differences(requests)  # compiles
        times[group] = time_rounds(requests, repeats, steps)
        print(f"\n{table(times[group], off)}", flush=True)
    return times, judge(times)
