"""Big dense layers in ONNX Runtime: 4 bits and 8 bits from the same two halves of each code.

A stored code of 8 bits is c = 16 t + r, t from -8 to 7 the code of 4 bits and r from 0 to 15 the
rest. With a product that takes 4-bit numbers t and r - 8,

    A = sum_k x_k t_k      B = sum_k x_k (r_k - 8)      S = sum_k x_k

    4 bits   sum_k x_k (2 t_k + 1) / 2 = A + S / 2
    8 bits   sum_k x_k (2 c_k + 1) / 2 = 16 A + B + 8.5 S

so that both modes share every weight, and the wide one goes on from the sum of the narrow one; see
switched.py for both in one file.
The product is MatMulNBits of ONNX Runtime, whose fast kernels (accuracy_level 4) round x to 8 bits
for each block of inputs.
"""

import numpy as np

from dual_precision.deploy.export.onnx.graph import CONTRIB, Graph
from dual_precision.structure import Layer

_BLOCK = 128  # inputs that share a scale, in MatMulNBits; 32 is slower
LEAST = 1 << 16  # weights below which a plain product is as fast
HALF, WHOLE = 4, 8
_MIDDLE = 8  # what MatMulNBits takes off a number of 4 bits
NIBBLE_PRODUCT = "MatMulNBits"  # the operator


def in_nibbles(layer: Layer, mode: str) -> bool:
    """Whether a layer has such a form in a mode: a large matrix of 4 or 8 of 8 stored bits."""
    large = layer.matrix and layer.kernel[0] * layer.kernel[1] >= LEAST
    return large and layer.stored == WHOLE and layer.table[mode].weights in (HALF, WHOLE)


def narrow_sums(graph: Graph, x: str, codes: np.ndarray, name: str) -> tuple[str, str]:
    """A [..., out] and S [..., 1], which modes of 4 and of 8 bits take.

    Args:
      x: [..., in], floats.
      codes: int8 [in, out], of 8 stored bits.
    """
    top = codes.astype(np.int32) >> HALF
    axes = graph.constant(np.asarray([-1], np.int64))
    narrow = _product(graph, x, top + _MIDDLE, f"{name}_top")
    return narrow, graph.node("ReduceSum", x, axes, keepdims=1)


def odd_sums(
    graph: Graph, x: str, codes: np.ndarray, bits: int, name: str, sums: tuple[str, str]
) -> str:
    """sum_k x_k (2 c_k + 1) / 2 of the codes of 4 or 8 bits, as a tensor [..., out].

    Args:
      x, codes: as of `narrow_sums`.
      bits: 4 or 8.
      sums: what `narrow_sums` gave, in this graph or the one around it.
    """
    narrow, total = sums

    def times(tensor: str, factor: float) -> str:
        return graph.node("Mul", tensor, graph.constant(np.float32(factor)))

    if bits == HALF:
        return graph.node("Add", narrow, times(total, 0.5))
    wide = _product(graph, x, codes.astype(np.int32) & 15, f"{name}_rest")
    both = graph.node("Add", times(narrow, 16.0), wide)
    return graph.node("Add", both, times(total, 8.5))


def _product(graph: Graph, x: str, numbers: np.ndarray, name: str) -> str:
    """sum_k x_k (numbers_k - 8), of numbers from 0 to 15, [in, out]."""
    inputs, outputs = numbers.shape
    blocks = -(-inputs // _BLOCK)
    own = np.full((outputs, blocks * _BLOCK), _MIDDLE, np.uint8)
    own[:, :inputs] = numbers.T
    packed = (own[:, ::2] | own[:, 1::2] << 4).reshape(outputs, blocks, _BLOCK // 2)
    return graph.node(
        NIBBLE_PRODUCT, x, graph.constant(packed, name),
        graph.constant(np.ones(outputs * blocks, np.float32), "ones"),
        domain=CONTRIB, K=inputs, N=outputs, bits=HALF, block_size=_BLOCK, accuracy_level=4,
    )  # fmt: skip
