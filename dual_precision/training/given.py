"""What `fit` was given: checked at its start, and compared with the run that a workdir holds."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.traverse_util import flatten_dict

from dual_precision.models import check_description
from dual_precision.structure import LayerPath, Structure
from dual_precision.tasks.task import Network, Task, Tree
from dual_precision.training.manifest import manifest
from dual_precision.training.options import FitOptions
from dual_precision.training.phases import Phase
from dual_precision.training.processes import agree, digest_of

_SAID = 4  # differences that an error lists


class _Absent:
    """In the place of an entry that one of two mappings does not have; None may be a value."""

    def __repr__(self) -> str:
        return "nothing"


_ABSENT = _Absent()


def checked_config(config: Any, model: nn.Module, task: Task) -> dict[str, Any]:
    """The config as JSON gives it back.

    Raises:
      ValueError: what would fail late: it is not JSON, or its "network" is not this model; a model
        or a task that is not hashable.
    """
    _check_hashable("model", model, "tuples in the place of lists")
    _check_hashable("task", task, "a frozen dataclass")
    try:
        found = json.loads(json.dumps({} if config is None else config))
        if not isinstance(found, dict):
            raise TypeError(f"{type(config).__name__}, no entries by name")
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"config is not JSON ({error}): expected a dict of texts, numbers of Python, lists and"
            " dicts; float(value) makes such a number"
        ) from None
    if "network" in found:
        check_description(found["network"], model)
    return found


def _check_hashable(what: str, value: Any, wanted: str) -> None:
    if not _is_hashable(value):
        parts = getattr(value, "__dict__", {})
        own = {name: part for name, part in parts.items() if not name.startswith("_")}
        found = [f"{name}={part!r:.80}" for name, part in own.items() if not _is_hashable(part)]
        raise ValueError(
            f"{what} {type(value).__name__}({', '.join(found)}) cannot be hashed: expected"
            f" {wanted}, for compiled programs are kept under it"
        )


def _is_hashable(value: Any) -> bool:
    try:
        hash(value)
    except TypeError:
        return False
    return True


def digests_of(task: Task, train: Any, validation: Any) -> dict[str, str]:
    """The first 64 bits of the sha256 of what trains and of what validates: an error shows all."""
    splits = {"train": train, "validation": validation}
    return {name: digest_of(task.arrays(split))[:16] for name, split in splits.items()}


def check_agreed(options: FitOptions, data: Mapping[str, str], config: Any, variables: Any) -> None:
    """Raises ProcessesDiffer where the processes of this run were given different things."""
    if jax.process_count() == 1:
        return
    agree(
        {
            "options": dataclasses.asdict(options),
            "config": config,
            "data": data,
            "variables": variables and manifest(variables),
        }
    )


def description_of(
    network: Network,
    phases: Sequence[Phase],
    options: FitOptions,
    steps_per_epoch: int,
    data: Mapping[str, str],
) -> dict[str, Any]:
    """What decides the bits of a run, as JSON; it is kept beside each checkpoint.

    `data` is of `digests_of`: validation chooses the best checkpoint and is in the log.
    Devices, and what `FitOptions` has beside these, change speed and the moments of evaluations.
    """
    return {
        "seed": int(options.seed),
        "batch_size": int(options.batch_size),
        "accumulate": int(options.accumulate),
        "steps_per_epoch": steps_per_epoch,
        "data": dict(data),
        "model": _described(network.model),
        "task": _described(network.task),
        "phases": [_described(phase) for phase in phases],
    }


def check_same_run(about: Mapping[str, Any], now: Mapping[str, Any], workdir: Path) -> None:
    """Raises ValueError where a checkpoint is of another run than the one that `now` describes.

    Phases after that of the checkpoint may be others. A checkpoint from before runs said their
    data is believed to be of these.
    """
    phase, count = about["progress"]["phase"], len(now["phases"])
    if phase >= count:
        _refuse(workdir, [f"phases (there {phase + 1} or more, now {count})"])
    there = about["run"]
    if there and "data" not in there and "data" in now:
        there = {**there, "data": now["data"]}
    one, other = ({**run, "phases": run.get("phases", [])[: phase + 1]} for run in (there, now))
    _refuse(workdir, _differences(one, other))


def check_restored(variables: Tree, structure: Structure, workdir: Path) -> None:
    """Raises ValueError where restored values are not those that the model has."""
    _refuse(
        workdir,
        [
            f"{'/'.join(path)} (there {found}, now {wanted})"
            for path, found, wanted in _other_shapes(variables, structure)
            if wanted  # events add leaves
        ],
    )


def check_start(variables: Any, structure: Structure) -> None:
    """Raises ValueError where there are values to start from, and not those of the model."""
    if variables is None:
        return
    if not isinstance(variables, Mapping):
        raise ValueError(
            f"variables: got {type(variables).__name__}, expected what model.init gives: a mapping"
            " with params and batch_stats"
        )
    others = _other_shapes(variables, structure)
    if others:
        path, found, wanted = others[0]
        more = f", and {len(others) - 1} other leaves" if len(others) > 1 else ""
        raise ValueError(
            f"variables are of another network: {'/'.join(path)} has the shape {found}, expected"
            f" {wanted}{more} (None: there is none); start_from takes what fits of another network"
        )


def check_outputs(task: Task, structure: Structure, arrays: Mapping[str, Any]) -> None:
    """Raises what the task raises of outputs that its loss is not for; nothing is computed.

    What a model that carries a state gives is seen in the first step alone.
    """
    if jax.tree.leaves(task.carry(1)):
        return

    def loss(arrays: Mapping[str, Any], index: jax.Array, key: jax.Array, outputs: Any) -> Any:
        return task.loss(outputs, task.draw(arrays, index, key))

    first = jax.ShapeDtypeStruct((1,), jnp.int32)
    jax.eval_shape(loss, arrays, first, jax.random.key(0), structure.outputs)


def _other_shapes(
    variables: Tree, structure: Structure
) -> list[tuple[LayerPath, tuple[int, ...] | None, tuple[int, ...] | None]]:
    """Paths with another shape than the model has, that shape and its own; None without a leaf."""
    found = {path: np.shape(leaf) for path, leaf in flatten_dict(variables).items()}
    wanted = {path: leaf.shape for path, leaf in structure.shapes.items()}
    return [
        (path, found.get(path), wanted.get(path))
        for path in {**wanted, **found}
        if found.get(path) != wanted.get(path)
    ]


def _refuse(workdir: Path, differences: Sequence[str]) -> None:
    if differences:
        more = ", ..." if len(differences) > _SAID else ""
        raise ValueError(
            f"workdir {workdir} has checkpoints of another run: {', '.join(differences[:_SAID])}"
            f"{more}; choose another workdir, or give what that run was given"
        )


def _described(value: Any) -> Any:
    """JSON of a value: the fields of what is frozen; of a function, and of all that may change
    while it is used, the name alone."""
    if value is None or isinstance(value, str | int | float):
        return value
    if isinstance(value, np.number):
        return value.item()
    if isinstance(value, Mapping):
        return {str(key): _described(part) for key, part in value.items()}
    if isinstance(value, tuple):
        return [_described(part) for part in value]
    if isinstance(value, partial):
        own = {"of": value.func, "arguments": value.args, **value.keywords}
        return _described(own)
    if isinstance(value, nn.Module) or _is_frozen(value):
        shown = [field.name for field in dataclasses.fields(value) if field.compare and field.repr]
        fields = {name: _described(getattr(value, name, None)) for name in shown}
        return {"class": type(value).__name__, **fields}
    return getattr(value, "__name__", type(value).__name__)


def _is_frozen(value: Any) -> bool:
    parameters = getattr(value, "__dataclass_params__", None)
    return not isinstance(value, type) and parameters is not None and parameters.frozen


def _differences(there: Any, now: Any, name: str = "") -> list[str]:
    """A line for each value that differs, or that only one of the two has."""
    if isinstance(there, dict) and isinstance(now, dict):
        pairs = {key: (there.get(key, _ABSENT), now.get(key, _ABSENT)) for key in {**there, **now}}
    elif isinstance(there, list) and isinstance(now, list) and len(there) == len(now):
        pairs = dict(enumerate(zip(there, now, strict=True)))
    else:
        same = there == now or repr(there) == repr(now)  # the latter of NaN
        return [] if same else [f"{name} (there {there!r:.60}, now {now!r:.60})"]
    return [
        line
        for key, (one, other) in pairs.items()
        for line in _differences(one, other, f"{name}.{key}" if name else key)
    ]
