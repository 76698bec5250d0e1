"""The LSTM on planes: trained in float, or in modes of its own."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dual_precision import Widths, modes
from dual_precision.deploy.planes.bit_layers import to_bit_layers
from dual_precision.deploy.planes.mode_layers import to_plane_layers
from dual_precision.models import build

EXAMPLE = jax.ShapeDtypeStruct((6,), jnp.uint8)
MODEL = build("lstm", features=32, depth=1, modes=modes(low="w2a8", high="w8a8"))
TEXT = jnp.asarray(np.random.default_rng(0).integers(0, 256, (3, 6)), jnp.uint8)


@pytest.fixture(scope="module")
def variables():
    return jax.jit(lambda key: MODEL.init(key, TEXT, precision="high"))(jax.random.key(0))


@partial(jax.jit, static_argnames=("model", "precision"))
def program(variables, model, precision):
    carry = MODEL.empty_carry(len(TEXT))
    first, carry = model.apply(variables, TEXT[:, :4], carry, precision=precision)
    second, _ = model.apply(variables, TEXT[:, 4:], carry, precision=precision)
    return jnp.concatenate([first, second], axis=1)


def logits(model, variables, precision):
    """Of text in two parts, what is carried given on."""
    return np.asarray(program(variables, model, precision), np.float64)


def relative(found, wanted):
    return np.sqrt(np.mean((found - wanted) ** 2) / np.mean(wanted**2))


def test_of_float_weights(variables):
    layered, planes = to_bit_layers(MODEL, variables, EXAMPLE, read=(8,))
    wanted = logits(MODEL, variables, "float")
    errors = [relative(logits(layered, planes, f"w{n}a16"), wanted) for n in (4, 8)]
    assert errors[1] < 0.02 < errors[0] < 0.5
    hidden = planes["params"]["hidden1"]["words"]
    planes["params"]["hidden1"]["words"] = hidden.at[4:].set(0)
    assert relative(logits(layered, planes, "w4a16"), wanted) == errors[0]


def test_of_modes(variables):
    layered, planes = to_plane_layers(MODEL, variables, EXAMPLE)
    for asked in ("low", Widths("high", weights=5)):
        wanted = logits(MODEL, variables, asked)
        found = logits(layered, planes, asked)
        # A code may fall on the other side of its edge by a rounding of what lies between.
        assert relative(found, wanted) < 0.05
        assert np.median(np.abs(found - wanted)) < 1e-3
