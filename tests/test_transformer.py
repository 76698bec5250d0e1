"""The decoder: causal, one tree, the same text with and without a cache, clear refusals."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dual_precision import modes
from dual_precision.models import build
from dual_precision.primitives.native import decoder
from dual_precision.structure import structure_of

TINY = partial(build, "transformer", features=32, depth=2, heads=2, context=16)
TEXT = jnp.asarray(np.random.default_rng(0).integers(0, 256, (2, 12)), jnp.uint8)


@cache
def made():
    model = TINY(modes=modes(low="w2a8", high="w8a8"))
    return model, jax.jit(partial(model.init, precision="high"))(jax.random.key(0), TEXT)


@pytest.mark.parametrize("precision", ["float", "low", "high"])
def test_a_byte_sees_none_that_follow(precision):
    model, variables = made()
    call = jax.jit(partial(model.apply, precision=precision))
    whole, other = call(variables, TEXT), call(variables, TEXT.at[:, 7].add(1))
    np.testing.assert_array_equal(whole[:, :7], other[:, :7])
    assert whole.shape == (2, 12, 256)
    assert np.all(np.any(np.asarray(whole != other), axis=-1)[:, 7:])


def test_a_cache_gives_what_the_whole_text_gives():
    model, variables = made()
    call = jax.jit(partial(model.apply, precision="high"))
    whole = call(variables, TEXT)
    kept, parts = model.empty_cache(2), []
    for first, last in ((0, 5), (5, 6), (6, 12)):
        out, kept = call(variables, TEXT[:, first:last], kept)
        parts.append(out)
    np.testing.assert_allclose(jnp.concatenate(parts, axis=1), whole, atol=0.2)
    assert np.corrcoef(np.ravel(whole), np.ravel(jnp.concatenate(parts, axis=1)))[0, 1] > 0.99
    assert kept.length.tolist() == [12, 12]


@pytest.mark.parametrize("compiled", [True, False])
def test_no_text_has_no_logits(compiled, monkeypatch):
    """With and without a cache, by whoever computes the rows."""
    if not compiled:
        monkeypatch.setattr(decoder, "available", lambda: False)
    model, variables = made()
    none = TEXT[:0]
    call = jax.jit(lambda *given: model.apply(variables, *given, precision="high"))
    assert call(none).shape == (0, 12, 256)
    out, kept = call(none, model.empty_cache(0))
    assert out.shape == (0, 12, 256)
    assert [leaf.shape for leaf in kept.keys] == [(0, 16, 2, 16)] * 2


def test_its_parts():
    model, _ = made()
    structure = structure_of(model, jax.ShapeDtypeStruct((12,), jnp.uint8))
    assert [*structure.layers][:5] == [
        ("embed",),
        ("block1", "attention", "qkv"),
        ("block1", "attention", "out"),
        ("block1", "up"),
        ("block1", "down"),
    ]
    assert all(layer.signed for path, layer in structure.layers.items() if path != ("embed",))
    assert structure.owner(("params", "block1", "norm1", "low", "scale")) == "low"


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda x: x.astype(jnp.int32), "expected bytes"),
        (lambda x: x[0], "expected bytes"),
        (lambda x: x[:, :0], "a text of 0 bytes"),
        (lambda x: jnp.concatenate([x, x], axis=1), "24 bytes: expected 1 to 16"),
    ],
)
def test_what_is_no_text(spoil, message):
    model, variables = made()
    with pytest.raises(ValueError, match=message):
        model.apply(variables, spoil(TEXT), precision="low")


def test_a_cache_of_another_model():
    model, variables = made()
    for other in (TINY(modes=model.modes, depth=1), TINY(modes=model.modes, context=8)):
        with pytest.raises(ValueError, match="a cache of another model"):
            model.apply(variables, TEXT, other.empty_cache(2), precision="low")
