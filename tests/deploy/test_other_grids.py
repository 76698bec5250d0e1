"""Networks whose weights are not on the nested grid: a packed file refuses them, and says why."""

import jax.numpy as jnp
import pytest

from dual_precision.deploy import save_packed
from dual_precision.models import build_from
from dual_precision.structure import structure_of
from dual_precision.tasks.classification import Classification
from dual_precision.training.methods.bsq import ToBits
from dual_precision.training.state import TrainState, initial_variables

EXAMPLE = Classification((4, 4, 1)).example


def made(name, **modes):
    network = {"name": name, "num_classes": 3, "hidden": [4, 4], "modes": modes}
    model = build_from(network)
    return network, model, initial_variables(model, EXAMPLE, seed=0)


def test_codes_between_a_minimum_and_a_maximum(tmp_path):
    network, model, variables = made("mlp_minmax", low="w2a2", high="w8a8")
    out = tmp_path / "net.safetensors"
    with pytest.raises(
        ValueError, match=r"'dense1' of class MinMaxDense quantizes in a way of its"
    ):
        save_packed(out, model, variables, network, EXAMPLE)
    assert not out.exists()


def test_bits_that_are_being_trained(tmp_path):
    network, model, variables = made("mlp", low="w32a4", high="w32a4")
    start = TrainState(jnp.int32(0), **variables, carry={}, opt_state=())
    moment = type("Moment", (), {"structure": structure_of(model, EXAMPLE), "epoch": 0})
    raw = ToBits("high")(start, moment).variables
    out = tmp_path / "net.safetensors"
    with pytest.raises(
        ValueError, match=r"'dense2' holds bits that are being trained.*trained on from"
    ):
        save_packed(out, model, raw, network, EXAMPLE)
    save_packed(out, model, variables, network, EXAMPLE)  # float in every mode: kept as it is
    assert out.exists()
