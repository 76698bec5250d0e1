"""Convolutions and what follows them number by number, as one call of a compiled kernel.

What lies between two layers, a factor, a normalisation, a shortcut, a rectifier, a rounding to
codes, takes longer than the convolution where every step reads and writes whole arrays. Here a
tile of some pixels goes through all of them while its sums are in the cache, and some images go
through all convolutions of a call before the next ones come: see chain.h.
"""

import dataclasses
import functools
import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dual_precision.primitives.native import build
from dual_precision.primitives.native.chain_steps import MOST_READ, OPERATIONS, Step

TARGET = "dual_precision_chains"
FLOATS = "dual_precision_convolution"  # convolutions alone, and their gradients
NEEDED = {"avx2", "fma"}  # of the CPU, which else ends the process at the first link
_KINDS = ("number", "channels", "array")
ALIGNED = 64  # bytes

_NUMBERS = {name: number for number, name in enumerate(OPERATIONS)}
_SUMS = slice(6, 9)  # of the list of one link, see `_encoded`


class Sums(NamedTuple):
    """Of a convolution with this stride in both directions.

    Attributes:
      bits: of the weights, after codes >> shift; 0 where they are float32.
    """

    stride: int
    bits: int = 0
    shift: int = 0


@dataclasses.dataclass(frozen=True)
class Chain:
    """What follows the sums, each of them by itself.

    Attributes:
      steps: see chain_steps.py.
      kinds: of the operands, all float32: a number (), a vector of the channels, or an array like
        the sums.
      slots: how many the steps use.
      results: dtypes, float32 or uint8; a number that becomes uint8 is a code.
    """

    steps: tuple[Step, ...]
    kinds: tuple[str, ...]
    slots: int
    results: tuple[str, ...]


SUMS_ALONE = Chain((Step("sums", 0), Step("float32", 0, (0,))), (), 1, ("float32",))


@dataclasses.dataclass(frozen=True)
class Link:
    """One convolution with its chain. Values are numbers that stand for arrays.

    Attributes:
      x, kernel: values: uint8 [N, H, W, in], codes int8 [k, k, in, out]; or both float32.
      image, window: their shapes, without N.
      sums: how they are made.
      chain: what follows its sums.
      operands, results: values, as the chain has them.
      tag: of codes that are the same in every call of the program, see `tag_of`; 0 of others.
    """

    x: int
    kernel: int
    image: tuple[int, ...]
    window: tuple[int, ...]
    sums: Sums
    chain: Chain
    operands: tuple[int, ...]
    results: tuple[int, ...]
    tag: int = 0

    @property
    def made(self) -> tuple[int, ...]:
        """The shape of its sums and of all arrays like them, without N."""
        height, width, _ = self.image
        return -(-height // self.sums.stride), -(-width // self.sums.stride), self.window[-1]


@functools.cache
def runs_here() -> bool:
    """Whether this CPU has the instructions of a link."""
    return (build.cpu_words() or set()) >= NEEDED


def run_links(
    links: Sequence[Link], arrays: Mapping[int, jax.Array], wanted: Sequence[int], batch: int
) -> list[jax.Array]:
    """The wanted values of links that follow each other, in one call; on a CPU.

    Args:
      arrays: value -> array, of all that the links do not make.
      wanted: values that they make, one or more.
      batch: N of all of them, 1 or more.

    The codes of a link with a tag have to be the array that the tag was made of.
    """
    shapes = {value: (link.made, dtype) for link in links for value, dtype in _made_by(link)}
    between, size = _between(links, wanted)
    places = {value: (0, at) for at, value in enumerate(arrays)}
    places |= {value: (1, at) for at, value in enumerate(wanted)}
    places |= {value: (2, at) for value, at in between.items()}
    results = [
        jax.ShapeDtypeStruct((batch, *shape), jnp.dtype(dtype))
        for shape, dtype in (shapes[value] for value in wanted)
    ]
    call = jax.ffi.ffi_call(TARGET, results, vmap_method="sequential")
    encoded = [len(links), *(n for link in links for n in _encoded(link, places))]
    attributes = {"batch": np.int64(batch), "between": np.int64(size)}
    return list(call(*arrays.values(), list=np.array(encoded, np.int64), **attributes))


def tag_of(codes: jax.Array) -> int:
    """A number that other codes do not have; never 0. Two traces of a program have the same."""
    digest = hashlib.blake2b(np.asarray(codes).tobytes(), digest_size=7).digest()
    return int.from_bytes(digest) + 1


def convolve_codes(x: jax.Array, codes: jax.Array, shape: tuple[int, ...], sums: Sums) -> jax.Array:
    """The sums of `convolution.conv2d_codes`, float32; on a CPU.

    Args:
      x, codes: see there; no axis is empty.
      shape, sums: of the result.
    """
    link = Link(0, 1, x.shape[1:], codes.shape, sums, SUMS_ALONE, (), (2,))
    (found,) = run_links([link], {0: x, 1: codes}, [2], shape[0])
    return found


def traced_sum(params: Mapping[str, Any]) -> Sums | None:
    """How the sums of a call were traced, of its parameters; None: it is no forward convolution."""
    given = dict(params["attributes"])
    if params["target_name"] == TARGET:
        numbers: np.ndarray = given["list"].val  # a wrapper of JAX
        return Sums(*map(int, numbers[_SUMS]))
    if params["target_name"] == FLOATS and not given["part"]:
        return Sums(int(given["stride"]))
    return None


def _made_by(link: Link) -> Iterator[tuple[int, str]]:
    return zip(link.results, link.chain.results, strict=True)


def _encoded(link: Link, places: Mapping[int, tuple[int, int]]) -> Iterator[int]:
    """What `Reader` of convolution.cc reads."""
    yield from (*link.image, link.window[-1], link.window[0], *link.sums)
    yield from (link.tag, link.chain.slots)
    yield from (*places[link.x], *places[link.kernel])
    yield len(link.operands)
    for kind, value in zip(link.chain.kinds, link.operands, strict=True):
        yield from (_KINDS.index(kind), *places[value])
    yield len(link.results)
    for value, dtype in _made_by(link):
        yield from (np.dtype(dtype).itemsize, *places[value])
    yield len(link.chain.steps)
    for step in link.chain.steps:
        unread = [0] * (MOST_READ - len(step.of))
        yield from (_NUMBERS[step.operation], step.to, *step.of, *unread)


def _between(links: Sequence[Link], wanted: Sequence[int]) -> tuple[dict[int, int], int]:
    """Where in the bytes of an image a value stands that these links alone read; how many in all.

    A place is free again behind the last link that reads what stands there.
    """
    last = {value: at for at, link in enumerate(links) for value in (link.x, *link.operands)}
    places: dict[int, int] = {}
    taken: list[tuple[int, int, int]] = []  # start, end, the last link that reads it
    size = 0
    for at, link in enumerate(links):
        taken = [place for place in taken if place[2] >= at]
        for value, dtype in _made_by(link):
            if value in wanted:
                continue
            need = -(-math.prod(link.made) * np.dtype(dtype).itemsize // ALIGNED) * ALIGNED
            start = 0
            for begin, end, _ in sorted(taken):
                if start + need <= begin:
                    break
                start = max(start, end)
            places[value] = start
            taken.append((start, start + need, last.get(value, at)))
            size = max(size, start + need)
    return places, size
