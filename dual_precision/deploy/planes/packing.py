"""The variables of layers on bit planes, from float weights."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict

from dual_precision.precision import MAX_BITS
from dual_precision.primitives.bitserial import pack_words
from dual_precision.primitives.nested import check_codes, check_finite
from dual_precision.primitives.plane_fit import FEW_PLANES, fit_planes, plane_scales

STORED = MAX_BITS


def pack_dense(
    kernel: jax.Array,
    bias: jax.Array | None = None,
    codes: jax.Array | None = None,
    read: Sequence[int] = FEW_PLANES,
) -> dict[str, jax.Array]:
    """The variables of a BitDense from float weights; see `fit_planes`.

    Args:
      kernel: [K, N], float32, finite.
      bias: [N], float32.
      codes: [K, N] of 8 bits, where the weights have them already.
      read: numbers of planes that the clips are chosen for; with codes it has no effect.

    Returns:
      {"words": uint32 [8, ceil(K / 32), N], "scales": float32 [8, N], "inputs": uint8 [K, 0]},
      and "bias" if given.

    Raises:
      ValueError: another shape; an infinity or NaN; codes that are no integers of 8 bits.
    """
    _check_dense(kernel, bias, codes)
    if codes is None:
        codes, scales = fit_planes(kernel, STORED, read)
    else:
        scales = plane_scales(kernel, codes, STORED)
    inputs = jnp.zeros((kernel.shape[0], 0), jnp.uint8)  # its shape is what is read of it
    packed = {"words": pack_words(codes, STORED), "scales": scales, "inputs": inputs}
    return packed if bias is None else {**packed, "bias": bias}


def plane_bytes(params: Mapping[str, Any], planes: int) -> int:
    """Bytes that a call reads of all weights on planes: so many planes, whose last word is filled
    up, and one row of scales.

    >>> packed = pack_dense(jnp.ones((40, 2)))  # two words for each of two outputs
    >>> plane_bytes({"layer": packed}, 3)
    56
    """
    leaves = flatten_dict(params)

    def row(leaf: jax.Array) -> int:
        return leaf.nbytes // len(leaf)

    return sum(
        planes * row(leaf) + row(leaves[*path[:-1], "scales"])
        for path, leaf in leaves.items()
        if path[-1] == "words"
    )


def _check_dense(kernel: jax.Array, bias: jax.Array | None, codes: jax.Array | None) -> None:
    if kernel.ndim != 2 or kernel.dtype != jnp.float32:
        raise ValueError(
            f"weights {kernel.dtype}{list(kernel.shape)}: expected float32 [inputs, outputs]"
        )
    check_finite(kernel)
    if bias is not None:
        if bias.shape != kernel.shape[1:]:
            raise ValueError(f"a bias of {list(bias.shape)}: expected {list(kernel.shape[1:])}")
        check_finite(bias)
    if codes is not None:
        if codes.shape != kernel.shape:
            raise ValueError(f"codes of {list(codes.shape)}: expected {list(kernel.shape)}")
        check_codes(codes, STORED)


def pack_lstm(
    params: Mapping[str, Any],
    codes: Mapping[str, jax.Array] = MappingProxyType({}),
    read: Sequence[int] = FEW_PLANES,
) -> dict[str, dict[str, jax.Array]]:
    """The variables of a BitLSTMCell from those of flax's LSTMCell or OptimizedLSTMCell.

    Args:
      params: see `join_gates`.
      codes: "input" [in, 4H] and "hidden" [H, 4H], in the order of `join_gates`, where the weights
        have them already; see `pack_dense`.
      read: numbers of planes that the clips are chosen for; with codes it has no effect.

    Raises:
      ValueError: parameters of another cell; codes of other products; see `pack_dense`.
    """
    inputs, hidden, bias = join_gates(params)
    if unknown := sorted(set(codes) - {"input", "hidden"}):
        raise ValueError(f"codes of {unknown}: expected those of 'input', of 'hidden', or of both")
    return {
        "input": pack_dense(inputs, None, codes.get("input"), read),
        "hidden": pack_dense(hidden, bias, codes.get("hidden"), read),
    }


def join_gates(params: Mapping[str, Any]) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Kernels [in, 4H] and [H, 4H] and bias [4H] of flax's LSTM cells, gates i, f, g, o.

    Raises:
      ValueError: parameters of another cell.
    """
    expected = [side + gate for side in "ih" for gate in "ifgo"]
    if sorted(params) != sorted(expected):
        raise ValueError(f"an LSTM cell of {sorted(params)}: expected {expected}, as flax has")
    inputs, hidden = (
        jnp.concatenate([params[side + gate]["kernel"] for gate in "ifgo"], axis=1) for side in "ih"
    )
    return inputs, hidden, jnp.concatenate([params[f"h{gate}"]["bias"] for gate in "ifgo"])
