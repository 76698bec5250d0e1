"""A training recipe is a tuple of phases: plain data that `fit` runs in order."""

import dataclasses

from dual_precision.precision import FLOAT_NAME, Modes, Precision


@dataclasses.dataclass(frozen=True)
class Preparation:
    """What is set, not learned, when a phase starts or ends.

    Attributes:
      weight_steps: the mode to whose width every weight step is fitted, from the kernels.
      norms: (mode, source) pairs; the mode takes over the source's normalisation.
      input_steps: modes whose activation steps are fitted to one training batch.
    """

    weight_steps: str | None = None
    norms: tuple[tuple[str, str], ...] = ()
    input_steps: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Phase:
    """One stretch of training.

    Attributes:
      name: for logs.
      epochs: passes over the training split.
      precisions: the modes that run on each batch, or on their shares of it; the loss is the sum.
      learning_rate: peak; warmed up linearly, then annealed by a cosine.
      step_learning_rate: peak for quantizer steps, which are learned in the log domain by Adam,
        so that it is a relative change per update whatever the width.
      weight_decay: on kernels only.
      warmup: fraction of the phase.
      final_rate: where the cosine ends, relative to the peak.
      split: each mode runs on its own share of every batch, instead of each on all of it: a pass
        over the images then costs one mode's work, not the sum over the modes.
      teacher: the mode of `precisions` whose logits the others learn from.
      distillation: share of the teacher's soft labels in the others' loss; the rest is the labels'.
      label_smoothing: in every cross entropy.
      protect: a mode whose function must not change: all it reads is frozen, and weights move
        only inside its cells.
      prepare: what is set when the phase starts.
      finish: what is set when it ends, before its last validation and checkpoint.
    """

    name: str
    epochs: int
    precisions: tuple[str, ...]
    learning_rate: float
    step_learning_rate: float = 1e-2
    weight_decay: float = 5e-4
    warmup: float = 0.1
    final_rate: float = 0.0
    split: bool = False
    teacher: str | None = None
    distillation: float = 0.0
    label_smoothing: float = 0.0
    protect: str | None = None
    prepare: Preparation = Preparation()
    finish: Preparation = Preparation()

    @property
    def passes_per_epoch(self) -> int:
        """Modes that an image goes through, forward and backward, in one epoch."""
        return 1 if self.split else len(self.precisions)

    def __post_init__(self) -> None:
        if self.epochs < 1:
            raise ValueError(f"phase {self.name!r} has {self.epochs} epochs: expected at least 1")
        if not self.precisions:
            raise ValueError(f"phase {self.name!r} runs no mode: expected at least one")
        if (self.teacher is None) != (self.distillation == 0.0):
            raise ValueError(
                f"phase {self.name!r}: teacher {self.teacher!r} with distillation"
                f" {self.distillation}; expected both or neither"
            )
        if self.teacher is not None and self.teacher not in self.precisions:
            raise ValueError(
                f"phase {self.name!r}: teacher {self.teacher!r} does not run;"
                f" expected one of {self.precisions}"
            )
        if self.split and (self.teacher or len(self.precisions) < 2):
            raise ValueError(
                f"phase {self.name!r} splits batches among {self.precisions} with teacher"
                f" {self.teacher!r}: expected two modes or more, and no teacher, whose logits"
                " would be of other images"
            )
        if self.protect in self.precisions:
            raise ValueError(
                f"phase {self.name!r} trains {self.protect!r}, which it protects: drop one"
            )


def check_recipe(phases: tuple[Phase, ...], modes: Modes) -> None:
    """Raises ValueError where a phase names unknown modes or cannot keep what it promises."""
    for phase in phases:
        named = [*phase.precisions, *([phase.protect] if phase.protect else [])]
        for setting in (phase.prepare, phase.finish):
            named += [*setting.input_steps, *(name for pair in setting.norms for name in pair)]
            named += [setting.weight_steps] if setting.weight_steps else []
        for name in named:
            modes.check_name(name)
        if phase.protect is not None:
            for path, table in {"the model": modes.default, **modes.layers}.items():
                for trained in phase.precisions:
                    if trained != FLOAT_NAME:
                        _check_wider(path, table[phase.protect], phase.protect, table[trained])


def _check_wider(path: str, low: Precision, name: str, high: Precision) -> None:
    if (low.weights or 99) > (high.weights or 99):
        raise ValueError(
            f"{path}: mode {name!r} has {low}, wider weights than {high}, and must stay as it is;"
            " expected it to be the narrower one; swap them, or protect neither"
        )
