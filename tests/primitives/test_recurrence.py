"""The recurrence on planes: the compiled kernel against XLA's form, and each against itself."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dual_precision.primitives.bitserial import pack_words, plane_dot
from dual_precision.primitives.native import recurrence as native
from dual_precision.primitives.quantizers import InputGrid
from dual_precision.primitives.recurrence import plane_recurrence

run = partial(jax.jit, static_argnames=("planes", "activations", "form"))(plane_recurrence)


def operands(texts, length, features, seed=0):
    """(gates, carry, bias, words, scales) of random weights, some 1 / sqrt(features) large."""
    rng = np.random.default_rng(seed)
    codes = rng.integers(-128, 128, (features, 4 * features)).astype(np.int32)
    steps = rng.uniform(0.5, 1.5, 4 * features) / 64 / np.sqrt(features)
    scales = steps * 2.0 ** np.arange(7, -1, -1)[:, None]
    shapes = ((texts, length, 4 * features), (texts, features), (texts, features), 4 * features)
    gates, c, h, bias = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes)
    words = pack_words(jnp.asarray(codes), 8)
    return gates, (c, jnp.tanh(h)), bias, words, jnp.asarray(scales, jnp.float32)


@pytest.fixture(params=["xla", "native"])
def form(request):
    if request.param == "native" and not native.available():
        pytest.skip("no compiled recurrence here: this CPU, or no compiler")
    return request.param


def leaves(found):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(found)]


@pytest.mark.parametrize("planes", range(1, 9))
def test_the_kernel_is_the_form_of_xla(planes):
    """But for roundings; of one byte, as after it a code may fall on the other side of an edge."""
    if not native.available():
        pytest.skip("no compiled recurrence here: this CPU, or no compiler")
    texts, features, activations = ((1, 37, 8), (3, 16, 16), (2, 40, 32))[planes % 3]
    given = operands(texts, 1, features, planes)
    found, wanted = (
        leaves(run(*given, planes=planes, activations=activations, form=form))
        for form in ("native", "xla")
    )
    for ours, theirs in zip(found, wanted, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=2e-6, atol=5e-7)


@pytest.mark.parametrize("on_grid", [False, True])
def test_sums_are_exact(form, on_grid):
    """Gates that undo the sums are zero: c is halved, which is exact."""
    texts, features = 3, 37
    _, (c, _), _, words, _ = operands(texts, 1, features)
    codes = np.random.default_rng(1).integers(-127, 128, (texts, features)).astype(np.int8)
    codes[:, 5] = 127  # so that fixed point has a step of 1
    scales, bias = jnp.full((8, 4 * features), 2.0), jnp.zeros(4 * features)
    grid = InputGrid(*map(jnp.float32, (1, -128, 127))) if on_grid else None
    for planes in range(1, 9) if form == "native" else (1, 4):
        sums = plane_dot(jnp.asarray(codes), words, planes)
        gates = -sums[:, None].astype(jnp.float32)
        carry = (c, jnp.asarray(codes, jnp.float32))
        given = (gates, carry, bias, words, scales, planes, 8, form, grid)
        _, (after, _) = plane_recurrence(*given)
        np.testing.assert_array_equal(after, c / 2)


def test_a_text_knows_neither_others_nor_its_parts(form):
    """All texts at once, and each alone, cut in two: the same bits."""
    own = partial(run, planes=4, activations=8, form=form)
    # Of so many texts a kernel shares out its products, and of the second its gates as well.
    for texts, features in ((9, 160), (130, 256)) if form == "native" else ((5, 24),):
        gates, carry, bias, *weights = operands(texts, 3, features)
        together, ended = own(gates, carry, bias, *weights)
        for text in (0, texts - 1):
            at = slice(text, text + 1)
            state = tuple(part[at] for part in carry)
            first, state = own(gates[at, :1], state, bias, *weights)
            second, state = own(gates[at, 1:], state, bias, *weights)
            apart = np.concatenate([first, second], axis=1)
            np.testing.assert_array_equal(apart, together[at])
            jax.tree.map(np.testing.assert_array_equal, state, tuple(part[at] for part in ended))


def test_gates_of_any_size(form):
    """Against float64, down to the smallest normal numbers; NaN stays where it is."""
    size = np.concatenate([np.logspace(-30, 2, 60), [0.0, 0.625, 1e30]])
    ladder = np.concatenate([size, -size, [np.nan]]).astype(np.float32)
    features = len(ladder)
    _, _, bias, words, scales = operands(1, 1, features)
    gates = np.stack([np.roll(ladder, 7 * gate) for gate in range(4)]).reshape(1, 1, -1)
    given = (jnp.asarray(gates), (jnp.asarray(ladder[None]), jnp.zeros((1, features))), 0 * bias)
    _, (c, h) = plane_recurrence(*given, words, scales, 8, 8, form)
    i, f, g, o = np.split(gates[0].astype(np.float64), 4, axis=1)
    with np.errstate(over="ignore"):
        wanted = ladder / (1 + np.exp(-f)) + np.tanh(g) / (1 + np.exp(-i))
        shown = np.tanh(wanted) / (1 + np.exp(-o))
    np.testing.assert_allclose(c, wanted, rtol=2e-6, atol=1e-37)
    np.testing.assert_allclose(h, shown, rtol=4e-6, atol=1e-37)


def test_a_row_that_is_not_finite(form):
    gates, (c, h), *rest = operands(3, 2, 16)
    out, _ = run(gates, (c, h.at[1, 3].set(jnp.nan)), *rest, planes=2, activations=8, form=form)
    wanted, _ = run(gates, (c, h), *rest, planes=2, activations=8, form=form)
    assert np.isnan(out[1]).all()
    np.testing.assert_array_equal(out[::2], wanted[::2])


def test_no_texts_and_no_bytes():
    for texts, length in ((0, 3), (2, 0)):
        gates, carry, *rest = operands(texts, length, 16)
        out, after = plane_recurrence(gates, carry, *rest, 4, 8)
        assert out.shape == (texts, length, 16)
        jax.tree.map(np.testing.assert_array_equal, after, carry)


def test_what_does_not_fit_is_refused():
    gates, carry, bias, *rest = operands(2, 1, 16)
    with pytest.raises(ValueError, match=r"gates float32\[2, 1, 63\]: expected float32 \[2, 1, 64"):
        plane_recurrence(gates[..., 1:], carry, bias, *rest, 4, 8)
    with pytest.raises(ValueError, match=r"bias float32\[63\]: expected float32 \[64\]"):
        plane_recurrence(gates, carry, bias[1:], *rest, 4, 8)
    with pytest.raises(ValueError, match=r"c float32\[1, 16\]: expected float32 \[2, 16\]"):
        plane_recurrence(gates, (carry[0][1:], carry[1]), bias, *rest, 4, 8)
    with pytest.raises(ValueError, match=r"gates float32\[2, 64\]: expected float32 \[2, 'T'"):
        plane_recurrence(gates[:, 0], carry, bias, *rest, 4, 8)
    words, scales = rest
    with pytest.raises(ValueError, match=r"words of 1 outputs: expected 64, four gates for h of"):
        plane_recurrence(gates, carry, bias, words[..., :1], scales[:, :1], 4, 8, "xla")
    with pytest.raises(ValueError, match="form 'fast'"):
        plane_recurrence(gates, carry, bias, *rest, 4, 8, "fast")
