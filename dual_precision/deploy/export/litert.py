"""Modes of a packed file as LiteRT files (TFLite), without TensorFlow.

    save_litert("high.tflite", "net.safetensors", "high")
    LiteNetwork("high.tflite").predict(images)

A file is one mode, for one row at a time: LiteRT knows no symbolic batch. Everything that does not
depend on the input is computed before, as LiteRT has no shifts of integers; the weights are floats
then, so that the file is as large as the float network. The values are those of the mode.
"""

import os
from typing import Any

import jax
import numpy as np

from dual_precision.deploy.export.extras import needed
from dual_precision.deploy.file.packed import PackedFile, Source
from dual_precision.deploy.file.writer import write_parts
from dual_precision.primitives.convolution import xla_alone
from dual_precision.structure import batch_of

_CONVERTER, _ENGINE = "litert_converter", "ai_edge_litert"


def save_litert(path: str | os.PathLike, source: Source, precision: str) -> None:
    """Writes the forward of a mode of a packed file.

    Raises:
      ValueError: litert-converter is missing; no such mode; the converter refuses, and why.
      PackedError, OSError: as `load_packed`.
    """
    needed(_CONVERTER, "a LiteRT export", "litert")
    with PackedFile(source) as file:
        model, variables = file.load(precision)
        example = file.info.example

    def forward(*inputs: Any) -> Any:
        with jax.ensure_compile_time_eval():  # of what no input is needed for
            return model.apply(variables, *inputs, precision=precision)

    from jax import export

    with xla_alone():
        text = export.export(jax.jit(forward))(*batch_of(example, 1)).mlir_module()
    write_parts(path, [_converted(text)])


def _converted(text: str) -> bytes:
    """StableHLO as a flatbuffer of LiteRT."""
    from litert_converter import converter_api_ext as converter
    from litert_converter.mlir import ir, passmanager

    context = ir.Context()
    converter.prepare_mlir_context(context)
    with context:
        module = ir.Module.parse(text)
        try:
            converter.run_convert_to_tfl_passes(
                module, passmanager.PassManager(), converter.ConvertToTFLConfig()
            )
            return bytes(converter.export_flatbuffer_to_bytes(module.operation))
        except Exception as error:  # its own classes, which it does not export
            raise ValueError(f"LiteRT does not take the network: {error}") from None


class LiteNetwork:
    """A file of `save_litert` in LiteRT.

    Raises:
      ValueError: ai-edge-litert is missing; no file that it loads.
    """

    def __init__(self, path: str | os.PathLike) -> None:
        engine = needed(f"{_ENGINE}.interpreter", "to run a LiteRT file", "litert")
        try:
            self._engine = engine.Interpreter(model_path=os.fspath(path))
            self._engine.allocate_tensors()
        except (ValueError, RuntimeError) as error:
            raise ValueError(f"{path}: LiteRT does not load it: {error}") from None
        (self._input,) = self._engine.get_input_details()
        (self._output,) = self._engine.get_output_details()

    def predict(self, images: np.ndarray) -> np.ndarray:
        """Logits float32 [N, classes] of images [N, ...], one after the other.

        Raises:
          ValueError: images of another shape or dtype.
        """
        row, dtype = tuple(self._input["shape"][1:]), self._input["dtype"]
        if images.shape[1:] != row or images.dtype != dtype:
            raise ValueError(
                f"inputs {images.dtype}{[*images.shape]}: expected"
                f" {np.dtype(dtype)}[N, {', '.join(map(str, row))}]"
            )
        found = []
        for start in range(len(images)):
            self._engine.set_tensor(self._input["index"], images[start : start + 1])
            self._engine.invoke()
            found.append(self._engine.get_tensor(self._output["index"]))
        empty = np.zeros((0, *self._output["shape"][1:]), self._output["dtype"])
        return np.concatenate([empty, *found])
