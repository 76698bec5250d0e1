"""Values that change from update to update: optax schedules, made for a phase of some length."""

import optax


def warmup_cosine(updates: int, peak: float, warmup: float, final: float = 0.0) -> optax.Schedule:
    """Linear from 0 to `peak` over `warmup * updates`, then a cosine to `final * peak` at the end.

    >>> schedule = warmup_cosine(100, 1.0, 0.1)
    >>> [round(float(schedule(s)), 3) for s in (5, 10, 55, 100)]
    [0.5, 1.0, 0.5, 0.0]
    """
    rising = int(updates * warmup)
    if rising == 0:
        return optax.cosine_decay_schedule(peak, max(updates, 1), alpha=final)
    return optax.warmup_cosine_decay_schedule(
        0.0, peak, rising, max(updates, rising + 1), end_value=final * peak
    )
