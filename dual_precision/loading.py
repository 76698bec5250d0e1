"""From a workdir or a file back to a model and its variables, and from one network to another."""

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict

from dual_precision.models import build_from
from dual_precision.precision import FLOAT_NAME
from dual_precision.structure import Example, LayerPath, Structure, structure_of
from dual_precision.training.checkpoint import Checkpoints
from dual_precision.training.reading import CheckpointError


def load(workdir: str | Path, step: int | str = "latest") -> tuple[nn.Module, dict[str, Any]]:
    """The trained network of a workdir: (model, variables), ready for `model.apply`.

    Args:
      workdir: the folder of a run, as `fit` was given.
      step: "latest", "best" (the highest validation score, a mean over modes, among the kept
        checkpoints that validated the most modes), or a number.

    Raises:
      CheckpointError: there is no checkpoint, or none that is sound.
      ValueError: a file; no checkpoint of that step: the message lists those there are.

    >>> model, variables = load("runs/digits")  # doctest: +SKIP
    >>> model.apply(variables, images, precision="low")  # doctest: +SKIP
    """
    if Path(workdir).is_file():
        raise ValueError(
            f"{workdir} is a file: expected the folder of a run; a packed file is read by"
            " dual_precision.deploy.load_packed"
        )
    checkpoints = Checkpoints(workdir)
    if not checkpoints.steps():
        raise CheckpointError(
            f"no checkpoint in {checkpoints.folder}: expected the folder of a run that has trained"
            " for an epoch or more"
        )
    searches = {"latest": checkpoints.newest, "best": checkpoints.best_sound}
    if step in searches:
        model, variables, _ = searches[step](lambda number: _read(checkpoints, number))
        return model, variables
    if step not in checkpoints.steps():
        raise ValueError(f"no checkpoint of step {step}: expected one of {checkpoints.steps()}")
    model, variables, _ = _read(checkpoints, int(step))
    return model, variables


def _read(checkpoints: Checkpoints, step: int) -> tuple[nn.Module, dict[str, Any], dict[str, Any]]:
    """(model, variables, the config of the run)."""
    config = checkpoints.about(step)["config"]
    if "network" not in config:
        raise ValueError(
            f"step {step} was saved by fit(config={config}): expected a"
            ' config with an entry "network", see build_from'
        )
    state = checkpoints.restore(step)
    model = build_from(config["network"])
    variables = {"params": state["params"], "batch_stats": state.get("batch_stats") or {}}
    return model, jax.tree.map(jnp.asarray, variables), config


@dataclasses.dataclass(frozen=True, eq=False)
class Trained:
    """A trained network to start another one from.

    Attributes:
      variables: params and batch_stats.
      modes: that were trained: whose normalisation and input steps are worth something.
      stored: layer -> width of the grid that its steps belong to; empty where there are no steps.
      names: leaf -> what it is called where it comes from, if that is another name.
      left: a line for everything there that has no place in a network of ours.
    """

    variables: Mapping[str, Any]
    modes: tuple[str, ...]
    stored: Mapping[LayerPath, int]
    names: Mapping[LayerPath, str] = dataclasses.field(default_factory=dict)
    left: Sequence[str] = ()


