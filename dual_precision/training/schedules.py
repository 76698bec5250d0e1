"""Values that change from update to update: optax schedules, made for a phase of some length."""

import jax
import jax.numpy as jnp
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


# Updates of a cycle, at least. Its last share is then (1 + cos(pi / 6)) / 2 = 0.933 or more: less
# than 1/14 of the way is left. Two widths are at most 7 bits apart: that is less than half a bit,
# and rounding reaches the upper one.
SHORTEST_CYCLE = 6


def cosine_cycles(updates: int, cycles: int) -> optax.Schedule:
    """Rises from 0 towards 1 by half a cosine, and drops back, so many times.

        (1 - cos(pi * (t mod T) / T)) / 2,   T = floor(updates / cycles)

    Updates that are left behind the last whole cycle stay at 1: the formula by itself would begin
    another cycle there, and training would end at its lowest.

    Source: Fu et al. 2021, "CPT", arXiv 2101.09868, equation 1, as a share of the way from the
    lower to the upper bound.

    Raises:
      ValueError: cycles of fewer than SHORTEST_CYCLE updates, which may end below the upper width.

    >>> [round(float(cosine_cycles(13, 2)(t)), 3) for t in (0, 1, 3, 5, 6, 12)]
    [0.0, 0.067, 0.5, 0.933, 0.0, 1.0]
    """
    if not 1 <= cycles <= updates // SHORTEST_CYCLE:
        raise ValueError(
            f"{cycles} cycles in a phase of {updates} updates: expected {SHORTEST_CYCLE} updates or"
            " more for each, as a shorter cycle may end below its upper width; "
            + _advice(updates // SHORTEST_CYCLE)
        )
    length = updates // cycles

    def share(count: jax.typing.ArrayLike) -> jax.Array:
        count = jnp.asarray(count, jnp.float32)
        risen = (1 - jnp.cos(jnp.float32(jnp.pi) * jnp.mod(count, length) / length)) / 2
        return jnp.where(count < length * cycles, risen, jnp.float32(1))

    return share


def _advice(most: int) -> str:
    return f"make cycles 1 to {most}, or train for longer" if most else "train for longer"
