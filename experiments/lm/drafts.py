"""Whether drafted text is the text of high, byte for byte, and how many drafts it keeps.

    python -m experiments.lm drafts FILE --dataset=austen [--prompts=1000] [--count=32]
    python -m experiments.lm drafts FILE --dataset=austen --prompts=8 --count=96 --together=1

Prompts are parts of the held-out text, of 1 byte to what the context leaves. Each is gone on with
by high alone, and in drafts, once for each number of them in a round and once as many as pay. Times
are those of the first few prompts, with what it takes to read them; the second command has those of
one text at a time.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from tqdm import tqdm

from dual_precision.data.text import load_text
from dual_precision.deploy import Generator
from dual_precision.deploy.generation.generator import Tally
from experiments.benchmark.timing import time_rounds, timed
from experiments.figures.tables import markdown_table

TIMED = 8  # prompts, or those that go together if they are more
_COLUMNS = (
    ("drafts", "drafts of a round", "{}"),
    ("prompts", "prompts", "{:,}"),
    ("alike", "the text of high", "{:,}"),
    ("kept", "drafts kept %", "{:.1f}"),
    ("bytes", "bytes of a round", "{:.2f}"),
    ("ms", "ms a byte", "{:.3f}"),
    ("ratio", "high / it", "{:.2f}"),
)


def prompts_of(text: np.ndarray, count: int, longest: int, seed: int = 0) -> list[bytes]:
    """So many parts of a text, of 1 to `longest` bytes.

    Raises:
      ValueError: the text is no longer than that.
    """
    if len(text) <= longest:
        raise ValueError(
            f"a held-out text of {len(text):,} bytes: expected more than {longest:,}, the longest"
            " prompt; take a longer text, or a larger --count, which leaves less to prompts"
        )
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
    together: int = 25,
) -> list[dict[str, Any]]:
    """A row for each number of drafts: texts like those of high alone, drafts that were kept.

    Args:
      count: bytes behind each prompt.
      drafts: of a round; None is as many as pay.
      together: texts at once.
    """
    parts = [*_in_parts(prompts, together)]
    expected = [
        generator.generate(own, count, precision=generator.high, temperature=temperature)
        for own in tqdm(parts, desc="high", disable=None)
    ]
    rows = []
    for number in drafts:
        tally, alike = Tally(), 0
        for own, wanted in zip(tqdm(parts, desc=f"{number}", disable=None), expected, strict=True):
            how = _drafted(generator, number)
            found = generator.generate(own, count, temperature=temperature, tally=tally, **how)
            alike += sum(a == b for a, b in zip(found, wanted, strict=True))
        row: dict[str, Any] = {"drafts": number or "adaptive", "prompts": len(prompts)}
        row["alike"] = alike
        if tally.drafted:
            row["kept"] = 100 * tally.kept / tally.drafted
        if number and tally.drafted:
            row["bytes"] = 1 + number * tally.kept / tally.drafted
        rows.append(row)
    return rows


def _drafted(generator: Generator, number: int | None) -> dict[str, Any]:
    """Arguments that draft: with costs it adapts for several texts too, where it would take plain
    bytes."""
    return {"drafts": number} if number else {"costs": generator.costs}


def _in_parts(prompts: Sequence[bytes], together: int) -> Iterator[list[bytes]]:
    for first in range(0, len(prompts), together):
        yield [*prompts[first : first + together]]


def times_of_drafts(
    generator: Generator,
    prompts: Sequence[bytes],
    count: int,
    drafts: Sequence[int | None],
    repeats: int,
    temperature: float = 0.0,
    together: int = 25,
) -> list[dict[str, float]]:
    """`ms` a byte of a text for each number of drafts, and the `ratio` of the time of high to it,
    medians of the rounds; that of high alone comes first. Arguments as of `rows_of_drafts`."""
    parts = [*_in_parts(prompts[: max(TIMED, together)], together)]
    size = count * sum(map(len, parts))

    def request(**how: Any) -> Callable[[], float]:
        def generate() -> None:
            for own in parts:
                generator.generate(own, count, temperature=temperature, **how)

        return lambda: timed(generate)[0] / size

    requests = {"high": request(precision=generator.high)}
    requests |= {str(number): request(**_drafted(generator, number)) for number in drafts}
    for once in requests.values():
        once()
    times = time_rounds(requests, repeats)
    high = np.array(times["high"])
    return [
        {"ms": float(np.median(own)), "ratio": float(np.median(high / np.array(own)))}
        for own in times.values()
    ]


def drafts_command(
    file: str,
    *,
    dataset: str,
    prompts: int,
    temperature: float,
    together: int,
    repeats: int,
    count: int | None = None,
    data_dir: str | None = None,
    archive: str | None = None,
) -> None:
    """The sub-command `drafts`; its arguments are the flags.

    Raises:
      ValueError: no prompt, more bytes behind one than the context of the network, or a text
        that is no longer than a prompt.
    """
    generator = Generator(file)
    count = 32 if count is None else count
    longest = generator.context - count
    if prompts < 1 or together < 1 or longest < 1:
        raise ValueError(
            f"prompts={prompts}, together={together} and count={count}: expected 1 or more, and"
            f" fewer bytes than the context of {generator.context}"
        )
    text = load_text(dataset, data_dir=data_dir, archive=archive).test
    own = prompts_of(text, prompts, longest)
    numbers = (*range(1, 8), None)
    rows = rows_of_drafts(generator, own, count, numbers, temperature, together)
    if repeats:
        rows = [{"drafts": "none, high alone", "prompts": len(own)}, *rows]
        times = times_of_drafts(generator, own, count, numbers, repeats, temperature, together)
        rows = [row | time for row, time in zip(rows, times, strict=True)]
    print(markdown_table(rows, _COLUMNS))
