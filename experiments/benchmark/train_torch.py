"""PyTorch on the ResNet of train_peers.py, where it is installed: what one would take on a CPU."""

import time
from typing import Any

import numpy as np

from experiments.benchmark.inference_peers import has_torch

TORCH, TORCH_BF16 = "PyTorch float32", "PyTorch bfloat16"


class TorchStep:
    """A train step, channels last, SGD with Nesterov momentum; images uint8 [N, H, W, C]."""

    difference: float | None = None  # nothing is quantized

    def __init__(
        self, sizes: dict[str, Any], images: Any, labels: Any, rate: float, *, bfloat16: bool
    ) -> None:
        import torch

        pixels = torch.from_numpy(np.array(images)).permute(0, 3, 1, 2).float() / 127.5 - 1
        side = sizes["space_to_depth"]
        if side > 1:
            pixels = torch.nn.functional.pixel_unshuffle(pixels, side)
        self._pixels = pixels.contiguous(memory_format=torch.channels_last)
        self._labels = torch.from_numpy(np.array(labels)).long()
        network = _network(sizes["stage_sizes"], sizes["widths"], pixels.shape[1])
        self._network = network.to(memory_format=torch.channels_last).train()
        self._optimizer = torch.optim.SGD(network.parameters(), rate, 0.9, nesterov=True)
        self._bfloat16 = bfloat16

    def run(self, steps: int) -> float:
        """Milliseconds per step, over so many steps in a row.

        Raises:
          ValueError: the loss is not finite.
        """
        start = time.perf_counter()
        for _ in range(steps):
            loss = self._update()
        taken = 1e3 * (time.perf_counter() - start)
        if not np.isfinite(loss):
            raise ValueError("the loss is not finite: what was timed is not training")
        return taken / steps

    def _update(self) -> float:
        import torch

        self._optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=self._bfloat16):
            loss = torch.nn.functional.cross_entropy(self._network(self._pixels), self._labels)
        loss.backward()
        self._optimizer.step()
        return float(loss.detach())


def torch_steps(
    sizes: dict[str, Any], images: Any, labels: Any, rate: float
) -> tuple[dict[str, TorchStep], list[str]]:
    """Both precisions of PyTorch; a line where it is not installed."""
    if not has_torch():
        return {}, ["PyTorch: not installed; pip install -e '.[benchmark]'"]
    kinds = {TORCH: False, TORCH_BF16: True}
    return {
        name: TorchStep(sizes, images, labels, rate, bfloat16=kind) for name, kind in kinds.items()
    }, []


def _network(stage_sizes: tuple[int, ...], widths: tuple[int, ...], channels: int) -> Any:
    import torch
    from torch import nn
    from torch.nn.functional import pad

    class Block(nn.Module):
        def __init__(self, inputs: int, outputs: int, stride: int) -> None:
            super().__init__()
            self.stride, self.missing = stride, outputs - inputs
            self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
            self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
            self.norm1, self.norm2 = nn.BatchNorm2d(outputs), nn.BatchNorm2d(outputs)

        def forward(self, x: Any) -> Any:
            y = self.norm2(self.conv2(torch.relu(self.norm1(self.conv1(x)))))
            short = pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.missing))
            return torch.relu(y + short)

    stem = nn.Conv2d(channels, widths[0], 3, 1, 1, bias=False)
    parts: list[Any] = [stem, nn.BatchNorm2d(widths[0]), nn.ReLU()]
    before = widths[0]
    for stage, (size, width) in enumerate(zip(stage_sizes, widths, strict=True)):
        for block in range(size):
            parts.append(Block(before, width, 2 if stage and not block else 1))
            before = width
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, 10))
    return nn.Sequential(*parts, *head)
