"""Checkpoints with Orbax: asynchronous, verified; the latest, the best and phase ends kept.

Every checkpoint holds the state, and beside it as JSON the config of the run, what decides its
bits, where it stands, and a manifest: the sha256 of every array. The manifest is committed with the
state in one atomic rename, so that a checkpoint that is there is complete. Restoring recomputes it:
a damaged checkpoint is reported, and the one before it is used.
"""

import errno
import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from dual_precision.tasks.task import Tree
from dual_precision.training.manifest import manifest, seal_of
from dual_precision.training.processes import is_first, together
from dual_precision.training.reading import (
    CheckpointError,
    first_line,
    read_about,
    read_checkpoint,
    read_shapes,
)

_KEPT = 2
# What Orbax writes beside the arrays, in bytes: 0.1 MiB for a ResNet-20, and room to spare.
_OVERHEAD = 2**20
_FOLDER = "checkpoints"

log = logging.getLogger(__name__)


def _rank(measured: Mapping[str, Any]) -> tuple[int, float]:
    """What the best checkpoint has most of, see `Checkpoints.save`.

    In the first phase of a recipe there are fewer modes to validate than at its end, and their
    mean may well be higher.
    """
    return measured["validated"], measured["score"]


class Checkpoints:
    """The checkpoints of one workdir.

    Args:
      workdir: folder of the run; checkpoints go to its folder "checkpoints".
      config: what `load` needs to build the model again; JSON types only.
      milestones: steps that are kept whatever follows them.
      run: what decides the bits of the run, see `given.description_of`; JSON types only.
    """

    def __init__(
        self,
        workdir: Path | str,
        config: Mapping[str, Any] | None = None,
        milestones: Sequence[int] = (),
        run: Mapping[str, Any] | None = None,
    ):
        self.folder = Path(workdir).absolute() / _FOLDER
        self.milestones = list(milestones)
        self.config, self.run = dict(config or {}), dict(run or {})
        self._manager: ocp.CheckpointManager | None = None

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def _open(self) -> ocp.CheckpointManager:
        if self._manager is None:
            policies = ocp.checkpoint_managers
            best = policies.BestN(get_metric_fn=_rank, n=1, keep_checkpoints_without_metrics=False)
            ends = policies.CustomSteps(self.milestones)
            keep = policies.AnyPreservationPolicy([policies.LatestN(_KEPT), best, ends])
            options = ocp.CheckpointManagerOptions(
                preservation_policy=keep,
                enable_async_checkpointing=True,
                best_fn=_rank,
                cleanup_tmp_directories=True,
            )
            self.folder.mkdir(parents=True, exist_ok=True)
            # Orbax reads what is there, and stops at damage.
            self._set_aside_all(self._unreadable())
            self._manager = ocp.CheckpointManager(self.folder, options=options)
        return self._manager

    def steps(self) -> list[int]:
        """Steps with a committed checkpoint, oldest first; what is unfinished is not listed."""
        if not self.folder.is_dir():
            return []
        return sorted(int(p.name) for p in self.folder.iterdir() if p.is_dir() and p.name.isdigit())

    def best(self) -> int:
        """The kept step with the highest validation score, of those where the most modes were
        validated; where the JSON is damaged it is passed over.

        Raises:
          CheckpointError: there is none, or none with a sound JSON.
        """
        return self._ranked()[-1]

    def _ranked(self) -> list[int]:
        """Steps with a sound JSON, the best one last; raises as `best`."""
        damaged = self._unreadable()
        ranks = {s: _rank(self.about(s)["progress"]) for s in self.steps() if s not in damaged}
        if not ranks:
            raise CheckpointError(f"no checkpoint in {self.folder} can be read")
        return sorted(ranks, key=lambda step: (ranks[step], step))

    def _unreadable(self) -> list[int]:
        """Steps whose JSON is damaged, each said."""
        damaged = []
        for step in self.steps():
            try:
                self.about(step)
            except CheckpointError as error:
                log.warning("checkpoint skipped: %s", error)
                damaged.append(step)
        return damaged

    def save(
        self,
        step: int,
        state: Tree,
        progress: Mapping[str, Any],
        score: float,
        validated: int = 1,
    ) -> None:
        """Starts writing; returns as soon as the state is copied.

        Args:
          score: the higher the better; a mean over modes.
          validated: over how many, 0 where nothing was measured. A score of more modes ranks
            before all those of fewer.

        Raises:
          CheckpointError: this write or the one before failed (a full disk, say).
        """
        measured = {"score": float(score), "validated": validated}
        about: dict[str, Any] = {
            "step": step,
            "config": self.config,
            "run": self.run,
            "progress": {**progress, **measured},
            "manifest": manifest(state),
        }
        about["seal"] = seal_of(about)
        self.wait()
        try:
            self._check_room(state)
            self._open().save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(state), about=ocp.args.JsonSave(about)
                ),
                metrics=measured,
                force=True,
            )
        except (OSError, ValueError, RuntimeError) as error:
            raise self._write_failure(step, error) from error

    def wait(self) -> None:
        """Returns when everything is on disk."""
        if self._manager is None:
            return
        try:
            self._manager.wait_until_finished()
            self._manager.check_for_errors()
            together("checkpoint")  # the first process gives it its name
        except (OSError, ValueError, RuntimeError) as error:
            raise self._write_failure(None, error) from error

    def close(self) -> None:
        """Waits, and releases what Orbax holds."""
        manager, self._manager = self._manager, None
        if manager is None:
            return
        try:
            manager.close()
        except (OSError, ValueError, RuntimeError) as error:
            raise self._write_failure(None, error) from error

    def _check_room(self, state: Tree) -> None:
        """Raises OSError before a write that would fail halfway, threads deep in Orbax."""
        self.folder.mkdir(parents=True, exist_ok=True)
        needed = sum(leaf.nbytes for leaf in jax.tree.leaves(state)) + _OVERHEAD
        if shutil.disk_usage(self.folder).free < needed:
            raise OSError(errno.ENOSPC, f"{needed / 2**20:.0f} MiB needed, no space left on device")

    def _write_failure(self, step: int | None, error: Exception) -> CheckpointError:
        free = shutil.disk_usage(self.folder if self.folder.exists() else "/").free
        good = [s for s in self.steps() if s != step]
        return CheckpointError(
            f"checkpoint could not be written to {self.folder} ({free / 2**20:.0f} MiB free):"
            f" {first_line(error)}; the last good one is {f'step {good[-1]}' if good else 'none'}."
            " Make room and start the same command again: it goes on from there"
        )

    def about(self, step: int) -> dict[str, Any]:
        """The JSON beside a state: config, progress, manifest; verified against its seal."""
        return read_about(self.folder / str(step))

    def restore(self, step: int, target: Tree | None = None) -> Tree:
        """The state of one step, verified against its manifest.

        Args:
          target: a tree of ShapeDtypeStructs (with shardings) that the state is restored as;
            without one, lists and dicts of numpy arrays, whatever devices it was saved from.

        Raises:
          CheckpointError: missing, truncated, altered, or of another structure.
        """
        return read_checkpoint(self.folder / str(step), self.about(step)["manifest"], target)

    def shapes(self, step: int) -> dict[str, Tree]:
        """Shapes and dtypes of what was saved as params and batch_stats; raises as `restore`."""
        return read_shapes(self.folder / str(step))

    def set_aside(self, step: int) -> None:
        """Moves a damaged step out of the way, so that Orbax does not trip over it."""
        aside = self.folder.with_name("checkpoints_damaged")
        aside.mkdir(exist_ok=True)
        number = sum(1 for _ in aside.iterdir())
        (self.folder / str(step)).rename(aside / f"{step}_{number}")

    def set_aside_after(self, step: int) -> None:
        """Sets aside every later step: a run that goes on from `step` will write them again."""
        self._set_aside_all([later for later in self.steps() if later > step])

    def _set_aside_all(self, steps: Sequence[int]) -> None:
        """By the first process, when all have seen them."""
        together("before setting aside")
        for step in steps if is_first() else ():
            self.set_aside(step)
        together("set aside")

    def phase_ends(self) -> list[int]:
        """The last step that there is of each phase, in order."""
        last = {self.about(step)["progress"]["phase"]: step for step in self.steps()}
        return [last[phase] for phase in sorted(last)]

    def prune(self) -> None:
        """Deletes all but the phase ends: for a run that is finished.

        Raises:
          CheckpointError: one is damaged; nothing is deleted then.
        """
        for step in set(self.steps()) - set(self.phase_ends()):
            shutil.rmtree(self.folder / str(step))

    def newest(self, read: Callable[[int], Any]) -> Any:
        """`read(step)` for the newest step where it succeeds; None where there is no step.

        Damaged steps that are passed over are logged; nothing is written, see `set_aside_after`.

        Raises:
          CheckpointError: there are steps and none can be read.
        """
        return self._last_sound(self.steps(), read)

    def best_sound(self, read: Callable[[int], Any]) -> Any:
        """`read(step)` for the best step, see `best`, where it succeeds.

        Raises:
          CheckpointError: none can be read.
        """
        return self._last_sound(self._ranked(), read)

    def _last_sound(self, steps: Sequence[int], read: Callable[[int], Any]) -> Any:
        failures: list[str] = []
        for step in reversed(steps):
            try:
                return read(step)
            except CheckpointError as error:
                failures.append(str(error))
                log.warning("checkpoint skipped: %s; taking the one before", error)
        if failures:
            raise CheckpointError(
                f"no checkpoint in {self.folder} can be read: {'; '.join(failures)}."
                " Start again in another workdir"
            )
        return None
