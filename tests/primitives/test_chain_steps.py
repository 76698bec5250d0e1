"""Fewer passes over a tile give what the steps give one after the other, bit for bit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dual_precision.primitives.native import convolution as native
from dual_precision.primitives.native.chain_steps import OPERATIONS, Step, in_few_passes
from dual_precision.primitives.native.chains import Chain, Link, Sums, run_links

KINDS = ("channels", "channels", "channels", "array", *["number"] * 4)
FACTOR, GAIN, SHIFT, SHORTCUT, ZERO, STEP, LOW, HIGH = range(1, 9)  # slots
NUMBERS = {ZERO, STEP, LOW, HIGH}
NORMALIZED = (
    Step("sums", 0),
    Step("multiply", 9, (0, FACTOR)),
    Step("fused", 10, (GAIN, 9, SHIFT)),
)


def rounded(start, source):
    """Codes of what stands in a slot."""
    return (
        Step("multiply", start, (source, STEP)),
        Step("round", start + 1, (start,)),
        Step("max", start + 2, (LOW, start + 1)),
        Step("min", start + 3, (HIGH, start + 2)),
        Step("uint8", 0, (start + 3,)),
    )


CASES = {
    "codes of max": (
        (*NORMALIZED, Step("max", 11, (10, ZERO)), *rounded(12, 11)),
        ("normalized sums", "codes of max"),
    ),
    "codes of a sum that is kept": (
        (
            *NORMALIZED,
            Step("add", 11, (10, SHORTCUT)),
            Step("max", 12, (11, ZERO)),
            *rounded(13, 12),
            Step("float32", 1, (12,)),
        ),
        ("normalized sums", "add max", "codes", "float32"),
    ),
    "sums that are kept": (
        (
            Step("sums", 0),
            Step("multiply", 9, (0, FACTOR)),
            *rounded(10, 9),
            Step("float32", 1, (0,)),
        ),
        ("sums", "multiply", "codes", "float32"),
    ),
    "a limit for each channel": (
        (*NORMALIZED, Step("max", 11, (10, FACTOR)), *rounded(12, 11)),
        ("normalized sums", "max", "codes"),
    ),
    "a limit before the value": (
        (
            *NORMALIZED,
            Step("add", 11, (10, SHORTCUT)),
            Step("max", 12, (ZERO, 11)),
            Step("float32", 0, (12,)),
        ),
        ("normalized sums", "add", "max", "float32"),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_which_passes(name):
    steps, expected = CASES[name]
    assert tuple(step.operation for step in in_few_passes(steps, NUMBERS)) == expected


@pytest.mark.skipif(not native.exact_bytes(255, 128), reason="no such kernel here")
@pytest.mark.parametrize("channels", [1, 7, 16, 48])
@pytest.mark.parametrize("bits", [0, 2, 8])
@pytest.mark.parametrize("name", CASES)
def test_the_same_bits(name, bits, channels):
    steps, _ = CASES[name]
    for values in (arrays(bits, channels), strange(arrays(bits, channels))):
        one_by_one, few = (
            run(chain, bits, values) for chain in (steps, in_few_passes(steps, NUMBERS))
        )
        for a, b in zip(one_by_one, few, strict=True):
            same(a, b)


@pytest.mark.skipif(not native.exact_bytes(255, 128), reason="no such kernel here")
@pytest.mark.parametrize("slot", sorted(NUMBERS))
@pytest.mark.parametrize("name", CASES)
def test_a_limit_of_nan_makes_all_of_nan(name, slot):
    steps, _ = CASES[name]
    values = arrays(8, 16)
    values[slot + 1] = jnp.float32(jnp.nan)
    one_by_one, few = (run(chain, 8, values) for chain in (steps, in_few_passes(steps, NUMBERS)))
    for a, b in zip(one_by_one, few, strict=True):
        same(a, b)


def fused(*signs):
    """a * b + c with one rounding, as float64 has it of such small numbers."""
    return lambda a, b, c: (signs[0] * np.float64(a) * b + signs[1] * np.float64(c)).astype("f4")


def larger(a, b):
    return np.where((a > b) | np.isnan(a), a, b)


def smaller(a, b):
    return np.where((a < b) | np.isnan(a), a, b)


OPERATIONS_ALONE = {
    "multiply": np.multiply,
    "add": np.add,
    "subtract": np.subtract,
    "max": larger,
    "min": smaller,
    "round": np.round,
    "clamp": lambda a, low, high: smaller(larger(a, low), high),
    "fused": fused(1, 1),
    "fused minus": fused(1, -1),
    "minus fused": fused(-1, 1),
}


@pytest.mark.skipif(not native.exact_bytes(255, 128), reason="no such kernel here")
@pytest.mark.parametrize("name", OPERATIONS_ALONE)
def test_each_operation_alone(name):
    values = arrays(2, 16)
    of = (0, GAIN, SHORTCUT)[: OPERATIONS[name]]
    first = (Step("sums", 0), Step("float32", 1, (0,)))
    sums, found = run((*first, Step(name, 10, of), Step("float32", 0, (10,))), 2, values)[::-1]
    given = (sums, np.asarray(values[GAIN + 1]), np.asarray(values[SHORTCUT + 1]))
    with np.errstate(invalid="ignore"):
        same(found, OPERATIONS_ALONE[name](*given[: len(of)]))


def same(a, b):
    """The same numbers, zeros of the same sign, and NaN at the same places."""
    assert a.dtype == b.dtype
    np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(np.signbit(a[a == 0]), np.signbit(b[b == 0]))


def arrays(bits, channels):
    """x, kernel and the operands, of one convolution of 3 images."""
    rng = np.random.default_rng(channels)
    sums = (3, 5, 6, channels)
    x = rng.integers(0, 256, (3, 5, 6, 16)).astype(np.uint8 if bits else np.float32)
    kernel = rng.integers(-128, 128, (3, 3, 16, channels)).astype(np.int8 if bits else np.float32)
    rows = [rng.normal(size=channels).astype(np.float32) for _ in range(3)]
    numbers = [np.float32(number) for number in (0.0, 3.7, 0.0, 255.0)]
    scale = np.float32(1e-3)
    found = [x, kernel, rows[0] * scale, *rows[1:], rng.normal(size=sums), *numbers]
    return {
        at: jnp.asarray(value, value.dtype if at < 2 else "float32")
        for at, value in enumerate(found)
    }


def strange(values):
    """With values that are no numbers, and zeros of both signs."""
    odd = jnp.asarray([jnp.nan, jnp.inf, -jnp.inf, -0.0, 0.0], jnp.float32)
    shortcut = values[SHORTCUT + 1].reshape(-1)
    shortcut = shortcut.at[:30].set(jnp.tile(odd, 6)).reshape(values[SHORTCUT + 1].shape)
    more = {FACTOR: (1, jnp.inf), GAIN: (0, -0.0), SHIFT: (2, jnp.nan)}
    rows = {
        slot + 1: values[slot + 1].at[place % values[slot + 1].size].set(number)
        for slot, (place, number) in more.items()
    }
    return {**values, **rows, SHORTCUT + 1: shortcut}


def run(steps, bits, values):
    results = {step.to: "uint8" for step in steps if step.operation.startswith(("uint8", "codes"))}
    results |= {step.to: "float32" for step in steps if step.operation == "float32"}
    dtypes = tuple(results[at] for at in sorted(results))
    chain = Chain(tuple(steps), KINDS, 20, dtypes)
    wanted = [100 + at for at in range(len(dtypes))]
    sums = Sums(1, bits, 8 - bits if bits else 0)
    shapes = values[0].shape[1:], values[1].shape
    link = Link(0, 1, *shapes, sums, chain, tuple(range(2, 10)), tuple(wanted))
    found = jax.jit(lambda given: run_links([link], given, wanted, 3))(values)
    return [np.asarray(array) for array in found]
