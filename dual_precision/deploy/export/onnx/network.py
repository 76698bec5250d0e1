"""A whole mode as a graph of ONNX: its layers, and what stands between them."""

import dataclasses
from typing import Any

import numpy as np

from dual_precision.deploy.export.onnx.coded import CodedArrays
from dual_precision.deploy.export.onnx.layers import (
    EXACT,
    NIBBLES,
    VNNI,
    Values,
    as_codes,
    folded,
    in_range,
    rounded_input,
    values_of,
    weights,
)
from dual_precision.deploy.export.onnx.nibbles import in_nibbles, narrow_sums, odd_sums
from dual_precision.deploy.export.onnx.steps import Part
from dual_precision.structure import LayerPath


@dataclasses.dataclass
class OnnxNetwork(CodedArrays):
    """The nodes of one mode; without ranges its layers are "exact".

    Attributes:
      form: one of FORMS of layers.py.
      given: layer in nibbles -> its input and the sums of it, where they are computed elsewhere.
    """

    form: str = EXACT
    given: dict[LayerPath, tuple[str, tuple[str, str]]] = dataclasses.field(default_factory=dict)

    # -- layers and normalisations ---------------------------------------------------------------

    def _part(self, part: Part) -> str:
        if part.path in self.structure.layers:
            return self._layer(part, None)
        norm = self.norm_values(part.path)
        layer = self.layer_before(part)
        if layer is not None:
            return self._layer(layer, norm)
        x = self.tensor(part.source)
        rank = len(self._source(part).aval.shape)
        shape = (1,) * (rank - 1) + (-1,)
        both = [np.asarray(norm[name]).reshape(shape) for name in ("multiplier", "offset")]
        return self.graph.node(
            "Add", self.graph.node("Mul", x, self._constant(both[0])), self._constant(both[1])
        )

    def layer_before(self, part: Part) -> Part | None:
        """The layer whose output a norm alone takes."""
        source = self.structure.sources.get(part.path)
        layer = self.steps.parts.get(self.steps.origin(part.source))
        return layer if layer is not None and layer.path == source else None

    def norm_values(self, path: LayerPath) -> Any:
        """{multiplier, offset} of a normalisation, float32 [channels]."""
        return folded(self.params_of(path)[self.mode])

    def layer_values(self, path: LayerPath, norm: Any) -> Values:
        """The numbers of a layer, with those of the normalisation that takes its output."""
        return values_of(self.structure.layers[path], self.mode, self.params_of(path), norm)

    def codes_of(self, path: LayerPath) -> np.ndarray:
        """The stored codes of a layer, int8."""
        return np.asarray(self.params_of(path)["kernel"])

    def codes_seen(self, part: Part) -> str:
        """The input of a layer as its mode sees it."""
        return self.codes(part.source, self.seen(part.path))

    def in_order(self, part: Part, x: str) -> str:
        """The input of a layer in the order that its product takes: of a matrix, channels last."""
        return self._last(x, self._source(part).aval.shape) if _is_matrix(part) else x

    def _source(self, part: Part) -> Any:
        return self.steps.origin(part.source)

    def _layer(self, part: Part, norm: Any) -> str:
        made = self._multiplied(part, norm)
        return self._first(made, self._source(part)) if _is_matrix(part) else made

    def _multiplied(self, part: Part, norm: Any) -> str:
        """What a layer gives, in the order of its product."""
        values, name = self.layer_values(part.path, norm), "/".join(part.path)
        if part.path in self.given:
            return self._in_nibbles(part.path, values, *self.given[part.path])
        known = (self.ranges or {}).get(part.path)
        if known is not None and values.seen.step is None:
            values = rounded_input(values, in_range(*known))
            x = as_codes(self.graph, self.tensor(part.source), values.seen)
        else:
            x = self.codes_seen(part)
        x = self.in_order(part, x)
        if self.form == NIBBLES and in_nibbles(self.structure.layers[part.path], self.mode):
            sums = narrow_sums(self.graph, x, self.codes_of(part.path), name)
            return self._in_nibbles(part.path, values, x, sums)
        kernel, offset = weights(
            self.graph, values, name, self.ranges is not None, self.form == VNNI
        )
        whole = self.ranges is not None
        product = part.product
        if _is_matrix(part):
            if whole and len(self._source(part).aval.shape) == 2:
                return self.graph.node("Gemm", x, kernel, offset)
            # As with convolutions below; a sum would become a Gemm, whose offset is rounded.
            less = self.graph.constant(-np.asarray(values.offset, np.float32))
            return self.graph.node("Sub", self.graph.node("MatMul", x, kernel), less)
        if whole:
            return self._convolution(product, name, x, kernel, offset)
        # ONNX Runtime rounds the offset of a convolution of dequantized numbers to a multiple of
        # input step times weight step, which is coarse at 2 bits: here it is added behind.
        made = self._convolution(product, name, x, kernel)
        return self.graph.node("Add", made, self._per_channel(values.offset))

    def _in_nibbles(self, path: LayerPath, values: Values, x: str, sums: tuple[str, str]) -> str:
        bits = self.structure.layers[path].table[self.mode].weights or 0
        made = odd_sums(self.graph, x, self.codes_of(path), bits, "/".join(path), sums)
        scale = 2 * values.multiplier / (1 if values.seen.step is None else values.seen.step)
        scaled = self.graph.node("Mul", made, self.graph.constant(scale.astype(np.float32)))
        return self.graph.node("Add", scaled, self.graph.constant(values.offset))

    def _per_channel(self, vector: np.ndarray) -> str:
        return self.graph.constant(np.asarray(vector, np.float32).reshape(1, -1, 1, 1))

    def _convolution(self, product: Any, name: str, *inputs: str) -> str:
        about = product.params
        if set(about["lhs_dilation"]) != {1} or about["batch_group_count"] != 1:
            raise ValueError(f"layer {name!r} is a transposed convolution, which is not exported")
        return self.graph.node(
            "Conv", *inputs,
            kernel_shape=[*product.invars[1].aval.shape[:2]],
            strides=[*about["window_strides"]],
            pads=[pair[side] for side in (0, 1) for pair in about["padding"]],
            dilations=[*about["rhs_dilation"]], group=about["feature_group_count"],
        )  # fmt: skip


def _is_matrix(part: Part) -> bool:
    return bool(part.product.primitive.name == "dot_general")
