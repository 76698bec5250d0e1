"""ONNX files of the modes of a packed network, and the check that an engine answers as we do.

    save_onnx("net.onnx", "net.safetensors", ["high"])
    EngineNetwork("net.onnx").predict(images, "high")

A graph takes the images as they are, `images` uint8 [N, H, W, C], or texts, uint8 [N, T], and has
an output for each mode.
With several modes they share what is equal, such as the preparation of the pixels; ONNX Runtime
computes all of them at every run, so that a file for each mode is the fast way. Of the form
"nibbles" alone a file of two modes has one output, and an input that switches.
"""

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from flax import linen as nn

from dual_precision.deploy.batching import checked_inputs
from dual_precision.deploy.export.extras import needed
from dual_precision.deploy.export.onnx.graph import OLD_OPSET, OPSET, Graph
from dual_precision.deploy.export.onnx.layers import (
    EXACT,
    FORMS,
    INTEGER,
    NIBBLES,
    PLAIN,
    VNNI,
)
from dual_precision.deploy.export.onnx.network import OnnxNetwork
from dual_precision.deploy.export.onnx.nibbles import NIBBLE_PRODUCT, in_nibbles
from dual_precision.deploy.export.onnx.ranges import ranges_of
from dual_precision.deploy.export.onnx.steps import trace_steps
from dual_precision.deploy.export.onnx.switched import WIDE, Switched
from dual_precision.deploy.export.onnx.traced import TracedNetwork, trace_mode
from dual_precision.deploy.file.examples import example_from_json, example_to_json
from dual_precision.deploy.file.packed import PackedFile, Source
from dual_precision.deploy.file.writer import write_parts
from dual_precision.deploy.integer.conversion import has_integer_forms, to_integer
from dual_precision.precision import MAX_BITS
from dual_precision.structure import Structure, batch_of

LOGITS = "logits"  # the output of a graph with a switch


def save_onnx(
    path: str | os.PathLike,
    source: Source,
    precisions: Sequence[str] | None = None,
    form: str = EXACT,
    calibration: np.ndarray | None = None,
) -> None:
    """Writes modes of a packed file as an ONNX graph.

    Args:
      precisions: the modes; None is all.
      form: of the layers, see layers.py. "exact": the values are those of the mode. "integer":
        modes of 8-bit activations run on integer kernels, residual sums included. "vnni": closer,
        and right on processors with VNNI alone; on others ONNX Runtime gives wrong numbers then,
        without a word. "nibbles": large matrices of 4 and 8 bits as MatMulNBits of ONNX Runtime;
        of two modes, both share every weight, and one is computed at a run; see switched.py.
        "plain": floats, in operations of opset 13, for readers that know no more. A network whose
        layers have calls of their own, as a language model, is "exact", "nibbles" or "plain"; see
        traced.py.
      calibration: of "integer" and "vnni", images such as those of training.

    Raises:
      ValueError: onnx is missing; no such mode; calibration without an image; a form that would be
        the exact one; a network that is not exported, and why.
      PackedError, OSError: as `load_packed`.
    """
    needed("onnx", "an ONNX export")
    _check_form(form, calibration)
    with PackedFile(source) as file:
        names, model, variables = file.load_modes(precisions)
        structure, example = file.structure, file.info.example
    if calibration is not None:
        (calibration,) = checked_inputs(calibration, batch_of(example, 1))
    if form == PLAIN or not has_integer_forms(structure):
        write_traced(path, model, variables, example, names, form)
        return
    both = _narrow_and_wide(structure, names) if form == NIBBLES and len(names) > 1 else None
    _check_effect(structure, names, form)
    _, integers = to_integer(model, variables, example)
    steps = trace_steps(model, structure, example)
    graph, outputs, shape = Graph(), {}, steps.output.aval.shape[1:]
    if both is not None:
        outputs[LOGITS] = Switched(graph, steps, structure, integers, both).output()
        write_graph(path, graph, shape, example, outputs, both)
        return
    for name in names:
        ranges = None
        if calibration is not None and runs_on_integers(structure, name):
            ranges = ranges_of(model, variables, structure, calibration, name, integers)
        network = OnnxNetwork(graph, steps, structure, integers, name, ranges, form)
        outputs[name] = network.output()
    write_graph(path, graph, shape, example, outputs, names)


def _check_form(form: str, calibration: np.ndarray | None) -> None:
    if form not in FORMS:
        raise ValueError(f"form {form!r} is unknown: expected one of {list(FORMS)}")
    if (calibration is not None) != (form in (INTEGER, VNNI)):
        raise ValueError(
            f"form {form!r} with{'' if calibration is not None else 'out'} calibration images:"
            f" expected them for {INTEGER!r} and {VNNI!r} alone"
        )
    if calibration is not None and not len(calibration):
        raise ValueError(f"form {form!r} with 0 calibration images: expected one or more")


def _check_effect(structure: Structure, names: Sequence[str], form: str) -> None:
    """Raises ValueError where the file of a form would be that of the exact one."""
    if form in (INTEGER, VNNI) and not any(runs_on_integers(structure, name) for name in names):
        _refuse_form(form, names, "a mode of 8-bit activations")
    layers = structure.layers.values()
    if form == NIBBLES and not any(in_nibbles(layer, name) for layer in layers for name in names):
        _refuse_form(form, names, "one with large matrices of 4 or 8 bits")


