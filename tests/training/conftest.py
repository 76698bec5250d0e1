"""The small network that several files train."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from dual_precision import modes
from dual_precision.models import MLP
from dual_precision.structure import Structure, structure_of
from dual_precision.tasks.classification import Classification
from dual_precision.tasks.task import Batch, Network, Tree
from dual_precision.training.state import initial_variables


@dataclasses.dataclass(frozen=True)
class Small:
    """A network, its first variables, and a batch that it can be trained on."""

    network: Network
    structure: Structure
    variables: Tree
    batch: Batch


@pytest.fixture(scope="session")
def small() -> Small:
    """An MLP of two hidden layers with modes low (w2a2) and high (w8a8), on 8x8 images."""
    model = MLP(num_classes=4, modes=modes(low="w2a2", high="w8a8"), hidden=(16, 16))
    task = Classification((8, 8, 1))
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (32, 8, 8, 1))
    labels = generator.integers(0, 4, 32)
    return Small(
        Network(model, task),
        structure_of(model, task.example),
        initial_variables(model, task.example, seed=0),
        {"inputs": jnp.asarray(images, jnp.uint8), "labels": jnp.asarray(labels, jnp.int32)},
    )
