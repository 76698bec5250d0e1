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

from dual_precision import modes
from dual_precision.models import MLP
from dual_precision.structure import describe_layers
from dual_precision.training.optimizers import phase_optimizer
from dual_precision.training.phases import Phase
from dual_precision.training.sharding import batch_mesh, place_batches, replicate
from dual_precision.training.state import TrainState, initial_variables
from dual_precision.training.step import compile_chunk

STEPS, BATCH = 3, 32


def train() -> dict[str, list[float]]:
    """Losses of a few updates in each mode, the batch laid over all devices there are."""
    mesh = batch_mesh(BATCH)
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (STEPS * BATCH, 8, 8, 1)).astype(np.uint8)
    labels = generator.integers(0, 4, STEPS * BATCH).astype(np.int32)
    images, labels = replicate(images, mesh), replicate(labels, mesh)
    order = jnp.arange(STEPS * BATCH, dtype=jnp.int32).reshape(STEPS, BATCH)
    order = place_batches(order, mesh)
    model = MLP(num_classes=4, modes=modes(low="w2a2", high="w8a8"), hidden=(16, 16))
    layers, rate = describe_layers(model, (8, 8, 1)), optax.constant_schedule(0.05)
    losses = {}
    for mode in ("float", "low", "high"):
        phase = Phase(mode, 1, (mode,), 0.05)
        optimizer = phase_optimizer(phase, layers, rate, rate)
        run = compile_chunk(model, phase, optimizer, lambda _, x: x, jax.random.key(0))
        variables = initial_variables(model, (8, 8, 1), seed=0)
        opt_state = jax.jit(optimizer.init)(variables["params"])
        state = TrainState(jnp.int32(0), **variables, opt_state=opt_state)
        state, metrics = run(replicate(state, mesh), images, labels, order)
        assert len(state.params["dense1"]["kernel"].sharding.device_set) == len(mesh.devices)
        losses[mode] = np.asarray(metrics["loss"]).tolist()
    return losses


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
        [sys.executable, __file__], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def runs():
    return {devices: on(devices) for devices in (1, 8)}


# Sums over the batch are in another order, and near a tie one activation code may differ for it.
@pytest.mark.parametrize(("mode", "tolerance"), [("float", 1e-5), ("high", 1e-3), ("low", 1e-2)])
def test_eight_devices_give_the_losses_of_one(runs, mode, tolerance):
    assert (runs[1]["devices"], runs[8]["devices"]) == (1, 8)
    one, eight = runs[1]["losses"][mode], runs[8]["losses"][mode]
    assert len(one) == STEPS
    np.testing.assert_allclose(eight, one, rtol=tolerance)
    np.testing.assert_allclose(eight[0], one[0], rtol=1e-5)  # before any code could differ


def test_an_indivisible_batch_is_refused(runs):
    assert "33 images over 8 devices: expected a multiple of 8" in runs[8]["refused"]
    assert runs[1]["refused"] == ""


if __name__ == "__main__":
    print(json.dumps({"devices": jax.device_count(), "losses": train(), "refused": refused()}))
