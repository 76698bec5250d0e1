"""How what stands in a checkpoint is read: JSON of a bounded size, and arrays by Orbax.

Orbax reads all arrays of a state at once and gives up at the first that fails. Its event loop is
closed then, while its reader threads still have the others: each of these finds the loop closed and
prints a traceback that nobody can catch. The handlers here wait for all of them first.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from dual_precision.tasks.task import Tree

LARGEST_RECORD = 64 << 20  # bytes; of a network of 10,000 arrays the largest file has 2 MiB


def check_sizes(step: Path) -> None:
    """Raises ValueError where a file of a checkpoint, beside those of its arrays, is too large.

    They are read whole, by Orbax too: a sparse file would fill the memory.
    """
    for path in step.rglob("*"):
        if path.parent.name != "d" and path.is_file() and path.stat().st_size > LARGEST_RECORD:
            size = path.stat().st_size >> 20
            raise ValueError(f"{path.name} of {size} MiB: expected at most {LARGEST_RECORD >> 20}")


def read_record(path: Path) -> Any:
    """What a JSON file of a checkpoint holds; raises what reading raises."""
    return json.loads(path.read_text())


def read_arrays(folder: Path, target: Tree | None = None) -> Tree:
    """A saved tree; raises what Orbax raises.

    Args:
      target: ShapeDtypeStructs with shardings; None gives numpy arrays in lists and dicts.
    """
    handler = _handler()
    if target is None:
        numpy = ocp.RestoreArgs(restore_type=np.ndarray)
        args = ocp.args.PyTreeRestore(
            restore_args=jax.tree.map(lambda _: numpy, read_shapes(folder))
        )
    else:
        restore = ocp.checkpoint_utils.construct_restore_args(target)
        args = ocp.args.PyTreeRestore(item=target, restore_args=restore)
    with ocp.Checkpointer(handler) as reader:
        return reader.restore(folder, args=args)


def read_shapes(folder: Path) -> Tree:
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
