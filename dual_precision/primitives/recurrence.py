"""The recurrence of an LSTM: its gates, and all bytes of a text with weights kept as bit planes."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from dual_precision.primitives.bitserial import plane_product
from dual_precision.primitives.native import recurrence as native
from dual_precision.primitives.plane_operands import check_product, step_and_ends
from dual_precision.primitives.quantizers import InputGrid

Carry = tuple[jax.Array, jax.Array]  # (c, h), each [N, features]


def run_gates(
    gates: jax.Array, carry: Carry, product: Callable[[jax.Array, Any], jax.Array], keys: Any = None
) -> tuple[jax.Array, Carry]:
    """The recurrence of gates [N, T, 4H], the bias in them, with `product(h, key)` [N, 4H]."""

    def step(state: Carry, given: tuple[jax.Array, Any]) -> tuple[Carry, jax.Array]:
        c, h = state
        own, key = given
        c, h = after_gates(own + product(h, key), c)
        return (c, h), h

    carry, out = lax.scan(step, carry, (jnp.swapaxes(gates, 0, 1), keys))
    return jnp.swapaxes(out, 0, 1), carry


def after_gates(gates: jax.Array, c: jax.Array) -> Carry:
    """(c, h) after one step: c = sig(f) c + sig(i) tanh(g), h = sig(o) tanh(c).

    Args:
      gates: i, f, g, o [..., 4H].
      c: [..., H].
    """
    i, f, g, o = jnp.split(gates, 4, axis=-1)
    c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
    return c, jax.nn.sigmoid(o) * jnp.tanh(c)


def plane_recurrence(
    gates: jax.Array,
    carry: Carry,
    bias: jax.Array,
    words: jax.Array,
    scales: jax.Array,
    planes: int,
    activations: int,
    form: str | None = None,
    grid: InputGrid | None = None,
) -> tuple[jax.Array, Carry]:
    """`run_gates` of gates + bias, whose product is `plane_product` of h.

    In one compiled call on a CPU that has it. Its sums are the exact integers of every form; it
    differs by the roundings of a product and of e^x, some units in the last place of a byte's
    gates. The bits of a text depend neither on the number of texts nor on how it is cut in parts.

    Args:
      gates: products with inputs [N, T, 4H], float32.
      carry: (c, h) [N, H], float32; a row of h that is not finite gives NaN. On a grid only NaN
        does: infinities are clipped.
      bias: [4H], float32.
      words, scales, planes, activations, grid: of `plane_product` [H] -> [4H].
      form: as there; "xla" and "pallas" are a loop over the bytes.

    Returns:
      h of every byte [N, T, H]; (c, h) after the last.

    Raises:
      ValueError: as there; shapes or dtypes that do not fit.
    """
    c, h = carry
    check_product(h, words, scales, planes, activations, grid)
    _check(gates, c, h, bias, words)

    def by_product(gates, c, h, bias, words, scales, *_):
        def product(h: jax.Array, _: Any) -> jax.Array:
            return plane_product(h, words, scales, planes, activations, form, grid)

        return run_gates(gates + bias[None, None], (c, h), product)

    given = (gates, c, h, bias, words, scales, *step_and_ends(grid))
    compiled = partial(native.recurrence_native, planes=planes, activations=activations)
    if form == "native" and gates.size:
        return compiled(*given)
    if form is not None or not gates.size or not native.available():
        return by_product(*given)
    return lax.platform_dependent(*given, cpu=compiled, default=by_product)


def _check(gates: jax.Array, c: jax.Array, h: jax.Array, bias: jax.Array, words: jax.Array) -> None:
    """Raises ValueError unless these fit h, and words four gates of it."""
    outputs = 4 * h.shape[1]
    if words.shape[2] != outputs:
        raise ValueError(
            f"words of {words.shape[2]} outputs: expected {outputs}, four gates for h of"
            f" {list(h.shape)}"
        )
    length = gates.shape[1] if gates.ndim == 3 else "T"
    expected: dict[str, tuple[Any, ...]] = {
        "gates": (h.shape[0], length, outputs),
        "c": h.shape,
        "bias": (outputs,),
    }
    for name, array in (("gates", gates), ("c", c), ("bias", bias)):
        if array.shape != expected[name] or array.dtype != jnp.float32:
            raise ValueError(
                f"{name} {array.dtype}{list(array.shape)}: expected float32"
                f" {list(expected[name])}, for h of {list(h.shape)}"
            )
