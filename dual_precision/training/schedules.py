"""Learning rates: one optax schedule over the whole recipe."""

from collections.abc import Sequence

import optax

from dual_precision.training.phases import Phase


def warmup_cosine(peak: float, steps: int, warmup: float, final: float = 0.0) -> optax.Schedule:
    """Linear from 0 to `peak` over `warmup * steps`, then a cosine to `final * peak` at `steps`.

    >>> schedule = warmup_cosine(1.0, 100, 0.1)
    >>> [round(float(schedule(s)), 3) for s in (5, 10, 55, 100)]
    [0.5, 1.0, 0.5, 0.0]
    """
    rising = int(steps * warmup)
    if rising == 0:
        return optax.cosine_decay_schedule(peak, max(steps, 1), alpha=final)
    return optax.warmup_cosine_decay_schedule(
        0.0, peak, rising, max(steps, rising + 1), end_value=final * peak
    )


def phase_starts(phases: Sequence[Phase], steps_per_epoch: int) -> list[int]:
    """The step at which each phase starts, and the step at which the last one ends."""
    starts = [0]
    for phase in phases:
        starts.append(starts[-1] + phase.epochs * steps_per_epoch)
    return starts


def joined(phases: Sequence[Phase], steps_per_epoch: int, field: str) -> optax.Schedule:
    """`field` ("learning_rate" or "step_learning_rate") of all phases as step -> value."""
    parts = [
        warmup_cosine(
            getattr(phase, field), phase.epochs * steps_per_epoch, phase.warmup, phase.final_rate
        )
        for phase in phases
    ]
    return optax.join_schedules(parts, phase_starts(phases, steps_per_epoch)[1:-1])
