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
      bytes: of all its results.
    """

    kind: str
    bytes: int


def collectives_in(text: str) -> list[Collective]:
    """The collectives of a compiled program, in its order; in a loop each counts once.

    Bytes are those of the results, on one device. Of an operation that is started here and ends
    elsewhere, only all-reduce is known: the others name their operands beside their results.

    Raises:
      ValueError: such an operation, or an array of a type that this does not know.

    >>> collectives_in("%r = (f32[8,4]{1,0}, f32[]) all-reduce(%a, %b), channel_id=1")
    [Collective(kind='all-reduce', bytes=132)]
    """
    found = []
    for line in text.splitlines():
        match = _LINE.search(_COMMENT.sub("", line))
        if match:
            result, kind, start = match.groups()
            if start and kind != "all-reduce":
                raise ValueError(f"{kind}{start}: expected a program that waits for each {kind}")
            sizes = (_bytes_of(*array) for array in _ARRAY.findall(result))
            found.append(Collective(kind, sum(sizes)))
    return found


def _bytes_of(dtype: str, axes: str) -> int:
    count = math.prod(int(size) for size in axes.split(",") if size)
    if dtype == "pred":
        return count
    bits = re.match(r"[a-z]+(\d+)", dtype)
    if bits is None:
        raise ValueError(f"an array of {dtype!r}: expected a type such as f32, s8 or pred")
    return count * -(-int(bits[1]) // 8)


def describe_collectives(found: Iterable[Collective]) -> str:
    """As in "77 all-reduce"; "none" where there are none."""
    counts = collections.Counter(one.kind for one in found)
    return ", ".join(f"{count} {kind}" for kind, count in counts.items()) or "none"
