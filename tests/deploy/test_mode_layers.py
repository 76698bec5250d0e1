"""A product on planes in modes of its own: the bits of training, or an error."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from dual_precision import Modes, Widths, modes
from dual_precision.deploy.planes.mode_layers import ModeLayer, XlaModeLayer, to_plane_layers
from dual_precision.layers import Dense
from dual_precision.training.state import initial_variables

EXAMPLE = jax.ShapeDtypeStruct((32,), jnp.float32)
X = jnp.asarray(np.random.default_rng(0).uniform(0, 24, (5, 32)), jnp.float32)


class Single(nn.Module):
    """One product."""

    modes: Modes
    signed: bool = False
    dense: Any = Dense

    @nn.compact
    def __call__(self, x, *, precision, train=False):
        layer = self.dense(4, modes=self.modes, signed=self.signed, name="only")
        return layer(x, precision=precision)


def on_planes(high, signed, form=ModeLayer):
    model = Single(modes(low="w2a4", high=high), signed)
    variables = initial_variables(model, EXAMPLE, 0)
    return model, variables, *to_plane_layers(model, variables, EXAMPLE, form)


@pytest.mark.parametrize("form", [ModeLayer, XlaModeLayer])
@pytest.mark.parametrize(("high", "signed", "widest"), [("w8a7", False, 7), ("w8a8", True, 8)])
def test_every_width_that_int8_holds_has_the_bits_of_training(form, high, signed, widest):
    model, variables, layered, planes = on_planes(high, signed, form)
    x = X - 12 if signed else X
    for bits in (2, 5, widest):
        asked = Widths("high", weights=8, activations=bits)
        wanted = model.apply(variables, x, precision=asked)
        assert float(jnp.ptp(wanted)) > 0
        np.testing.assert_array_equal(layered.apply(planes, x, precision=asked), wanted)


@pytest.mark.parametrize("bits", [8, np.int64(8), {"only": 8}])
def test_unsigned_inputs_of_8_bits_are_refused(bits):
    """Whether a mode means them or a call; of half of the codes the sign would be lost."""
    says = "layer 'only' has unsigned inputs of 8 bits: expected signed ones, or at most 7 bits"
    _, _, layered, planes = on_planes("w8a7", signed=False)
    with pytest.raises(ValueError, match=says):
        layered.apply(planes, X, precision=Widths("high", weights=8, activations=bits))
    with pytest.raises(ValueError, match=says):
        on_planes("w8a8", signed=False)