def load_trained(source: str | Path, example: Example) -> Trained:
    """What `start_from` takes, of a workdir, a packed file, a file of floats or one of PyTorch.

    A safetensors file holds float32 parameters under the names of the layers: "stem/kernel",
    "stem_norm/scale", "stem_norm/mean", "classifier/bias", see `save_floats`; or those of a
    PyTorch state dict, which a file of `torch.save` holds too: of a residual network, see
    `deploy.pytorch.resnets`.

    Args:
      example: what the new network takes, see `structure_of`.

    Raises:
      ValueError, OSError, CheckpointError: neither of these, damaged, or without a trained mode.
    """
    source = Path(source)
    if source.is_dir():
        checkpoints = Checkpoints(source)
        if not checkpoints.steps():
            raise CheckpointError(f"no checkpoint in {checkpoints.folder}: expected a trained run")
        model, variables, config = checkpoints.newest(lambda step: _read(checkpoints, step))
        return Trained(variables, trained_modes(config, model), _stored_of(source, model, example))
    from dual_precision.deploy.file.packed import PackedFile, is_packed

    if is_packed(source):
        with PackedFile(source) as file:
            model, variables = file.load()
        if not file.info.trained:  # its normalisations are those that a network begins with
            raise ValueError(
                f"{source} holds {[*file.info.bytes_read]}, and its run trained none of them:"
                " expected a file with a trained mode, or the folder of the run"
            )
        return Trained(variables, file.info.trained, _stored_of(source, model, example))
    from dual_precision.deploy.pytorch.state import is_pytorch

    if not is_pytorch(source):
        floats = _read_floats(source)
        if any("/" in name for name in floats):  # in the names of PyTorch stand dots
            return Trained(_by_path(source, floats), (FLOAT_NAME,), {})
    return _of_pytorch(source)


def _of_pytorch(source: Path) -> Trained:
    from dual_precision.deploy.pytorch.network import import_resnet
    from dual_precision.deploy.pytorch.state import read_state

    found = import_resnet(read_state(source))
    left = [line for line in found.mapped.problems if line.endswith("only there")]
    return Trained(found.variables, (FLOAT_NAME,), {}, found.mapped.theirs, left)


def _stored_of(source: Path, model: nn.Module, example: Example) -> dict[LayerPath, int]:
    """The stored width of every layer: one that a model pins has another than the rest."""
    try:
        layers = structure_of(model, example).layers
    except ValueError as error:
        raise ValueError(f"{source} takes other inputs than the new network: {error}") from None
    return {path: layer.stored for path, layer in layers.items() if layer.stored}


def trained_modes(config: Mapping[str, Any], model: Any) -> tuple[str, ...]:
    """The modes that a run trained, as its config says, a list "trained"; without one all."""
    return tuple(config.get("trained", model.modes.default))


STATISTICS = ("mean", "var")


def save_floats(path: str | Path, variables: Mapping[str, Any], structure: Structure) -> None:
    """Writes the float network in `variables` as safetensors: one tensor for each of its values.

    Names are those of the layers; a normalisation has scale, bias, mean and var of mode "float".

    Raises:
      ValueError: what stands under `path` is no regular file. OSError: it cannot be written.
    """
    from safetensors.numpy import save

    from dual_precision.deploy.file.writer import write_parts

    tensors = {}
    for leaf, value in flatten_dict(dict(variables)).items():
        if structure.is_read(leaf, [FLOAT_NAME]) and not {"step", "input_step"} & {*leaf}:
            name = "/".join(part for part in leaf[1:] if part != FLOAT_NAME)
            tensors[name] = np.asarray(value, np.float32)
    write_parts(path, [save(tensors)])


def _read_floats(path: Path) -> dict[str, np.ndarray]:
    from safetensors import SafetensorError

    from dual_precision.deploy.pytorch.state import load_safetensors

    content = path.read_bytes()
    try:
        return load_safetensors(content)
    except SafetensorError as error:
        raise ValueError(
            f"{path}: not a workdir, a packed file, a file of torch.save or a safetensors file of"
            f" parameters ({error})"
        ) from None
    except ValueError as error:  # which numbers they are
        raise ValueError(f"{path}: {error}") from None


