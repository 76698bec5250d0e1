"""What devices send each other, read from the text of a compiled program (HLO)."""

import collections
import dataclasses
import math
import re
from collections.abc import Iterable

_NAMES = "all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute|collective-broadcast"
# "%x = f32[8,4]{1,0} all-reduce(...", or a tuple "(f32[8]{0}, f32[])" of what one carries at once.
_LINE = re.compile(rf"= (\(.*?\)|\S+) ({_NAMES})(-start)?\(")
_ARRAY = re.compile(r"\b([a-z]+\d*\w*)\[([\d,]*)\]")
_COMMENT = re.compile(r"/\*.*?\*/")  # "/*index=5*/" inside of long tuples


@dataclasses.dataclass(frozen=True)
class Collective:
    """One operation in which all devices take part.

    Attributes:
      kind: its name in HLO.
      kernel_bytes: of its results with two axes or more: gradients of kernels.
      other_bytes: of all other results: statistics, and gradients of steps, scales and biases.
    """

    kind: str
    kernel_bytes: int
    other_bytes: int

    @property
    def bytes(self) -> int:
        return self.kernel_bytes + self.other_bytes


def collectives_in(text: str) -> list[Collective]:
    """The collectives of a compiled program, in its order; in a loop each counts once.

    Bytes are those of the results, on one device. Of an operation that is started here and ends
    elsewhere, only all-reduce is known: the others name their operands beside their results.

    Raises:
      ValueError: such an operation, or an array of a type that this does not know.

    >>> collectives_in("%r = (f32[8,4]{1,0}, f32[]) all-reduce(%a, %b), channel_id=1")
    [Collective(kind='all-reduce', kernel_bytes=128, other_bytes=4)]
    """
    found = []
    for line in text.splitlines():
        match = _LINE.search(_COMMENT.sub("", line))
        if match:
            result, kind, start = match.groups()
            if start and kind != "all-reduce":
                raise ValueError(f"{kind}{start}: expected a program that waits for each {kind}")
            found.append(_collective(kind, result))
    return found


def _collective(kind: str, result: str) -> Collective:
    kernels = others = 0
    for dtype, axes in _ARRAY.findall(result):
        shape = [int(size) for size in axes.split(",") if size]
        size = math.prod(shape) * _bytes_of(dtype)
        kernels, others = (kernels + size, others) if len(shape) > 1 else (kernels, others + size)
    return Collective(kind, kernels, others)


def _bytes_of(dtype: str) -> int:
    if dtype == "pred":
        return 1
    bits = re.match(r"[a-z]+(\d+)", dtype)
    if bits is None:
        raise ValueError(f"an array of {dtype!r}: expected a type such as f32, s8 or pred")
    return -(-int(bits[1]) // 8)


def describe_collectives(found: Iterable[Collective]) -> str:
    """As in "77 all-reduce"; "none" where there are none."""
    counts = collections.Counter(one.kind for one in found)
    return ", ".join(f"{count} {kind}" for kind, count in counts.items()) or "none"
