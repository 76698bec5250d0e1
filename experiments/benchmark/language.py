"""What a byte costs a decoder on planes: low beside high, drafted, its products, PyTorch int8.

    python -m experiments.benchmark language [--decoder=FILE] [--repeats=7] [--steps=20]

Two CPU cores, one minute. Without --decoder the model has 12.9 M weights, drawn at random: good for
times, not for how many drafts agree.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dual_precision import modes
from dual_precision.deploy import Generator
from dual_precision.deploy.file.writer import check_replaceable
from dual_precision.deploy.generation.drafting import DraftCosts
from dual_precision.deploy.generation.programs import (
    MOST_ROWS,
    ROUNDS,
    TOGETHER,
    Choice,
    plain_bytes,
    rounds_of_drafts,
)
from dual_precision.models import build
from dual_precision.primitives.bitserial import plane_product
from experiments.benchmark.machine import describe_machine
from experiments.benchmark.timing import time_rounds, timed_request
from experiments.workdir import write_whole

STEPS = 20
LOW, HIGH = (f"{mode}, a byte of {TOGETHER} in one program" for mode in ("low", "high"))
DRAFTED = [f"a round of {drafts}, of {ROUNDS} in one program" for drafts in range(1, MOST_ROWS)]
PROMPT = b"It is a truth universally acknowledged"


def measure_language(
    *,
    decoder: str | None = None,
    repeats: int = 7,
    steps: int | None = None,
    out: str | None = None,
) -> None:
    """The sub-command `language`: prints a table of milliseconds and ratios to high.

    Raises:
      ValueError: `out` cannot be written.
    """
    if out:
        check_replaceable(out)
    generator = Generator(decoder) if decoder else random_generator()
    programs: dict[str, Callable[[], object]] = {
        LOW: some_bytes(generator, generator.low, TOGETHER),
        HIGH: some_bytes(generator, generator.high, TOGETHER),
        "low, one byte by itself": some_bytes(generator, generator.low, 1),
        "high, one byte by itself": some_bytes(generator, generator.high, 1),
        "high, products alone": products_alone(generator, generator.high),
        "low, products alone": products_alone(generator, generator.low),
        **{name: draft_rounds(generator, i + 1) for i, name in enumerate(DRAFTED)},
    }
    if (peer := torch_products(generator)) is not None:
        programs["PyTorch dynamic int8, products alone"] = peer
    count = steps or STEPS
    about = {
        **describe_machine(), "decoder": decoder or "random", "repeats": repeats, "steps": count,
    }  # fmt: skip
    print(", ".join(f"{key} {value}" for key, value in about.items()), end="\n\n", flush=True)
    units = {LOW: TOGETHER, HIGH: TOGETHER, **dict.fromkeys(DRAFTED, ROUNDS)}

    def request(name: str) -> Callable[[], float]:
        run, each = programs[name], units.get(name, 1)
        return lambda: timed_request(run, count) / each

    times = time_rounds({name: request(name) for name in programs}, repeats)
    print(table_of(times))
    print(f"\n{generator.weights:,} weights on planes: {costs_of(times)}")
    if out:
        found = {"about": about, "milliseconds": times}
        write_whole(Path(out), json.dumps(found, indent=2) + "\n")


def table_of(times: dict[str, list[float]]) -> str:
    """Markdown: milliseconds, and the ratio of the time of high to each, medians of the rounds."""
    high = np.array(times[HIGH])
    lines = ["| what | ms | high / it |", "|---|---|---|"]
    for name, found in times.items():
        ratio = float(np.median(high / np.array(found)))
        lines.append(f"| {name} | {np.median(found):.2f} | {ratio:.2f} |")
    return "\n".join(lines)


def costs_of(times: dict[str, list[float]]) -> DraftCosts:
    """What drafting costs by these times."""
    high = np.array(times[HIGH])
    shares = (float(np.median(np.array(times[name]) / high)) for name in DRAFTED)
    return DraftCosts(tuple(round(share, 2) for share in shares))


def random_generator() -> Generator:
    """A decoder of 12.9 M weights."""
    model = build("transformer_512", modes=modes(low="w2a8", high="w8a8"))
    text = jnp.zeros((1, 8), jnp.uint8)
    init = jax.jit(lambda key: model.init(key, text, precision="high"))
    example = jax.ShapeDtypeStruct((model.context,), jnp.uint8)
    return Generator.of(model, init(jax.random.key(0)), example)


def _greedy() -> Choice:
    zero = jnp.zeros(1, jnp.uint32)
    return Choice(jax.random.key(0), zero, jnp.float32(1), True)


def _again(generator: Generator, run: Callable[[Any, Any], tuple[Any, Any]]) -> Callable[[], None]:
    """A request that always goes on from the same place of one text: the caches are donated."""
    token, cache = generator.filled([PROMPT], generator.high)
    length, held = np.asarray(cache.length), [cache]

    def request() -> None:
        own = held[0]
        found, after = run(token, type(own)(own.keys, own.values, jnp.asarray(length)))
        held[0] = after
        np.asarray(found)

    return request


def some_bytes(generator: Generator, mode: str, count: int) -> Callable[[], None]:
    """So many bytes of a mode in one program, from the last one to the next on the host."""
    choice, number = _greedy(), np.int32(count)

    def run(token: Any, cache: Any) -> tuple[Any, Any]:
        found, _, after = plain_bytes(
            generator.variables, token, cache, choice, number,
            model=generator.model, precision=mode,
        )  # fmt: skip
        return found, after

    return _again(generator, run)


def draft_rounds(generator: Generator, drafts: int) -> Callable[[], None]:
    """ROUNDS rounds in one program, whatever they keep."""
    choice, both = _greedy(), {"low": generator.low, "high": generator.high}
    lacking, most = np.full(1, ROUNDS * MOST_ROWS, np.int32), np.int32(ROUNDS)

    def run(token: Any, cache: Any) -> tuple[Any, Any]:
        found, _, _, after = rounds_of_drafts(
            generator.variables, token, cache, choice, lacking, most,
            model=generator.model, drafts=drafts, **both,
        )  # fmt: skip
        return found, after

    return _again(generator, run)


def _products(generator: Generator) -> list[tuple[Any, ...]]:
    """(words, scales, inputs) of every product on planes."""
    found = []
    for path, leaf in jax.tree_util.tree_flatten_with_path(generator.variables)[0]:
        if path[-1].key == "words":
            own = generator.variables
            for key in path[:-1]:
                own = own[key.key]
            found.append((leaf, own["scales"], leaf.shape[1] * 32))
    return found


def products_alone(generator: Generator, mode: str) -> Callable[[], object]:
    """The products of one byte in one program, of inputs that are there: what is left of a byte
    without them is norms, attention, choosing and starting."""
    products = _products(generator)
    planes = generator.model.modes.default[mode].weights
    inputs = [jnp.ones((1, size), jnp.float32) for _, _, size in products]

    @jax.jit
    def run(products: Any, inputs: Any) -> jax.Array:
        total = jnp.float32(0)
        for (words, scales), x in zip(products, inputs, strict=True):
            total += plane_product(x + total, words, scales, planes, 8)[0, 0] * 0.0
        return total

    given = [(words, scales) for words, scales, _ in products]
    return lambda: jax.block_until_ready(run(given, inputs))


def torch_products(generator: Generator) -> Callable[[], None] | None:
    """The same products in PyTorch, dynamic int8, one after the other on one thread; None
    without torch. In a process without XLA, two threads take 0.76 of the time of one."""
    try:
        import torch
    except ImportError:
        print("PyTorch is not here: install the extra [benchmark] for its row\n")
        return None
    import warnings

    torch.set_num_threads(1)  # its threads and those of XLA would wait for each other
    layers = [
        torch.nn.Sequential(torch.nn.Linear(size, words.shape[2], bias=False))
        for words, _, size in _products(generator)
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantized = [
            torch.ao.quantization.quantize_dynamic(layer, {torch.nn.Linear}, dtype=torch.qint8)
            for layer in layers
        ]
    inputs = [torch.ones(1, size) for _, _, size in _products(generator)]

    def run() -> None:
        with torch.inference_mode():
            for layer, x in zip(quantized, inputs, strict=True):
                layer(x)

    return run