def _refuse_form(form: str, names: Sequence[str], expected: str) -> None:
    raise ValueError(
        f"form {form!r} has no effect on {[*names]}: expected {expected}; leave the form out"
    )


def write_traced(
    path: str | os.PathLike,
    model: nn.Module,
    variables: Mapping[str, Any],
    example: Any,
    names: Sequence[str],
    form: str,
) -> None:
    """As `save_onnx`, operation by operation, see traced.py.

    Raises:
      ValueError: a form of integer kernels, or of nibbles without a matrix that has some.
    """
    if form in (INTEGER, VNNI):
        raise ValueError(
            f"form {form!r} of a network whose layers have calls of their own: expected"
            f" {EXACT!r}, {NIBBLES!r} or {PLAIN!r}, as what lies between them is floats"
        )
    plain = form == PLAIN
    graph, outputs, shape = Graph(opset=OLD_OPSET if plain else OPSET), {}, ()
    for name in names:
        closed, shape = trace_mode(model, variables, example, name)
        outputs[name] = TracedNetwork(graph, plain, form == NIBBLES).output(closed)
    if form == NIBBLES and not any(node.op_type == NIBBLE_PRODUCT for node in graph.nodes):
        _refuse_form(form, names, "one with large matrices of 4 or 8 bits")
    write_graph(path, graph, shape, example, outputs, names)


def _narrow_and_wide(structure: Structure, names: Sequence[str]) -> tuple[str, str]:
    """Two modes, the one that reads fewer bits of the weights first."""

    def bits(name: str) -> int:
        return sum(layer.table[name].weights or 0 for layer in structure.layers.values())

    if len(names) != 2:
        raise ValueError(
            f"form {NIBBLES!r} of the modes {[*names]}: expected one or two, as the graph has one"
            " switch"
        )
    narrow, wide = sorted(names, key=bits)
    return narrow, wide


def runs_on_integers(structure: Structure, mode: str) -> bool:
    """Whether the integer form of a mode is another than the exact one: all of its layers take
    8-bit codes, or floats, and some take codes."""
    found = {layer.table[mode].activations for layer in structure.layers.values()}
    return MAX_BITS in found and found <= {MAX_BITS, None}


def write_graph(
    path: str | os.PathLike,
    graph: Graph,
    shape: Sequence[int],
    example: Any,
    outputs: Mapping[str, str],
    precisions: Sequence[str],
) -> None:
    """Writes a graph with these outputs, name -> tensor: of each mode, or of a switch.

    Args:
      shape: of a row of each output.
    """
    helper = graph.onnx.helper
    kinds = helper.np_dtype_to_tensor_dtype
    for name, tensor in outputs.items():
        graph.nodes.append(helper.make_node("Identity", [tensor], [name], name=f"output_{name}"))
    inputs = [(graph.image, kinds(np.dtype(example.dtype)), ["rows", *example.shape])]
    if [*outputs] == [LOGITS]:
        inputs.append((WIDE, kinds(np.dtype(bool)), []))
    result = graph.model(
        inputs,
        [(name, kinds(np.dtype(np.float32)), ["rows", *shape]) for name in outputs],
        {"example": json.dumps(example_to_json(example)), "precisions": json.dumps([*precisions])},
    )
    write_parts(path, [result.SerializeToString()])


class EngineNetwork:
    """An ONNX file of `save_onnx` in ONNX Runtime.

    Attributes:
      precisions: the modes that it holds.
      example: what one row is.

    Raises:
      ValueError: onnxruntime is missing; no file of `save_onnx`, or one that it cannot load.
    """

    def __init__(self, path: str | os.PathLike, threads: int = 0) -> None:
        engine = needed("onnxruntime", "to run an ONNX file")
        options = engine.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        try:
            self.session = engine.InferenceSession(
                os.fspath(path), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # its own classes, which it does not export
            raise ValueError(f"{path}: ONNX Runtime does not load it: {error}") from None
        about = self.session.get_modelmeta().custom_metadata_map
        if "precisions" not in about:
            raise ValueError(f"{path}: no file of save_onnx: expected its metadata")
        self.precisions = tuple(json.loads(about["precisions"]))
        self.example = example_from_json(json.loads(about["example"]))
        self._row = batch_of(self.example, 1)
        self._switched = WIDE in {own.name for own in self.session.get_inputs()}

    def predict(self, images: Any, precision: str) -> np.ndarray:
        """Logits float32 [N, classes] of uint8 images [N, H, W, C].

        Raises:
          ValueError: other images; a mode that the file does not hold.
        """
        if precision not in self.precisions:
            raise ValueError(f"precision {precision!r}: expected one of {list(self.precisions)}")
        (given,) = checked_inputs(images, self._row)
        feeds = {Graph.image: given}
        if self._switched:
            feeds[WIDE] = np.asarray(precision == self.precisions[-1])
        output = LOGITS if self._switched else precision
        found: np.ndarray = self.session.run([output], feeds)[0]
        return found
