"""Packed planes: a round trip at every width and shape; a prefix is the narrow mode."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dual_precision.primitives.bitplanes import pack, unpack
from dual_precision.primitives.nested import decode, encode, truncate
from dual_precision.primitives.quantizers import quantize_weights

SHAPES = [(), (0,), (1,), (7,), (8,), (9,), (3, 0, 2), (2, 3, 5), (3, 3, 4, 2)]
WIDTHS = range(1, 9)


def some_codes(bits: int, shape: tuple[int, ...], seed: int = 0) -> jax.Array:
    half = 2 ** (bits - 1)
    drawn = np.random.default_rng(seed).integers(-half, half, shape)
    return jnp.asarray(drawn, jnp.int32)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_round_trip(shape):
    """At every width, all of them in one program."""
    codes = {bits: some_codes(bits, shape) for bits in WIDTHS}

    @jax.jit
    def there_and_back(codes):
        packed = {bits: pack(own, bits) for bits, own in codes.items()}
        return {bits: (planes, unpack(planes, shape)) for bits, planes in packed.items()}

    for bits, (planes, back) in there_and_back(codes).items():
        assert planes.dtype == jnp.uint8
        assert planes.shape == (bits, -(-math.prod(shape) // 8))
        assert back.dtype == jnp.int32
        np.testing.assert_array_equal(back, codes[bits])


@partial(jax.jit, static_argnums=1)
def prefixes(codes, bits):
    """Of every number of planes: the codes that they are, and the truncated codes."""
    planes = pack(codes, bits)
    return [
        (unpack(planes[:kept], codes.shape), truncate(codes, kept, bits))
        for kept in range(1, bits + 1)
    ]


@given(st.sampled_from([5, 8]), st.sampled_from([(0,), (3, 7)]), st.integers(0, 2**16))
def test_a_prefix_is_the_truncated_code(bits, shape, seed):
    for prefix, expected in prefixes(some_codes(bits, shape, seed), bits):
        np.testing.assert_array_equal(prefix, expected)


@partial(jax.jit, static_argnums=2)
def decoded_prefixes(w, step, stored):
    planes = pack(encode(w, step, stored, stored), stored)
    widths = range(1, stored + 1)
    return [decode(unpack(planes[:bits], w.shape), step, bits, stored) for bits in widths]


quantized = jax.jit(quantize_weights)


@given(st.sampled_from([3, 8]), st.integers(0, 2**16))
def test_a_decoded_prefix_is_the_narrow_mode(stored, seed):
    """decode(unpack(first n planes)) is what the network computes with at n bits, bit for bit."""
    generator = np.random.default_rng(seed)
    w = jnp.asarray(generator.standard_normal((3, 3, 2, 5)), jnp.float32)
    step = jnp.asarray(generator.uniform(0.001, 1, 5), jnp.float32)
    for bits, value in enumerate(decoded_prefixes(w, step, stored), start=1):
        np.testing.assert_array_equal(value, quantized(w, step, bits, stored))


def test_the_layout():
    """First code in the top bit, plane 0 the most significant, the rest of the byte zero."""
    planes = pack(jnp.asarray([3, -4, 0, -1, 1, -2, 2, -3, 3]), 3)
    unsigned = [7, 0, 4, 3, 5, 2, 6, 1, 7]
    for plane in range(3):
        bits = "".join(str(u >> (2 - plane) & 1) for u in unsigned).ljust(16, "0")
        assert [f"{byte:08b}" for byte in planes[plane].tolist()] == [bits[:8], bits[8:]]


@pytest.mark.parametrize("dtype", [jnp.int8, jnp.int16, jnp.int32])
def test_narrow_integers_are_codes_too(dtype):
    codes = jnp.asarray([-128, -1, 0, 127], dtype)
    np.testing.assert_array_equal(unpack(pack(codes, 8), (4,)), codes)


def test_under_jit():
    codes = some_codes(5, (11,))
    planes = jax.jit(pack, static_argnums=1)(codes, 5)
    np.testing.assert_array_equal(jax.jit(unpack, static_argnums=1)(planes, (11,)), codes)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bool_])
def test_pack_refuses_what_is_not_integer(dtype):
    with pytest.raises(ValueError, match="expected integers"):
        pack(jnp.zeros(3, dtype), 2)


@pytest.mark.parametrize("code", [2, -3, 100])
def test_pack_refuses_codes_that_do_not_fit(code):
    with pytest.raises(ValueError, match="expected -2 to 1 at 2 bits"):
        pack(jnp.asarray([0, code]), 2)


@pytest.mark.parametrize("bits", [0, 9])
def test_pack_refuses_widths(bits):
    with pytest.raises(ValueError, match="expected 1 to 8"):
        pack(jnp.zeros(3, jnp.int32), bits)


@pytest.mark.parametrize(
    "planes",
    [
        jnp.zeros((2, 1), jnp.int32),  # dtype
        jnp.zeros((2, 2), jnp.uint8),  # too long
        jnp.zeros((2, 0), jnp.uint8),  # too short
        jnp.zeros(2, jnp.uint8),  # rank
        jnp.zeros((0, 1), jnp.uint8),  # no plane
        jnp.zeros((9, 1), jnp.uint8),  # too many planes
        jnp.uint8(0),  # no axis at all
    ],
    ids=str,
)
def test_unpack_refuses_planes(planes):
    with pytest.raises(ValueError, match="expected"):
        unpack(planes, (5,))
