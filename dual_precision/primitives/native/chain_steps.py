"""What follows a sum number by number, as steps on slots, in few passes over a tile.

A slot holds the numbers of a tile: slot 0 is the sums', the next ones are the operands', the others
are of one step each. A step is a pass of tiles.h: it reads slots and writes one. Most of them read
what the step before wrote and what nobody else reads; `in_few_passes` makes one pass of those that
have one together. Every number is computed by the same operations in the same order.
"""

import itertools
from collections import Counter
from collections.abc import Container, Sequence
from typing import NamedTuple

# The order of tiles.h, and how many slots each reads: a * b, a + b, a - b, max, min, round to even,
# min(max(a, b), c), a * b + c, a * b - c, c - a * b with one rounding each; the sums, as float32;
# then those of FUSIONS; the results come last.
OPERATIONS = {
    **dict.fromkeys(("multiply", "add", "subtract", "max", "min"), 2),
    **{"round": 1, "clamp": 3, "fused": 3, "fused minus": 3, "minus fused": 3},
    **{"sums": 0, "normalized sums": 3, "add max": 3},
    **{"float32": 1, "uint8": 1, "codes": 4, "codes of max": 5},
}
MOST_READ = max(OPERATIONS.values())
RESULTS = ("float32", "uint8")


class Fusion(NamedTuple):
    """Operations that follow each other, the one that does them all, and which of the slots that
    this one reads are numbers: all behind the first few."""

    operations: tuple[str, ...]
    together: str
    numbers_from: int


_ROUNDED = ("multiply", "round", "max", "min", "uint8")
FUSIONS = (
    Fusion(("max", *_ROUNDED), "codes of max", 1),
    Fusion(_ROUNDED, "codes", 1),
    Fusion(("sums", "multiply", "fused"), "normalized sums", 3),
    Fusion(("add", "max"), "add max", 2),
)
# Where the order of what is read is free: the other operations carry a value in the first place.
_FREE = {"multiply": 2, "add": 2, "fused": 2}


class Step(NamedTuple):
    """slots[to] = operation(slots[of[0]], ...); of RESULTS and "codes", result `to`."""

    operation: str
    to: int
    of: tuple[int, ...] = ()


def in_few_passes(steps: Sequence[Step], numbers: Container[int]) -> tuple[Step, ...]:
    """The steps, and one in the place of each of FUSIONS; every slot is written by one step.

    Args:
      numbers: slots of operands that are one number.

    >>> in_few_passes([Step("add", 4, (1, 2)), Step("max", 5, (4, 3))], {3})
    (Step(operation='add max', to=5, of=(1, 2, 3)),)
    """
    reads = Counter(slot for step in steps for slot in step.of)
    makers = {step.to: step for step in steps if step.operation not in RESULTS}
    gone: set[int] = set()  # slots that nothing writes any more
    found: list[Step] = []
    for step in reversed(steps):
        if step.operation not in RESULTS and step.to in gone:
            continue
        for fusion in FUSIONS:
            before = _before(step, fusion, makers, reads)
            whole = before and _together(fusion, [*before, step])
            if whole and all(slot in numbers for slot in whole.of[fusion.numbers_from :]):
                gone.update(one.to for one in before or ())
                step = whole
                break
        found.append(step)
    return tuple(reversed(found))


def _before(
    step: Step, fusion: Fusion, makers: dict[int, Step], reads: Counter[int]
) -> list[Step] | None:
    """The steps of a fusion that ends in this one, without it; None: it ends in no such one.

    Each of them is read by the next one alone. Of max(a, b) the sign of a zero depends on which is
    first: the value comes first, or codes come out, which have no such sign.
    """
    *names, last = fusion.operations
    if step.operation != last:
        return None
    found: list[Step] = []
    for name in reversed(names):
        free = len(step.of) if last in RESULTS else _FREE.get(step.operation, 1)
        for slot in step.of[:free]:
            if slot in makers and makers[slot].operation == name and reads[slot] == 1:
                step = makers[slot]
                break
        else:
            return None
        found.append(step)
    return found[::-1]


def _together(fusion: Fusion, steps: Sequence[Step]) -> Step:
    """What the first one reads, then what each of the others reads besides the one before it."""
    of = list(steps[0].of)
    for before, step in itertools.pairwise(steps):
        of += [slot for slot in step.of if slot != before.to]
    return Step(fusion.together, steps[-1].to, tuple(of))
