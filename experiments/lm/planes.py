"""A recurrent network that was trained in float, read at 1 to 8 planes: its loss, and its time.

    python -m experiments.lm --mode=float --model=lstm
    python -m experiments.lm planes --workdir=runs/... [--limit=65536] [--program_bytes=64]

No training and no calibration in between, as PrecisionBatching has it (arXiv 2003.00822): its row
of a language model. The time is that of a byte of one text, `program_bytes` of them in one program,
beside JAX float32.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from dual_precision.deploy.planes.bit_layers import to_bit_layers
from dual_precision.deploy.planes.packing import STORED
from dual_precision.precision import FLOAT_NAME
from dual_precision.tasks.language import NextByte, perplexity
from dual_precision.training.metrics import evaluate
from experiments.benchmark.timing import time_rounds, timed_request
from experiments.figures.tables import Rows, markdown_table
from experiments.lm.trained import read_trained
from experiments.methods.planes import activation_widths

_COLUMNS = (
    ("precision", "precision", "{}"),
    ("bits", "bits per byte", "{:.4f}"),
    ("perplexity", "perplexity", "{:.4f}"),
    ("more", "perplexity to float %", "{:+.2f}"),
    ("ms", "ms a byte", "{:.3f}"),
    ("ratio", "float / it", "{:.2f}"),
)
PROGRAMS = 8  # of a timed request
PROGRAM_BYTES = 64  # to start a program takes as long as four to five bytes at 4 planes


def rows_of_planes(
    model: nn.Module,
    variables: Mapping[str, Any],
    task: NextByte,
    text: np.ndarray | None,
    precisions: Sequence[str],
    repeats: int = 0,
    program_bytes: int = PROGRAM_BYTES,
) -> list[dict[str, Any]]:
    """A row for float, then one for each of the precisions, such as "w4a8".

    Args:
      text: None measures no loss; repeats: rounds of timing, 0 is none; program_bytes: of one text,
        in one timed program.
    """
    layered, planes = to_bit_layers(model, variables, task.example)
    networks = {FLOAT_NAME: (model, variables)} | dict.fromkeys(precisions, (layered, planes))
    rows: list[dict[str, Any]] = [{"precision": name} for name in networks]
    if text is not None:
        for row, (network, tree) in zip(rows, networks.values(), strict=True):
            bits = evaluate(network, tree, text, task=task, precision=row["precision"])["bits"]
            row |= {"bits": bits, "perplexity": perplexity(bits)}
            row["more"] = 100 * (perplexity(bits - rows[0]["bits"]) - 1)
    if repeats:
        bytes_of = {name: next_bytes(*own, name, program_bytes) for name, own in networks.items()}
        times = time_rounds(
            {name: partial(timed_request, run, PROGRAMS) for name, run in bytes_of.items()}, repeats
        )
        whole = np.array(times[FLOAT_NAME])
        for row in rows:
            own = np.array(times[row["precision"]])
            row |= {
                "ms": float(np.median(own)) / program_bytes,
                "ratio": float(np.median(whole / own)),
            }
    return rows


def next_bytes(
    model: Any, variables: Mapping[str, Any], precision: str, count: int
) -> Callable[[], None]:
    """So many bytes of one text in one program, each the likeliest behind the one before; the next
    call goes on from there."""

    def one(_: Any, carried: Any) -> Any:
        held, token, carry = carried
        logits, carry = model.apply(held, token, carry, precision=precision)
        return held, jnp.argmax(logits, axis=-1).astype(jnp.uint8), carry

    run = jax.jit(lambda *given: jax.lax.fori_loop(0, count, one, given)[1:])
    held = jax.device_put(variables)
    state: list[Any] = [jnp.zeros((1, 1), jnp.uint8), model.empty_carry(1)]

    def request() -> None:
        state[:] = run(held, *state)
        np.asarray(state[0])

    return request


def planes_command(
    *,
    workdir: str,
    split: str,
    activations: Sequence[str],
    repeats: int,
    program_bytes: int,
    limit: int | None = None,
    data_dir: str | None = None,
    archive: str | None = None,
) -> None:
    """The sub-command `planes`; its arguments are the flags."""
    widths = activation_widths(activations)
    if program_bytes < 1:
        raise ValueError(f"--program_bytes={program_bytes}: expected 1 or more")
    trained = read_trained(workdir, data_dir, archive)
    if trained.config.model != "lstm" or trained.config.mode != FLOAT_NAME:
        raise ValueError(
            f"a run of --mode={trained.config.mode} --model={trained.config.model}: expected"
            " --mode=float --model=lstm"
        )
    precisions = [f"w{n}a{bits}" for bits in widths for n in range(1, STORED + 1)]
    part = trained.part(split, limit)
    rows = rows_of_planes(
        trained.model, trained.variables, trained.task, part, precisions, repeats, program_bytes
    )
    print(f"{len(part):,} bytes of the {split} text of {trained.config.dataset}\n")
    print(planes_table(rows))


def planes_table(rows: Rows) -> str:
    """What was measured, in Markdown."""
    return markdown_table(rows, _COLUMNS)
