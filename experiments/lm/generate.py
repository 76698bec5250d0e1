"""Text from a packed decoder, as it comes; the first byte takes the seconds of compiling.

    python -m experiments.lm generate FILE --precision=draft --prompt="It is a truth"

"draft" is the text of the mode with the most bits, byte for byte; the one
with the fewest drafts it.
"""

import sys
import time

from dual_precision.deploy import Generator
from dual_precision.deploy.generation.checks import DRAFT
from dual_precision.deploy.generation.generator import Tally


def generate_command(
    file: str,
    *,
    prompt: str,
    precision: str = DRAFT,
    count: int | None = None,
    temperature: float = 0.0,
    seed: int | None = None,
    drafts: int | None = None,
) -> None:
    """The sub-command `generate`: writes the prompt and what follows it.

    Args:
      file: see `save_packed`.
      prompt: text, whose bytes are UTF-8.
      precision: a mode of the file, or draft.
      count: bytes to add; None is 120, or what the context leaves.
      temperature: 0 is the most likely byte; else bytes are sampled.
      seed: of the samples, if there are any.
      drafts: bytes of a round of draft, 1 to 7; by default as many as pay.
    """
    generator = Generator(file)
    tally = Tally()
    how = {"precision": precision, "temperature": temperature, "seed": seed, "drafts": drafts}
    given = prompt.encode()
    if count is None:
        count = max(min(120, generator.context - len(given)), 1)
    parts = generator.stream(given, count, **how, tally=tally)
    out, start = sys.stdout.buffer, time.perf_counter()
    out.write(given)
    for part in parts:
        out.write(part)
        out.flush()
    seconds = time.perf_counter() - start
    out.write(b"\n")
    out.flush()
    line = f"{tally.bytes} bytes in {tally.passes} passes, {seconds:.1f} s with compiling"
    if tally.rounds:
        line += f"; {tally.kept} of {tally.drafted} drafts kept"
    print(line, file=sys.stderr)
