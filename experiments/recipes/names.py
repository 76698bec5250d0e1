"""The default folder of a run: what it is in short, and what it has otherwise than its preset."""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.recipes.run_config import RunConfig, changed_from

_LONGEST = 60  # characters of what differs from the preset; the rest is in the hash
_SHOWN = ("mode", "order", "low", "high", "seed")  # in every name
_SUBJECT = ("dataset", "model")  # in it as a whole, in part (of a path), or not
_UNSAFE = re.compile(r"[^\w.=+-]+", re.ASCII)


def run_folder(
    subject: Sequence[str], config: RunConfig, preset: str, values: Mapping[str, Any]
) -> Path:
    """runs/cifar10-two_phase-joint-w2a2-w8a8-quick-passes=28-seed0

    Two runs of different configs have different folders. The seed comes last, so that `-seed*`
    names the runs that differ in it alone.

    Args:
      subject: the first parts, of data set and network.
      values: of the preset.
    """
    order = [config.order] if config.order else []
    differing = {
        name: value
        for name, value in changed_from(config, values).items()
        if name not in _SHOWN and not (name in _SUBJECT and value in subject)
    }
    parts = [*subject, config.mode, *order, config.low, config.high, preset, *_tail(differing)]
    return Path("runs") / "-".join([*parts, f"seed{config.seed}"])


def _tail(differing: Mapping[str, Any]) -> list[str]:
    """passes=28-model=resnet20; where that is long, or no name of a file, a part of it and a hash
    of all."""
    whole = "-".join(f"{name}={_written(value)}" for name, value in differing.items())
    safe = _UNSAFE.sub("_", whole)
    if safe == whole and len(safe) <= _LONGEST:
        return [safe] if safe else []
    digest = hashlib.sha256(json.dumps(differing).encode()).hexdigest()
    return [safe[:_LONGEST], digest[:8]]


def _written(value: Any) -> str:
    """As `--set name=value` takes it."""
    if isinstance(value, str):
        return value
    return json.dumps(value).removesuffix(".0")
