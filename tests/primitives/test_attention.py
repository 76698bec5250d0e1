"""Norms and attention by rows: the compiled kernel against XLA's form, and each against itself."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dual_precision.primitives import attention
from dual_precision.primitives.native import decoder

CONTEXT, HEADS, SIZE = 20, 3, 10  # of no whole registers
RNG = np.random.default_rng(0)
QKV = RNG.normal(size=(2, 4, 3, HEADS, SIZE)).astype(np.float32)
CACHE = RNG.normal(size=(2, 2, CONTEXT, HEADS, SIZE)).astype(np.float32)
# The second text ends within the four rows: what does not fit is not kept.
LENGTHS = np.array([5, CONTEXT - 2], np.int32)


def attended(rows=slice(None), lengths=LENGTHS, cache=CACHE):
    return [
        np.asarray(part)
        for part in jax.jit(lambda *given: attention.cached_attention(*given))(  # traced anew
            jnp.asarray(QKV[:, rows]), *map(jnp.asarray, cache), jnp.asarray(lengths)
        )
    ]


def normalized(x, scale):
    run = jax.jit(lambda *given: attention.rms_normalize_by_row(*given, epsilon=1e-5))
    return np.asarray(run(x, scale))


def by_xla(monkeypatch, function, *args):
    with monkeypatch.context() as patch:
        patch.setattr(decoder, "available", lambda: False)
        return function(*args)


@pytest.fixture
def kernel():
    if not decoder.available():
        pytest.skip("no compiled rows here: this CPU, or no compiler")


@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize("channels", [1, 16, 37])
def test_the_norm_of_the_kernel(monkeypatch, channels):
    x = RNG.normal(size=(5, channels)).astype(np.float32)
    scale = RNG.uniform(0.5, 2, channels).astype(np.float32)
    wanted = by_xla(monkeypatch, normalized, x, scale)
    np.testing.assert_allclose(normalized(x, scale), wanted, rtol=1e-6, atol=1e-7)
    np.testing.assert_array_equal(normalized(x, scale)[2:3], normalized(x[2:3], scale))
    zeros = np.zeros((1, channels), np.float32)
    np.testing.assert_array_equal(normalized(zeros, scale), zeros)


@pytest.mark.usefixtures("kernel")
def test_the_attention_of_the_kernel(monkeypatch):
    wanted = by_xla(monkeypatch, attended)
    found = attended()
    inside = LENGTHS[:, None] + np.arange(4) < CONTEXT
    np.testing.assert_allclose(found[0][inside], wanted[0][inside], rtol=2e-5, atol=2e-6)
    for ours, theirs in zip(found[1:], wanted[1:], strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.usefixtures("kernel")
def test_keys_far_behind_are_turned_alike(monkeypatch):
    """Angles grow with the position: those of float64 and of float32 parted by 3e-4 there."""
    qkv = RNG.normal(size=(1, 1, 3, 1, 64)).astype(np.float32)
    cache = np.zeros((2, 1, 4100, 1, 64), np.float32)

    def keys():
        run = jax.jit(lambda *given: attention.cached_attention(*given)[1])
        return np.asarray(run(qkv, *cache, np.array([4090], np.int32)))[0, 4090]

    np.testing.assert_allclose(keys(), by_xla(monkeypatch, keys), atol=2e-6)


@pytest.mark.usefixtures("kernel")
def test_mapped():
    """As one call after the other."""
    x, scale = RNG.normal(size=(2, 5, 16)).astype(np.float32), np.ones(16, np.float32)
    found = jax.vmap(lambda x: attention.rms_normalize_by_row(x, scale, 1e-5))(x)
    np.testing.assert_array_equal(found, [normalized(each, scale) for each in x])
    keys, values = map(jnp.asarray, CACHE)
    given = jnp.stack([QKV, -QKV]), jnp.stack([LENGTHS - 2, LENGTHS - 3])
    several = jax.vmap(lambda qkv, at: attention.cached_attention(qkv, keys, values, at))(*given)
    one = [
        attention.cached_attention(qkv, keys, values, at) for qkv, at in zip(*given, strict=True)
    ]
    for found, wanted in zip(several, zip(*one, strict=True), strict=True):
        np.testing.assert_array_equal(found, np.stack(wanted))


@pytest.mark.parametrize("compiled", [True, False])
def test_a_row_does_not_know_how_many_there_are(monkeypatch, compiled):
    """Four rows at once, and one after the other: the same bits, and the same cache."""

    def both():
        together, cache, steps = attended(lengths=LENGTHS - 3), CACHE, []
        for row in range(4):
            y, *cache = attended(slice(row, row + 1), LENGTHS - 3 + row, cache)
            steps.append(y)
        return together, [np.concatenate(steps, axis=1), *cache]

    if compiled and not decoder.available():
        pytest.skip("no compiled rows here")
    together, apart = both() if compiled else by_xla(monkeypatch, both)
    for ours, theirs in zip(together, apart, strict=True):
        np.testing.assert_array_equal(ours, theirs)
