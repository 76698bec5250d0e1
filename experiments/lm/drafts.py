"""Whether drafted text is the text of high, byte for byte, and how many drafts it keeps.

    python -m experiments.lm drafts FILE --dataset=austen [--prompts=1000] [--count=32]

Prompts are parts of the held-out text, of 1 byte to what the context leaves. Each is gone on with
by high alone, and in drafts, once for each number of them in a round and once as many as pay.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from tqdm import tqdm

from dual_precision.data.text import load_text
from dual_precision.deploy import Generator
from dual_precision.deploy.generation.generator import Tally
from experiments.figures.tables import markdown_table

TEXTS_AT_ONCE = 25
_COLUMNS = (
    ("drafts", "drafts of a round", "{}"),
    ("prompts", "prompts", "{:,}"),
    ("alike", "the text of high", "{:,}"),
    ("kept", "drafts kept %", "{:.1f}"),
    ("bytes", "bytes of a round", "{:.2f}"),
)


def prompts_of(text: np.ndarray, count: int, longest: int, seed: int = 0) -> list[bytes]:
    """So many parts of a text, of 1 to `longest` bytes."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, longest + 1, count)
    starts = rng.integers(0, len(text) - longest, count)
    return [text[a : a + n].tobytes() for a, n in zip(starts, lengths, strict=True)]


def rows_of_drafts(
    generator: Generator,
    prompts: Sequence[bytes],
    count: int,
    drafts: Sequence[int | None],
    temperature: float = 0.0,
) -> list[dict[str, Any]]:
    """A row for each number of drafts: texts like those of high alone, drafts that were kept.

    Args:
      count: bytes behind each prompt.
      drafts: of a round; None is as many as pay.
    """
    parts = [*_in_parts(prompts)]
    expected = [
        generator.generate(own, count, precision=generator.high, temperature=temperature)
        for own in tqdm(parts, desc="high", disable=None)
    ]
    rows = []
    for number in drafts:
        tally, alike = Tally(), 0
        for own, wanted in zip(tqdm(parts, desc=f"{number}", disable=None), expected, strict=True):
            found = generator.generate(
                own, count, drafts=number, temperature=temperature, tally=tally
            )
            alike += sum(a == b for a, b in zip(found, wanted, strict=True))
        row: dict[str, Any] = {"drafts": number or "adaptive", "prompts": len(prompts)}
        row["alike"] = alike
        if tally.drafted:
            row["kept"] = 100 * tally.kept / tally.drafted
        if number and tally.drafted:
            row["bytes"] = 1 + number * tally.kept / tally.drafted
        rows.append(row)
    return rows


def _in_parts(prompts: Sequence[bytes]) -> Iterator[list[bytes]]:
    for first in range(0, len(prompts), TEXTS_AT_ONCE):
        yield [*prompts[first : first + TEXTS_AT_ONCE]]


def drafts_command(
    file: str,
    *,
    dataset: str,
    prompts: int,
    temperature: float,
    count: int | None = None,
    data_dir: str | None = None,
    archive: str | None = None,
) -> None:
    """The sub-command `drafts`; its arguments are the flags.

    Raises:
      ValueError: no prompt, or more bytes behind one than the context of the network.
    """
    generator = Generator(file)
    count = 32 if count is None else count
    longest = generator.context - count
    if prompts < 1 or longest < 1:
        raise ValueError(
            f"prompts={prompts} and count={count}: expected 1 or more, and fewer bytes than the"
            f" context of {generator.context}"
        )
    text = load_text(dataset, data_dir=data_dir, archive=archive).test
    own = prompts_of(text, prompts, longest)
    rows = rows_of_drafts(generator, own, count, (*range(1, 8), None), temperature)
    print(markdown_table(rows, _COLUMNS))
