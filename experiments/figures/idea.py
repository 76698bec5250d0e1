"""The drawing at the top of the README: planes of weights, of which low reads the first ones.

`python -m experiments.figures.idea > docs/idea.svg`; a test compares the two. Plain text, so that
no version of a plotting library changes it.
"""

from collections.abc import Iterator

import jax.numpy as jnp
import numpy as np

from dual_precision.primitives.nested import decode, encode
from experiments.figures.training import COLOURS

DRAWN_WEIGHTS = np.array([[0.61], [0.17], [-0.10], [-0.83]], np.float32)  # of one channel
PLANES_READ = {"low": 2, "high": 8}
GRID = 1 / 128  # step of the stored grid
_STORED = 8

_LEFT, _TOP, _PITCH, _SIDE, _WIDTH, _HEIGHT = 118, 104, 50, 40, 800, 390
_BOTTOM = _TOP + len(DRAWN_WEIGHTS) * _PITCH
_INK, _GREY = "#333333", "#777777"


def planes_of(weights: np.ndarray) -> np.ndarray:
    """Signs, +1 or -1, of the planes of weights [n, 1], most significant first: int [n, 8].

    value = GRID * sum_p signs[p] * 2^(6 - p), the sum over the first planes that are read.
    """
    codes = np.asarray(encode(jnp.asarray(weights), jnp.array([GRID]), _STORED, _STORED))
    bits = (codes + 2 ** (_STORED - 1)) >> np.arange(_STORED - 1, -1, -1) & 1
    return 2 * bits - 1


def drawn_values(weights: np.ndarray, bits: int) -> np.ndarray:
    """What a mode of `bits` bits reads of weights [n, 1], float32 [n]."""
    step = jnp.array([GRID])
    codes = encode(jnp.asarray(weights), step, bits, _STORED)
    return np.asarray(decode(codes, step, bits, _STORED))[:, 0]


def draw_idea() -> str:
    """The drawing, as SVG."""
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}"'
        f' width="{_WIDTH}" height="{_HEIGHT}" font-family="sans-serif" font-size="15">'
    )
    paper = f'<rect width="{_WIDTH}" height="{_HEIGHT}" rx="8" fill="white"/>'
    columns = {mode: drawn_values(DRAWN_WEIGHTS, bits) for mode, bits in PLANES_READ.items()}
    parts = [*_brackets(), *_rows(planes_of(DRAWN_WEIGHTS), columns), *_file()]
    return "\n".join([head, paper, *parts, "</svg>"]) + "\n"


def _edges(first: int, last: int) -> tuple[int, int]:
    """Left and right of planes `first` to `last`, from 0."""
    return _LEFT + first * _PITCH, _LEFT + last * _PITCH + _SIDE


def _brackets() -> Iterator[str]:
    for (mode, planes), y in zip(PLANES_READ.items(), (74, 34), strict=True):
        left, right = _edges(0, planes - 1)
        colour = COLOURS[mode]
        path = f"M{left} {y + 14} v-8 H{right} v8"
        yield f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="2.5"/>'
        yield _text(left, y, f'precision="{mode}" reads {planes} planes', colour)
        yield _text(_column(mode), 64, f"read by {mode}", colour, "middle")
    yield _text(_LEFT - 24, 64, "weight", _INK, "end")


def _rows(signs: np.ndarray, columns: dict[str, np.ndarray]) -> Iterator[str]:
    for row, own in enumerate(signs):
        y = _TOP + row * _PITCH
        middle = y + _SIDE / 2 + 5
        yield _text(_LEFT - 24, middle, _number(DRAWN_WEIGHTS[row, 0], 2), _INK, "end")
        for plane, sign in enumerate(own):
            yield from _square(_edges(plane, plane)[0], y, sign > 0, plane < PLANES_READ["low"])
        for mode, values in columns.items():
            digits = 2 if mode == "low" else 4
            text = _number(values[row], digits)
            yield _text(_column(mode), middle, text, COLOURS[mode], "middle")


def _square(x: int, y: int, plus: bool, low: bool) -> Iterator[str]:
    colour = COLOURS["low" if low else "high"]
    fill = colour if plus else "white"
    yield (
        f'<rect x="{x}" y="{y}" width="{_SIDE}" height="{_SIDE}" rx="4" fill="{fill}"'
        f' stroke="{colour}" stroke-width="1.5"/>'
    )
    sign, ink = ("+", "white") if plus else ("\N{MINUS SIGN}", colour)
    yield _text(x + _SIDE / 2, y + _SIDE / 2 + 6, sign, ink, "middle")


def _file() -> Iterator[str]:
    """Under each plane what it is worth; then the order in the file."""
    for plane in range(_STORED):
        text = f"1/{1 / (2.0 ** (_STORED - 2 - plane) * GRID):.0f}"
        yield _text(_edges(plane, plane)[0] + _SIDE / 2, _BOTTOM + 12, text, _GREY, "middle", 13)
    yield _text(_LEFT - 24, _BOTTOM + 12, "plus or minus", _GREY, "end", 13)
    left, right = _edges(0, _STORED - 1)
    y = _BOTTOM + 34
    yield f'<path d="M{left} {y} H{right} m-8 -5 l8 5 l-8 5" fill="none" stroke="{_INK}"/>'
    yield _text(left, y + 22, "order in the file: the first part is the low network,", _INK)
    yield _text(left, y + 42, "reading on makes it the high one", _INK)


def _column(mode: str) -> int:
    return _edges(0, _STORED - 1)[1] + (70 if mode == "low" else 190)


def _number(value: float, digits: int) -> str:
    return f"{value:+.{digits}f}".replace("-", "\N{MINUS SIGN}")


def _text(
    x: float, y: float, words: str, colour: str, anchor: str = "start", size: int = 15
) -> str:
    words = words.replace('"', "&quot;")
    return (
        f'<text x="{x:g}" y="{y:g}" fill="{colour}" text-anchor="{anchor}"'
        f' font-size="{size}">{words}</text>'
    )


if __name__ == "__main__":
    print(draw_idea(), end="")
