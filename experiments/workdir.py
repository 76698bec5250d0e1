"""The folder of a run: its config, and whether it may be used."""

import json
from pathlib import Path
from typing import Any

from dual_precision.training.checkpoint import Checkpoints
from experiments.config import Config

CONFIG = "config.json"


def default_workdir(config: Config, preset: str) -> Path:
    """runs/cifar10-two_phase-joint-w2a2-w8a8-quick-seed0"""
    order = [config.order] if config.mode == "two_phase" else []
    parts = [config.dataset, config.mode, *order, config.low, config.high]
    return Path("runs") / "-".join([*parts, preset, f"seed{config.seed}"])


def open_workdir(workdir: Path, description: dict[str, Any], resume: bool) -> bool:
    """Claims `workdir` for a run, writing its config.json; True if it already has checkpoints.

    Raises:
      ValueError: it holds another run's config, or checkpoints that `resume` forbids to use.
      OSError: it cannot be written.
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        probe = workdir / ".writable"
        probe.write_text("")
        probe.unlink()
    except OSError as error:
        raise OSError(
            f"workdir {workdir} cannot be written ({error.strerror}): choose another --workdir"
        ) from error
    path = workdir / CONFIG
    begun = bool(Checkpoints(workdir).steps())
    if begun and not resume:
        raise ValueError(
            f"workdir {workdir} has checkpoints and --resume=false was given:"
            " choose another --workdir, or delete this one"
        )
    if path.exists():
        _check_same(path, description)
    else:
        part = path.with_suffix(".part")
        part.write_text(json.dumps(description, indent=2) + "\n")
        part.replace(path)
    return begun


def _check_same(path: Path, description: dict[str, Any]) -> None:
    try:
        found = dict(json.loads(path.read_text())["experiment"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not a run's config ({error}): use another --workdir") from None
    wanted = description["experiment"]
    changed = [
        f"{name} (there {found.get(name)!r}, now {wanted.get(name)!r})"
        for name in sorted(found.keys() | wanted.keys())
        if found.get(name) != wanted.get(name)
    ]
    if changed:
        raise ValueError(
            f"workdir {path.parent} holds a run with another config: {', '.join(changed)};"
            " choose another --workdir, or give the same settings"
        )
