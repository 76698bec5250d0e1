"""Which examples each update takes, and where they are: the training split on the devices."""

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from dual_precision.tasks.task import Batch, Task
from dual_precision.training.sharding import batch_mesh, place_batches, replicate


class Feed:
    """The batches of one run; all follows from the seed and the step alone.

    Attributes:
      mesh: the devices that share each batch.
      arrays: the whole split, on every device.
      steps_per_epoch: updates in an epoch.
      chunk: updates in one program launch; it divides the epoch.
      key: of augmentation and of whatever else is random.
    """

    def __init__(self, task: Task, split: Any, batch_size: int, seed: int, most: int) -> None:
        """Puts the split on the devices; `most` updates go into one program launch at most."""
        self._task, self._split, self._batch_size = task, split, batch_size
        self.mesh = batch_mesh(batch_size)
        self.key = jax.random.key(seed)
        self._epoch, self._order = 0, self._order_of(0)
        self.steps_per_epoch = len(self._order)
        self.chunk = _largest_divisor(self.steps_per_epoch, most)
        self.arrays = replicate(task.arrays(split), self.mesh)

    def order(self, step: int) -> jax.Array:
        """Indices [chunk, batch] of the next updates; every epoch has its own order."""
        epoch, offset = divmod(step, self.steps_per_epoch)
        if self._epoch != epoch:  # made once an epoch: on a CPU it costs a tenth of a step
            self._epoch, self._order = epoch, self._order_of(epoch)
        return place_batches(self._order[offset : offset + self.chunk], self.mesh)

    def batches(self, step: int, count: int) -> Iterator[Batch]:
        """The batches of `count` updates from a step on, for events."""
        for at in range(step, step + count):
            index = self.order(at - at % self.chunk)[at % self.chunk]
            yield self._task.draw(self.arrays, index, jax.random.fold_in(self.key, at))

    def _order_of(self, epoch: int) -> np.ndarray:
        return self._task.order(self._split, self._batch_size, jax.random.fold_in(self.key, epoch))


def _largest_divisor(number: int, limit: int) -> int:
    return max(d for d in range(1, min(number, limit) + 1) if number % d == 0)
