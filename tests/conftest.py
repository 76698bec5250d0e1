"""Strictness for every test, and the small network that several files train."""

import dataclasses
from typing import Any

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dual_precision import modes
from dual_precision.describe import describe_layers
from dual_precision.models import MLP
from dual_precision.training.state import initial_variables

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

hypothesis.settings.register_profile(
    "laws", deadline=None, max_examples=30, derandomize=True, database=None
)
hypothesis.settings.load_profile("laws")


@dataclasses.dataclass(frozen=True)
class Network:
    """A model, its first variables, and a batch that it can be trained on."""

    model: Any
    variables: Any
    layers: Any
    images: jax.Array
    labels: jax.Array


@pytest.fixture(scope="session")
def network() -> Network:
    """An MLP of two hidden layers with modes low (w2a2) and high (w8a8), on 8x8 images."""
    model = MLP(num_classes=4, modes=modes(low="w2a2", high="w8a8"), hidden=(16, 16))
    generator = np.random.default_rng(0)
    return Network(
        model,
        initial_variables(model, (8, 8, 1), seed=0),
        describe_layers(model, (8, 8, 1)),
        jnp.asarray(generator.integers(0, 256, (32, 8, 8, 1)), jnp.uint8),
        jnp.asarray(generator.integers(0, 4, 32), jnp.int32),
    )
