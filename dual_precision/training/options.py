"""How a recipe is run."""

import dataclasses

import jax

from dual_precision.precision import is_whole


@dataclasses.dataclass(frozen=True)
class FitOptions:
    """How a recipe is run, apart from what it trains.

    Attributes:
      batch_size: examples per update, over all devices of all processes.
      seed: of initial weights, data order and augmentation.
      steps_per_dispatch: at most so many steps per program launch; 0 chooses: 64 on an
        accelerator, 1 on a CPU, where XLA runs what is inside a loop on a single core.
      epochs_per_evaluation: validation and a checkpoint come after so many epochs.
      accumulate: parts of a batch that run one after the other, where the whole does not fit into
        memory; their mean gradient makes one update. A part is then what a step is: steps count
        parts, and every normalisation takes the statistics of a part, in each mode.
      shard_data: each device holds a part of the training split, not all of it.
    """

    batch_size: int = 128
    seed: int = 0
    steps_per_dispatch: int = 0
    epochs_per_evaluation: int = 1
    accumulate: int = 1
    shard_data: bool = False

    def __post_init__(self) -> None:
        if not is_whole(self.seed) or not 0 <= self.seed < 2**32:
            raise ValueError(
                f"seed={self.seed!r}: expected a whole number, 0 to 2^32 - 1, what makes a key"
            )
        least = {"batch_size": 1, "steps_per_dispatch": 0, "epochs_per_evaluation": 1}
        for name, lowest in (least | {"accumulate": 1}).items():
            value = getattr(self, name)
            if not is_whole(value) or value < lowest:
                raise ValueError(f"{name}={value!r}: expected a whole number, {lowest} or more")
        if self.batch_size % self.accumulate:
            raise ValueError(
                f"batch_size={self.batch_size} in accumulate={self.accumulate} parts: expected a"
                " multiple"
            )

    @property
    def rows(self) -> int:
        """Examples in one step: in a part of a batch."""
        return self.batch_size // self.accumulate

    @property
    def most(self) -> int:
        """Steps in one program launch, at most."""
        return self.steps_per_dispatch or (1 if jax.default_backend() == "cpu" else 64)
