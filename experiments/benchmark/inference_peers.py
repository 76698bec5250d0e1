"""PyTorch, float32 and dynamic int8, on the networks of plane_speed.py, where it is installed."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from dual_precision.deploy.planes.packing import join_gates

Request = Callable[[], Any]


def has_torch() -> bool:
    """Whether PyTorch can be imported."""
    try:
        import torch  # noqa: F401
    except ImportError:
        return False
    return True


def torch_conditions() -> dict[str, Any]:
    """What its times depend on, for a report; without PyTorch a word that it is not there."""
    if not has_torch():
        return {"torch": "not installed"}
    import torch

    return {
        "torch": torch.__version__,
        "torch threads": torch.get_num_threads(),
        "torch quantized engine": torch.backends.quantized.engine,
    }


def torch_mlp(
    layers: Sequence[Mapping[str, Any]], x: np.ndarray, plain: str, quantized: str
) -> dict[str, Request]:
    """Name -> a request of x [B, in] to Linear, ReLU, ..., Linear with these weights.

    Args:
      layers: {"kernel": [in, out], "bias": [out]} each.
      plain, quantized: names of the float32 and the dynamic int8 program.
    """
    if not has_torch():
        return {}
    import torch

    parts: list[Any] = []
    for layer in layers:
        kernel, bias = np.asarray(layer["kernel"]), np.asarray(layer["bias"])
        parts += [_linear(kernel, bias), torch.nn.ReLU()]
    network = torch.nn.Sequential(*parts[:-1]).eval()
    given = torch.from_numpy(np.array(x))
    requests = {plain: _request(network, given)}
    if (dynamic := _dynamic(network, torch.nn.Linear)) is not None:
        requests[quantized] = _request(dynamic, given)
    return requests


def torch_lstm(
    params: Mapping[str, Any],
    given: tuple[np.ndarray, np.ndarray, np.ndarray],
    plain: str,
    quantized: str,
) -> dict[str, Request]:
    """Name -> a step of the LSTM cell of flax with these parameters; (x, h, c) gives (c, h)."""
    if not has_torch():
        return {}
    import torch

    inputs, hidden = given[0].shape[1], given[1].shape[1]
    cell = torch.nn.LSTMCell(inputs, hidden).eval()
    of_inputs, of_hidden, bias = (np.array(array) for array in join_gates(params))
    cell.weight_ih.data = torch.from_numpy(np.ascontiguousarray(of_inputs.T))
    cell.weight_hh.data = torch.from_numpy(np.ascontiguousarray(of_hidden.T))
    cell.bias_hh.data, cell.bias_ih.data = torch.from_numpy(bias), torch.zeros(4 * hidden)

    class Step(torch.nn.Module):  # the children of a network are what is quantized
        def __init__(self) -> None:
            super().__init__()
            self.cell = cell

        def forward(self, x: Any, h: Any, c: Any) -> Any:
            h, c = self.cell(x, (h, c))
            return c, h

    arrays = [torch.from_numpy(np.array(array)) for array in given]
    requests = {plain: _request(Step().eval(), *arrays)}
    if (dynamic := _dynamic(Step().eval(), torch.nn.LSTMCell)) is not None:
        requests[quantized] = _request(dynamic, *arrays)
    return requests


def _linear(kernel: np.ndarray, bias: np.ndarray) -> Any:
    import torch

    layer = torch.nn.Linear(*kernel.shape)
    layer.weight.data = torch.from_numpy(np.ascontiguousarray(kernel.T))
    layer.bias.data = torch.from_numpy(np.array(bias))
    return layer


def _dynamic(network: Any, kind: Any) -> Any:
    """The network in dynamic int8; None, and a line that says so, where this torch has none."""
    import torch

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on its successor, which is another package
            return torch.ao.quantization.quantize_dynamic(network, {kind}, dtype=torch.qint8)
    except (AttributeError, RuntimeError) as error:  # dropped from torch; no engine on this CPU
        print(f"PyTorch {torch.__version__}, dynamic int8: not measured, {error}", flush=True)
        return None


def _request(network: Any, *given: Any) -> Request:
    import torch

    def run() -> Any:
        with torch.inference_mode():
            return network(*given)

    return run