def _by_path(path: Path, tensors: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Variables, of values under the names of the layers in the file `path`."""
    # What has a scale is a normalisation; a root mean square one has nothing else.
    ends = ("/scale", "/mean")
    norms = {tuple(name.split("/")[:-1]) for name in tensors if name.endswith(ends)}
    leaves: dict[LayerPath, np.ndarray] = {}
    for name, array in tensors.items():
        *path_of, leaf = name.split("/")
        if {*LOOSE} & {*path_of, leaf}:
            raise ValueError(
                f"{path}: {name!r} is a step of a quantizer: expected float parameters alone, as"
                " save_floats writes them; leave it out"
            )
        outer = ["/".join(path_of[:end]) for end in range(1, len(path_of) + 1)]
        if found := tensors.keys() & outer:
            raise ValueError(
                f"{path}: {name!r} is below {min(found)!r}, which is a tensor too: expected"
                " layers or tensors under a name; rename one"
            )
        own = (*path_of, FLOAT_NAME, leaf) if tuple(path_of) in norms else (*path_of, leaf)
        leaves["batch_stats" if leaf in STATISTICS else "params", *own] = array
    return unflatten_dict(leaves)


def start_from(
    trained: Trained, fresh: Mapping[str, Any], structure: Structure
) -> tuple[dict[str, Any], list[str]]:
    """Variables of a new network that take over what fits of a trained one; and what does not.

    A mode that was not trained there takes the normalisation of one that was: of "float" where
    there is one, else of the last in `trained.modes`, the widest. Input steps go to the same mode
    alone; weight steps keep their meaning under another stored width: step * 2^(N_then - N_now).

    Args:
      fresh: the initial variables of the new network, described by `structure`.

    Returns:
      (variables, a line for every value that does not fit or is missing).

    Raises:
      ValueError: nothing fits; a value is not finite.
    """
    source = dict(flatten_dict(dict(trained.variables)))
    names = structure.modes.names
    fallback = FLOAT_NAME if FLOAT_NAME in trained.modes else trained.modes[-1]
    seen: set[LayerPath] = set()
    leaves, notes, kernels = {}, [], 0
    for leaf, value in flatten_dict(dict(fresh)).items():
        leaves[leaf] = value
        place = _place_of(leaf, structure.owner(leaf), trained.modes, fallback)
        if place is None:
            continue
        found, said = source.get(place), _said(leaf, trained.names.get(place))
        if found is None:
            if not {*LOOSE} & {*leaf}:
                notes.append(f"{said}: missing there, starts fresh")
            continue
        seen.add(place)
        if found.shape != value.shape:
            notes.append(
                f"{said}: {list(found.shape)} there, {list(value.shape)} here, starts fresh"
            )
            continue
        if not np.isfinite(np.asarray(found)).all():
            raise ValueError(f"{'/'.join(leaf)}: infinities or NaN there; expected numbers")
        leaves[leaf] = jnp.asarray(found, jnp.float32)
        kernels += leaf[-1] == "kernel"
        if leaf[-1] == "step":
            now = structure.layers[leaf[1:-1]].stored
            assert now is not None, "what has a step has a grid"
            leaves[leaf] = leaves[leaf] * jnp.float32(2.0 ** (trained.stored[leaf[1:-1]] - now))
    unread = [leaf for leaf in source if leaf not in seen and not {*leaf} & {*names, *LOOSE}]
    notes += [
        f"{_said(leaf, trained.names.get(leaf))}: only there, left out" for leaf in sorted(unread)
    ]
    notes += [f"{line}, left out" for line in trained.left]
    if not kernels:
        raise ValueError(
            "no kernel of that network fits this one: expected layers of the same names and shapes,"
            f" such as {sorted('/'.join(path) for path in structure.layers)[:3]}"
        )
    return unflatten_dict(leaves), notes


def _said(leaf: LayerPath, there: str | None) -> str:
    """A leaf as notes name it, with what it is called there, if that is something else."""
    return f"{'/'.join(leaf)}{f' <- {there}' if there else ''}"


LOOSE = ("step", "input_step")


def _place_of(
    leaf: LayerPath, mode: str | None, trained: Collection[str], fallback: str
) -> LayerPath | None:
    """Where the value of a leaf stands in the trained network; None where it has none to give."""
    if mode is None:
        return leaf
    if "input_step" in leaf:
        return leaf if mode in trained else None
    source = mode if mode in trained else fallback
    return tuple(source if part == mode else part for part in leaf)
