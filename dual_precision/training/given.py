"""What `fit` was given: checked at its start, and compared with the run that a workdir holds."""

import json
from typing import Any

from flax import linen as nn

from dual_precision.models import check_description
from dual_precision.tasks.task import Task


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
        own = {name: part for name, part in vars(value).items() if not name.startswith("_")}
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
