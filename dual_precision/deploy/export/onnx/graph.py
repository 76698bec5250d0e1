"""A graph of ONNX that is built node after node; equal nodes are one node."""

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np

from dual_precision.deploy.export.extras import needed

OPSET = 21  # the first whose QuantizeLinear knows 4 bits
OLD_OPSET = 13  # what older readers take
_FORMATS = {OPSET: 10, OLD_OPSET: 8}  # opset -> version of the file format
_PURPOSE = "an ONNX export"
CONTRIB = "com.microsoft"


class Graph:
    """Nodes, initializers and their names.

    A tensor is its name, and `image` that of what the network takes. Values that are known are
    initializers of their own, one for equal ones.
    """

    image = "images"

    def __init__(self, whole: "Graph | None" = None, opset: int = OPSET) -> None:
        """An empty graph, or a branch of a whole one, which has the initializers of both."""
        self.onnx: Any = needed("onnx", _PURPOSE)
        self.opset: int = opset if whole is None else whole.opset
        self.nodes: list[Any] = []
        self._known: dict[Any, str] = {}
        self._numbers: Iterator[int] = itertools.count() if whole is None else whole._numbers
        self._domains: set[str] = set() if whole is None else whole._domains
        self._constants: dict[Any, str] = {} if whole is None else whole._constants
        self.initializers: list[Any] = [] if whole is None else whole.initializers

    def node(self, op: str, *inputs: str, domain: str = "", **attributes: Any) -> str:
        """The output of a node with these inputs; "" stands for one that is left out."""
        key = op, inputs, domain, repr(sorted(attributes.items()))
        if key not in self._known:
            name = f"{op.lower()}_{next(self._numbers)}"
            made = self.onnx.helper.make_node(
                op, [*inputs], [name], name=name, domain=domain, **attributes
            )
            self.nodes.append(made)
            self._domains |= {domain} - {""}
            self._known[key] = name
        return self._known[key]

    def constant(self, value: Any, name: str = "c") -> str:
        """An initializer with the values and the dtype of an array."""
        array = np.asarray(value, order="C")  # a scalar stays one: engines want scales so
        key = array.dtype.str, array.shape, array.tobytes()
        if key not in self._constants:
            made = self.onnx.numpy_helper.from_array(array, self._free(name))
            self.initializers.append(made)
            self._constants[key] = made.name
        return self._constants[key]

    def choose(self, condition: str, then: tuple["Graph", str], other: tuple["Graph", str]) -> str:
        """A tensor of one branch or the other, of which one alone is computed at a run.

        Args:
          condition: a bool, ().
          then, other: a branch `Graph(self)`, and its tensor of floats.
        """
        helper, name = self.onnx.helper, f"if_{next(self._numbers)}"
        graphs = {}
        for side, (branch, tensor) in {"then_branch": then, "else_branch": other}.items():
            result = branch.node("Identity", tensor)
            info = helper.make_tensor_value_info(result, self.onnx.TensorProto.FLOAT, None)
            graphs[side] = helper.make_graph(branch.nodes, f"{name}_{side}", [], [info])
        self.nodes.append(helper.make_node("If", [condition], [name], name=name, **graphs))
        return name

    def given(self, dtype: Any) -> Any:
        """An input of this graph, the body of a loop, whose name is `.name`."""
        kind = self.onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        name = f"given_{next(self._numbers)}"
        return self.onnx.helper.make_tensor_value_info(name, kind, None)

    def scan(
        self,
        body: "Graph",
        states: list[str],
        arrays: list[str],
        given: list[Any],
        results: list[tuple[str, Any]],
    ) -> list[str]:
        """What a body gives, called for each entry of the first axis of arrays: states, arrays.

        Args:
          body: `Graph(self)`.
          states, arrays: tensors of this graph: first values of the states, and the arrays.
          given: what the body takes, states and entries, as `given` of it.
          results: (tensor of the body, dtype), states and entries.
        """
        helper, name = self.onnx.helper, f"scan_{next(self._numbers)}"
        ends = []
        for tensor, dtype in results:
            own = body.given(dtype)  # a name of its own: a result may be what was given
            body.nodes.append(helper.make_node("Identity", [tensor], [own.name]))
            ends.append(own)
        graph = helper.make_graph(body.nodes, f"{name}_body", given, ends)
        outputs = [f"{name}_{index}" for index in range(len(results))]
        self.nodes.append(
            helper.make_node(
                "Scan", [*states, *arrays], outputs, name=name, body=graph,
                num_scan_inputs=len(arrays),
            )
        )  # fmt: skip
        return outputs

    def four_bits(self, values: np.ndarray, name: str) -> str:
        """An initializer of type INT4, of integers from -8 to 7, two in a byte."""
        kind = self.onnx.TensorProto.INT4
        flat = values.reshape(-1).astype(np.int8)
        flat = np.append(flat, np.zeros(flat.size % 2, np.int8)).view(np.uint8) & 15
        packed = (flat[::2] | flat[1::2] << 4).astype(np.uint8).tobytes()
        made = self.onnx.helper.make_tensor(self._free(name), kind, values.shape, packed, raw=True)
        self.initializers.append(made)
        return made.name

    def _free(self, name: str) -> str:
        return f"{name}_{len(self.initializers)}"

    def model(self, inputs: list[Any], outputs: list[Any], about: dict[str, str]) -> Any:
        """The ModelProto, checked.

        Args:
          inputs, outputs: (name, elem_type of ONNX, shape) each.
          about: its metadata.
        """
        helper = self.onnx.helper
        infos = [
            [helper.make_tensor_value_info(*own) for own in side] for side in (inputs, outputs)
        ]
        graph = helper.make_graph(self.nodes, "network", *infos, self.initializers)
        opsets = [
            helper.make_opsetid("", self.opset),
            *(helper.make_opsetid(d, 1) for d in self._domains),
        ]
        model = helper.make_model(
            graph,
            opset_imports=opsets,
            producer_name="dual_precision",
            ir_version=_FORMATS[self.opset],
        )
        helper.set_model_props(model, about)
        self.onnx.checker.check_model(model)
        return model
