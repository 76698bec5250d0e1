"""The bridge to Flax NNX: one set of parameters, and a precision at every call."""

import warnings
from typing import Any

import jax
import numpy as np
import pytest
from flax import linen as nn
from flax.traverse_util import flatten_dict

from dual_precision.models import build
from dual_precision.precision import modes

IMAGES = np.random.default_rng(0).integers(0, 256, (2, 4, 4, 1), np.uint8)


def test_a_network_keeps_its_modes_in_nnx():
    """As docs/engines.md shows it."""
    nnx = pytest.importorskip("flax.nnx")
    bridge = pytest.importorskip("flax.nnx.bridge")
    model = build("mlp", num_classes=3, hidden=(8, 8), modes=modes(low="w2a2", high="w8a8"))
    variables = model.init(jax.random.key(0), IMAGES, precision="high")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # NNX on its own names
        network = bridge.ToNNX(model, rngs=nnx.Rngs(1))
        bridge.lazy_init(network, IMAGES, precision="high")
        for name, value in bridge.variables.linen_vars_to_nnx_attrs(variables).items():
            setattr(network, name, value)
        found = {mode: network(IMAGES, precision=mode) for mode in ("float", "low", "high")}
        state = jax.tree.leaves(nnx.state(network, nnx.Param))
    for mode, logits in found.items():
        np.testing.assert_array_equal(logits, model.apply(variables, IMAGES, precision=mode))
    assert not np.array_equal(found["low"], found["high"])
    assert len(state) == len(flatten_dict(variables["params"])), "no second set"


class Inside(nn.Module):
    """A network as a part: the bridge takes an attribute for a part of the same name."""

    made: Any

    @nn.compact
    def __call__(self, *inputs: Any, precision: Any) -> Any:
        own = self.made.clone(name="network", parent=self)
        return own(*inputs, precision=precision)


def test_a_language_model_is_a_part_of_another():
    """As docs/engines.md says; by itself its attribute `embed` stands for its part `embed`."""
    nnx = pytest.importorskip("flax.nnx")
    bridge = pytest.importorskip("flax.nnx.bridge")
    model = build("lstm", features=8, depth=1, modes=modes(low="w2a2", high="w8a8"))
    text = IMAGES.reshape(2, 16)
    variables = model.init(jax.random.key(0), text, precision="high")
    inside = {name: {"network": own} for name, own in variables.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # NNX on its own names
        network = bridge.ToNNX(Inside(model), rngs=nnx.Rngs(1))
        bridge.lazy_init(network, text, precision="high")
        for name, value in bridge.variables.linen_vars_to_nnx_attrs(inside).items():
            setattr(network, name, value)
        found = {mode: network(text, precision=mode) for mode in ("low", "high")}
    for mode, logits in found.items():
        np.testing.assert_array_equal(logits, model.apply(variables, text, precision=mode))
