"""The float network as an ONNX graph: what modes on integers are compared with."""

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
from flax import linen as nn
from flax.traverse_util import flatten_dict

from dual_precision.deploy.export.onnx.file import write_graph
from dual_precision.deploy.export.onnx.graph import Graph
from dual_precision.deploy.export.onnx.layers import Seen, Values
from dual_precision.deploy.export.onnx.network import OnnxNetwork
from dual_precision.deploy.export.onnx.steps import trace_steps
from dual_precision.precision import FLOAT_NAME
from dual_precision.structure import Example, LayerPath, structure_of


def save_float_onnx(
    path: str | os.PathLike, model: nn.Module, variables: Mapping[str, Any], example: Example
) -> None:
    """Writes mode "float" of a network, normalisation folded into the weights.

    Args:
      model, variables: as `dual_precision.load` gives.

    Raises:
      ValueError: as `save_onnx`. OSError: it cannot be written.
    """
    structure = structure_of(model, example)
    steps, graph = trace_steps(model, structure, example), Graph()
    network = _FloatNetwork(graph, steps, structure, variables, FLOAT_NAME, ranges={})
    outputs = {FLOAT_NAME: network.output()}
    write_graph(path, graph, steps.output.aval.shape[1:], example, outputs, [FLOAT_NAME])


@dataclasses.dataclass
class _FloatNetwork(OnnxNetwork):
    def __post_init__(self) -> None:
        super().__post_init__()
        self._leaves = {k: np.asarray(v) for k, v in flatten_dict(dict(self.integers)).items()}

    def norm_values(self, path: LayerPath) -> Any:
        named = self.structure.norm_leaves(path, FLOAT_NAME).items()
        own = {name: self._leaves[leaf] for name, leaf in named}
        values: dict[str, Any] = own
        gain, offset = self.structure.norms[path].affine(**values)
        return {"multiplier": np.asarray(gain), "offset": np.asarray(offset)}

    def layer_values(self, path: LayerPath, norm: Any) -> Values:
        kernel = self._leaves["params", *path, "kernel"]
        bias = self._leaves.get(("params", *path, "bias"), np.zeros(kernel.shape[-1], np.float32))
        gain = np.ones_like(bias) if norm is None else norm["multiplier"]
        offset = bias * gain + (0 if norm is None else norm["offset"])
        return Values(Seen(None, None, False), kernel, gain, offset)

    def seen(self, path: LayerPath) -> Seen:
        return Seen(None, None, False)
