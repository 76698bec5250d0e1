"""The batch over eight devices gives the losses of one. This file is also the program they run."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec

from dual_precision import modes
from dual_precision.models import MLP
from dual_precision.primitives.minmax import range_of_batch
from dual_precision.primitives.normalization import normalize_batch
from dual_precision.primitives.shared_batch import BATCH as BATCH_AXIS
from dual_precision.primitives.shared_batch import is_shared, whole_extremes
from dual_precision.structure import structure_of
from dual_precision.tasks.classification import Classification
from dual_precision.tasks.task import Network
from dual_precision.training import step
from dual_precision.training.methods.modes import Split, Together
from dual_precision.training.optimizers import RATE, STEP_RATE, Sgd
from dual_precision.training.phases import Phase, stages_of
from dual_precision.training.sharding import batch_mesh, place_batches, replicate
from dual_precision.training.state import TrainState, initial_variables

pytestmark = pytest.mark.slow

STEPS, BATCH = 3, 32
LOSSES = {
    "float": Together(("float",)),
    "high": Together(("high",)),
    "low": Together(("low",)),
    "split": Split(("high", "low")),
}


def train() -> dict[str, list[float]]:
    """Losses of a few updates of each way, the batch laid over all devices there are."""
    mesh = batch_mesh(BATCH)
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (STEPS * BATCH, 8, 8, 1)).astype(np.uint8)
    labels = generator.integers(0, 4, STEPS * BATCH).astype(np.int32)
    arrays = replicate({"images": images, "labels": labels}, mesh)
    order = np.arange(STEPS * BATCH, dtype=np.int32).reshape(STEPS, BATCH)
    order = place_batches(order, mesh)
    model = MLP(num_classes=4, modes=modes(low="w2a2", high="w8a8"), hidden=(16, 16))
    network = Network(model, Classification((8, 8, 1)))
    structure = structure_of(model, network.task.example)
    schedules = dict.fromkeys((RATE, STEP_RATE), lambda _: optax.constant_schedule(0.05))
    losses = {}
    for name, loss in LOSSES.items():
        phase = Phase(name, 1, loss.precisions, loss, Sgd(), schedules)
        (stage,) = stages_of([phase], structure, STEPS)
        run = step.compile_steps(network, stage, jax.random.key(0), mesh)
        variables = initial_variables(model, network.task.example, seed=0)
        opt_state = jax.jit(stage.optimizer.init)(variables["params"])
        state = TrainState(jnp.int32(0), **variables, carry={}, opt_state=opt_state)
        state, metrics = run(replicate(state, mesh), arrays, order)
        assert len(state.params["dense1"]["kernel"].sharding.device_set) == len(mesh.devices)
        losses[name] = np.asarray(metrics["loss"]).tolist()
    return losses


def apart() -> float:
    """How far normalisation and ranges of a shared batch are from those of it whole."""
    x, g = jax.random.normal(jax.random.key(1), (2, BATCH, 3, 5))
    scale, bias = jnp.arange(1.0, 6.0), jnp.arange(5.0)

    def normalized(x, g, scale, bias):
        (y, mean, var), pull = jax.vjp(lambda *own: normalize_batch(*own, 1e-5), x, scale, bias)
        to_x, *others = pull((g, mean, var))
        if is_shared():
            others = jax.lax.psum(others, BATCH_AXIS)
        return (y, to_x), (
            mean,
            var,
            *others,
            *range_of_batch(x),
            *whole_extremes(x.min(), x.max()),
        )

    rows, whole = PartitionSpec(BATCH_AXIS), PartitionSpec()
    layout = {"in_specs": (rows, rows, whole, whole), "out_specs": (rows, whole)}
    shared = jax.shard_map(normalized, mesh=batch_mesh(BATCH), check_vma=False, **layout)
    found, right = (jax.tree.leaves(jax.jit(f)(x, g, scale, bias)) for f in (shared, normalized))
    return max(float(jnp.max(jnp.abs(a - b))) for a, b in zip(found, right, strict=True))


def refused() -> str:
    """What an indivisible batch is told."""
    try:
        batch_mesh(BATCH + 1)
    except ValueError as error:
        return str(error)
    return ""


def on(devices: int) -> dict:
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "JAX_NUMPY_DTYPE_PROMOTION": "strict",
        "JAX_NUMPY_RANK_PROMOTION": "raise",
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), *sys.path]),
    }
    done = subprocess.run(
        [sys.executable, __file__], env=environment, capture_output=True, text=True, timeout=1200
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def runs():
    return {devices: on(devices) for devices in (1, 8)}


# Sums over the batch are in another order, and near a tie one activation code may differ for it.
@pytest.mark.parametrize(
    ("name", "tolerance"), [("float", 1e-5), ("high", 1e-3), ("low", 1e-2), ("split", 1e-2)]
)
def test_eight_devices_give_the_losses_of_one(runs, name, tolerance):
    assert (runs[1]["devices"], runs[8]["devices"]) == (1, 8)
    one, eight = runs[1]["losses"][name], runs[8]["losses"][name]
    assert len(one) == STEPS
    np.testing.assert_allclose(eight, one, rtol=tolerance)
    np.testing.assert_allclose(eight[0], one[0], rtol=1e-5)  # before any code could differ


def test_an_indivisible_batch_is_refused(runs):
    assert "33 images over 8 devices: expected a multiple of 8" in runs[8]["refused"]
    assert runs[1]["refused"] == ""


def test_normalisation_and_ranges_are_of_the_whole_batch(runs):
    assert runs[8]["apart"] < 1e-5


if __name__ == "__main__":
    step.compiler_options = lambda: {"xla_backend_optimization_level": 0}  # compiles in half
    found = {"losses": train(), "apart": apart(), "refused": refused()}
    print(json.dumps({"devices": jax.device_count(), **found}))
