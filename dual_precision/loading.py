"""From a workdir back to a model and its variables."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from dual_precision.models import build_from
from dual_precision.training.checkpoint import CheckpointError, Checkpoints


def load(workdir: str | Path, step: int | str = "latest") -> tuple[nn.Module, dict[str, Any]]:
    """The trained network of a workdir: (model, variables), ready for `model.apply`.

    Args:
      workdir: as given to the experiment's --workdir.
      step: "latest", "best" (by validation), or a number.

    Raises:
      CheckpointError: there is no checkpoint, or none that is sound.
      ValueError: no checkpoint of that step; the message lists those there are.

    >>> model, variables = load("runs/digits")  # doctest: +SKIP
    >>> model.apply(variables, images, precision="low")  # doctest: +SKIP
    """
    checkpoints = Checkpoints(workdir)
    if not checkpoints.steps():
        raise CheckpointError(
            f"no checkpoint in {checkpoints.folder}: train one first,"
            f" python -m experiments.cifar --dataset=digits --workdir={workdir}"
        )
    if step == "best":
        step = checkpoints.best()
    if step == "latest":
        return checkpoints.newest(lambda number: _read(checkpoints, number))
    if step not in checkpoints.steps():
        raise ValueError(f"no checkpoint of step {step}: expected one of {checkpoints.steps()}")
    return _read(checkpoints, int(step))


def _read(checkpoints: Checkpoints, step: int) -> tuple[nn.Module, dict[str, Any]]:
    about = checkpoints.about(step)
    if "network" not in about["config"]:
        raise ValueError(
            f"step {step} was saved by fit(config={about['config']}): expected a"
            ' config with an entry "network", see build_from'
        )
    state = checkpoints.restore(step)
    model = build_from(about["config"]["network"])
    variables = {"params": state["params"], "batch_stats": state["batch_stats"]}
    return model, jax.tree.map(jnp.asarray, variables)
