"""How what stands in a checkpoint is read and verified: JSON of a bounded size, arrays by Orbax.

Orbax reads all arrays of a state at once and gives up at the first that fails. Its event loop is
closed then, while its reader threads still have the others: each of these finds the loop closed and
prints a traceback that nobody can catch. The handlers here wait for all of them first.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from dual_precision.tasks.task import Tree
from dual_precision.training.manifest import manifest, seal_of

LARGEST_RECORD = 64 << 20  # bytes; of a network of 10,000 arrays the largest file has 2 MiB

# What `Checkpoints.save` writes beside a state, and what of it in the entry "progress".
_WRITTEN = {"step", "config", "run", "progress", "manifest"}
_MEASURED = {"score", "validated"}


class CheckpointError(RuntimeError):
    """A checkpoint could not be written or none could be read; the message says what to do."""


def read_about(folder: Path) -> dict[str, Any]:
    """The JSON of a checkpoint, which lies in a folder with the name of its step.

    Raises:
      CheckpointError: missing, too large, altered, of another step, or not all that is written.
    """
    step = int(folder.name)
    _reading(step, lambda: _check_sizes(folder))
    about = _reading(step, lambda: _read_json(folder / "about" / "metadata"))
    if not isinstance(about, dict) or about.pop("seal", None) != seal_of(about):
        raise CheckpointError(f"step {step}: its JSON does not match its seal: it was altered")
    if missing := sorted(_WRITTEN - about.keys()):
        raise CheckpointError(
            f"step {step}: its JSON has no {', '.join(missing)}: expected all of"
            f" {sorted(_WRITTEN)}; train in another workdir"
        )
    if about["step"] != step:
        raise CheckpointError(
            f"step {step}: its folder holds the checkpoint of step {about['step']};"
            " expected each under its own number; rename it back"
        )
    # What Orbax finds the best by.
    metrics = _reading(step, lambda: _read_json(folder / "metrics" / "metrics"))
    if metrics != {name: about["progress"].get(name) for name in _MEASURED}:
        raise CheckpointError(f"step {step}: its score was altered")
    return about


def read_checkpoint(folder: Path, wanted: Mapping[str, str], target: Tree | None) -> Tree:
    """The state of a checkpoint.

    Args:
      wanted: its manifest.
      target: ShapeDtypeStructs with shardings; None gives numpy arrays in lists and dicts.

    Raises:
      CheckpointError: missing, truncated, altered, or of another structure.
    """
    step = int(folder.name)
    state = _reading(step, lambda: _read_arrays(folder / "state", target))
    found = manifest(state)
    if target is None:  # without a target Orbax gives opt_state another structure
        wanted, found = (
            {path: sha for path, sha in tree.items() if not path.startswith("['opt_state']")}
            for tree in (wanted, found)
        )
    if found != wanted:
        raise CheckpointError(f"step {step} does not match its manifest: it was altered")
    return state


def read_shapes(folder: Path) -> dict[str, Tree]:
    """Shapes and dtypes of what was saved as params and batch_stats; raises as the state does."""
    tree = _reading(int(folder.name), lambda: _saved_tree(folder / "state"))
    return {
        name: jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree.get(name) or {}
        )
        for name in ("params", "batch_stats")
    }


def first_line(error: Exception) -> str:
    """What an error says first."""
    line = (str(error).strip() or type(error).__name__).splitlines()[0]
    return line.split(". See full TensorStore")[0][:200]  # what follows is an address in memory


def _reading(step: int, read: Callable[[], Any]) -> Any:
    """read(); a CheckpointError that names the step where it fails."""
    try:
        return read()
    except Exception as error:  # Orbax raises what its readers raise, a bare Exception too
        raise CheckpointError(f"step {step} cannot be read: {first_line(error)}") from error


def _check_sizes(step: Path) -> None:
    """Raises ValueError where a file of a checkpoint, beside those of its arrays, is too large.

    They are read whole, by Orbax too: a sparse file would fill the memory.
    """
    for path in step.rglob("*"):
        if path.parent.name != "d" and path.is_file() and path.stat().st_size > LARGEST_RECORD:
            size = path.stat().st_size >> 20
            raise ValueError(f"{path.name} of {size} MiB: expected at most {LARGEST_RECORD >> 20}")


def _read_json(path: Path) -> Any:
    """What a JSON file of a checkpoint holds; raises what reading raises."""
    return json.loads(path.read_text())


def _read_arrays(folder: Path, target: Tree | None = None) -> Tree:
    """A saved tree; raises what Orbax raises.

    Args:
      target: ShapeDtypeStructs with shardings; None gives numpy arrays in lists and dicts.
    """
    handler = _handler()
    if target is None:
        numpy = ocp.RestoreArgs(restore_type=np.ndarray)
        args = ocp.args.PyTreeRestore(
            restore_args=jax.tree.map(lambda _: numpy, _saved_tree(folder))
        )
    else:
        restore = ocp.checkpoint_utils.construct_restore_args(target)
        args = ocp.args.PyTreeRestore(item=target, restore_args=restore)
    with ocp.Checkpointer(handler) as reader:
        return reader.restore(folder, args=args)


def _saved_tree(folder: Path) -> Tree:
    """Metadata of the arrays of a saved tree, with `shape` and `dtype`; raises what Orbax does."""
    return _handler().metadata(folder).tree


def _handler() -> ocp.PyTreeCheckpointHandler:
    numpy, arrays, running = _NumpyReader(), _ArrayReader(), list[asyncio.Future]()
    numpy.running = arrays.running = running
    return ocp.PyTreeCheckpointHandler(
        type_handler_registry=ocp.type_handlers.create_type_handler_registry(
            (np.ndarray, numpy), (jax.Array, arrays)
        )
    )


async def _all_of(
    running: list[asyncio.Future],
    read: Callable[..., Awaitable[Sequence]],
    each: Iterable[tuple],
) -> list[Any]:
    """What read([a], [b], ...) gives for every (a, b, ...); raises when the last one is done.

    Args:
      running: what is being read of the other kinds of arrays; it is waited for too.
    """
    ways = (read(*([argument] for argument in arguments)) for arguments in each)
    running.append(reading := asyncio.gather(*ways, return_exceptions=True))
    leaves: list[Any] = []
    for part in await reading:
        if isinstance(part, BaseException):
            others = [other for other in running if not other.done()]
            await asyncio.gather(*others, return_exceptions=True)
            raise part
        leaves += part
    return leaves


class _NumpyReader(ocp.type_handlers.NumpyHandler):
    running: list[asyncio.Future]

    async def metadata(self, infos: Sequence) -> Sequence:
        return await _all_of(self.running, super().metadata, zip(infos))

    async def deserialize(self, infos: Sequence, args: Sequence | None = None) -> Sequence:
        given = args or [ocp.RestoreArgs()] * len(infos)
        each = zip(infos, given, strict=True)
        return await _all_of(self.running, super().deserialize, each)


class _ArrayReader(ocp.type_handlers.ArrayHandler):
    running: list[asyncio.Future]

    async def metadata(self, infos: Sequence) -> Sequence:
        return await _all_of(self.running, super().metadata, zip(infos))

    async def deserialize(self, infos: Sequence, args: Sequence | None = None) -> Sequence:
        assert args is not None, "construct_restore_args gives them"
        each = zip(infos, args, strict=True)
        return await _all_of(self.running, super().deserialize, each)
