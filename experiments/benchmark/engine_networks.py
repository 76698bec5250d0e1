"""The networks of `python -m experiments.benchmark engines`, packed without training."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from dual_precision.deploy import save_packed
from dual_precision.deploy.pytorch.network import import_resnet
from dual_precision.deploy.pytorch.state import read_state
from dual_precision.layers import CALIBRATION
from dual_precision.loading import load_trained, start_from
from dual_precision.models import build_from
from dual_precision.precision import modes
from dual_precision.structure import structure_of
from dual_precision.tasks.classification import Classification
from dual_precision.training.initialize import fit_weight_steps
from dual_precision.training.state import initial_variables

LOW, HIGH = "w4a8", "w8a8"


def pack_checkpoint(
    checkpoint: Path, out: Path, images: np.ndarray, mean: tuple, std: tuple
) -> tuple[Any, Any]:
    """Packs a float checkpoint of PyTorch; (float model, its variables).

    Raises:
      ValueError: no checkpoint of such a network.
    """
    network = {**import_resnet(read_state(checkpoint)).network, "mean": [*mean], "std": [*std]}
    example = Classification(images.shape[1:]).example
    return _packed(network, out, images, load_trained(checkpoint, example))


def pack_fresh(name: str, out: Path, images: np.ndarray, classes: int) -> tuple[Any, Any]:
    """Packs a network with its first weights, for times alone; (float model, its variables)."""
    return _packed({"name": name, "num_classes": classes}, out, images, None)


def _packed(network: dict[str, Any], out: Path, images: np.ndarray, trained: Any) -> Any:
    """Weight steps suit the high mode, input steps these images; every mode has the normalisation
    of the float network."""
    example, own = Classification(images.shape[1:]).example, modes(low=LOW, high=HIGH)
    network = {**network, **own.to_json()}
    model = build_from(network)
    structure = structure_of(model, example)
    variables = initial_variables(model, example, 0)
    if trained is not None:
        variables, notes = start_from(trained, variables, structure)
        if notes:
            raise ValueError(f"a checkpoint that does not fit: {notes[:3]}")
    params = fit_weight_steps(variables["params"], structure, "high")
    for mode in own.default:
        params = _with_input_steps(model, {**variables, "params": params}, images, mode)
    variables = {**variables, "params": params}
    save_packed(out, model, variables, network, example)
    return model, variables


def _with_input_steps(model: Any, variables: Any, images: np.ndarray, mode: str) -> Any:
    """The parameters with input steps of a mode that suit these images."""

    @jax.jit
    def measure(variables: Any, images: jax.Array) -> Any:
        _, found = model.apply(variables, images, precision=mode, mutable=[CALIBRATION])
        return found.get(CALIBRATION, {})

    found = flatten_dict(dict(measure(variables, jnp.asarray(images))))
    steps = {path: step for path, step in found.items() if path[-2] == "input_step"}
    return unflatten_dict({**flatten_dict(variables["params"]), **steps})
