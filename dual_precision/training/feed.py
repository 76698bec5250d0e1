"""Which examples each update takes, and where they are: the training split on the devices."""

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from dual_precision.tasks.task import Batch, Task
from dual_precision.training.options import FitOptions
from dual_precision.training.sharding import batch_mesh, place_batches, replicate, share_rows


class Feed:
    """The batches of one run; all follows from the seed and the step alone.

    Attributes:
      mesh: the devices that share each batch.
      arrays: the split, whole on every device, or a part of it on each.
      steps_per_epoch: steps in an epoch: updates, or parts of updates, see `FitOptions`.
      chunk: steps in one program launch; it divides the epoch.
      key: of augmentation and of whatever else is random.
    """

    def __init__(self, task: Task, split: Any, options: FitOptions) -> None:
        """Puts the split on the devices.

        Raises:
          ValueError: the devices cannot share a batch; its rows carry something, and it is cut.
        """
        if options.accumulate > 1 and jax.tree.leaves(task.carry(options.rows)):
            raise ValueError(
                f"accumulate={options.accumulate} for a task whose rows carry a state to the next"
                " batch, which would go to other rows: expected 1"
            )
        self.task, self.options, self._split = task, options, split
        self.mesh = batch_mesh(options.rows)
        self.key = jax.random.key(options.seed)
        self._epoch, self._order = 0, self._order_of(0)
        self.steps_per_epoch = len(self._order)
        self.chunk = _largest_divisor(self.steps_per_epoch, options.most)
        arrays = task.arrays(split)
        self.arrays = (share_rows if options.shard_data else replicate)(arrays, self.mesh)
        self._draw = jax.jit(lambda arrays, index, key: task.draw(arrays, index, key))

    def order(self, step: int) -> jax.Array:
        """Indices [steps, batch] of the next steps; every epoch has its own order.

        As many steps as a chunk has left: a run may have stopped within one, see `FitOptions.most`.
        """
        epoch, offset = divmod(step, self.steps_per_epoch)
        if self._epoch != epoch:  # made once an epoch: on a CPU it costs a tenth of a step
            self._epoch, self._order = epoch, self._order_of(epoch)
        end = offset + self.chunk - offset % self.chunk
        return place_batches(self._order[offset:end], self.mesh)

    def batches(self, step: int, count: int) -> Iterator[Batch]:
        """The batches of `count` steps from a step on, for events."""
        for at in range(step, step + count):
            index = self.order(at - at % self.chunk)[at % self.chunk]
            yield self._draw(self.arrays, index, jax.random.fold_in(self.key, at))

    def _order_of(self, epoch: int) -> np.ndarray:
        key = jax.random.fold_in(self.key, epoch)
        order = self.task.order(self._split, self.options.batch_size, key)
        return order.reshape(-1, self.options.rows)


def _largest_divisor(number: int, limit: int) -> int:
    return max(d for d in range(1, min(number, limit) + 1) if number % d == 0)
