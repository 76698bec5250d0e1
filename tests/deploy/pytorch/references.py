"""Small residual networks in PyTorch; what they answer is stored beside this file.

    python tests/deploy/pytorch/references.py     # writes the files again, needs torch

The stored files are what CI reads, where there is no torch. Weights, statistics and images are
random: a normalisation in which every number is 1 or 0 would hide one that is not read.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np

FOLDER = Path(__file__).parent
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SIZES, WIDTHS, CLASSES = (2, 1, 1), (4, 8, 16), 5
PLAIN = {"stem": "conv1", "stem_norm": "bn1", "stage": "layer", "classifier": "linear",
         "block": ("conv1", "bn1", "conv2", "bn2"), "shortcut": "shortcut"}  # fmt: skip
OTHER = {**PLAIN, "classifier": "fc", "shortcut": "downsample"}
AB = {"stem": "conv_1_3x3", "stem_norm": "bn_1", "stage": "stage_", "classifier": "classifier",
      "block": ("conv_a", "bn_a", "conv_b", "bn_b"), "shortcut": "downsample"}  # fmt: skip
# Name -> names of the parts, and the shortcut: zero channels "both" or "behind", or a convolution.
NETWORKS: dict[str, tuple[dict[str, Any], str]] = {
    "both": (PLAIN, "both"),
    "behind": (AB, "behind"),
    "convolutions": (OTHER, "conv"),
    "convolutions_plain": (PLAIN, "conv"),
}


def make_network(name: str, biased: bool = False) -> Any:
    """The network of that name with random values, in evaluation mode."""
    import torch
    from torch import nn
    from torch.nn import functional as F

    names, kind = NETWORKS[name]

    class Block(nn.Module):
        def __init__(self, inputs: int, outputs: int, stride: int) -> None:
            super().__init__()
            conv1, norm1, conv2, norm2 = names["block"]
            self.add_module(conv1, nn.Conv2d(inputs, outputs, 3, stride, 1, bias=biased))
            self.add_module(norm1, nn.BatchNorm2d(outputs))
            self.add_module(conv2, nn.Conv2d(outputs, outputs, 3, 1, 1, bias=biased))
            self.add_module(norm2, nn.BatchNorm2d(outputs))
            self.stride, self.more = stride, outputs - inputs
            if kind == "conv" and (stride > 1 or self.more):
                own = nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
                self.add_module(names["shortcut"], nn.Sequential(*own))

        def forward(self, x: Any) -> Any:
            conv1, norm1, conv2, norm2 = (getattr(self, part) for part in names["block"])
            y = norm2(conv2(F.relu(norm1(conv1(x)))))
            if hasattr(self, names["shortcut"]):
                return F.relu(y + getattr(self, names["shortcut"])(x))
            half = self.more // 2 if kind == "both" else 0
            x = x[:, :, :: self.stride, :: self.stride]
            return F.relu(y + F.pad(x, (0, 0, 0, 0, half, self.more - half)))

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.add_module(names["stem"], nn.Conv2d(3, WIDTHS[0], 3, 1, 1, bias=biased))
            self.add_module(names["stem_norm"], nn.BatchNorm2d(WIDTHS[0]))
            before = WIDTHS[0]
            for stage, (size, width) in enumerate(zip(SIZES, WIDTHS, strict=True), start=1):
                blocks = []
                for block in range(size):
                    stride = 2 if stage > 1 and block == 0 else 1
                    blocks.append(Block(before, width, stride))
                    before = width
                self.add_module(f"{names['stage']}{stage}", nn.Sequential(*blocks))
            self.add_module(names["classifier"], nn.Linear(before, CLASSES))

        def forward(self, x: Any) -> Any:
            x = F.relu(getattr(self, names["stem_norm"])(getattr(self, names["stem"])(x)))
            for stage in range(1, len(SIZES) + 1):
                x = getattr(self, f"{names['stage']}{stage}")(x)
            return getattr(self, names["classifier"])(x.mean((2, 3)))

    torch.manual_seed(0)
    network = Network().eval()
    with torch.no_grad():
        for key, value in network.state_dict().items():
            if key.endswith("running_var") or (key.endswith("weight") and value.ndim == 1):
                value.uniform_(0.5, 2)
            elif "running" in key or key.endswith("bias"):
                value.normal_(0, 0.5)
            elif key.endswith("weight"):  # so that logits of different images differ
                value.mul_(2)
    return network


def images() -> np.ndarray:
    """Six images of random pixels, uint8 [N, H, W, C]."""
    return np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3), np.uint8)


def answers(network: Any) -> np.ndarray:
    """The logits of `images()`, normalised by MEAN and STD."""
    import torch

    x = (images() / np.float64(255) - MEAN) / STD
    with torch.inference_mode():
        found: np.ndarray = network(torch.tensor(x.transpose(0, 3, 1, 2), dtype=torch.float32))
    return np.asarray(found)


def write() -> None:
    """Writes the files that are stored."""
    import torch
    from safetensors.numpy import save

    logits = {}
    for name in NETWORKS:
        network = make_network(name)
        logits[name] = answers(network)
        torch.save(network.state_dict(), FOLDER / f"{name}.pt")
    wrapped = {"module." + key: value for key, value in make_network("both").state_dict().items()}
    about = {"epoch": 3, "state_dict": wrapped, "best": 0.5}
    torch.save(about, FOLDER / "legacy.pt", _use_new_zipfile_serialization=False)
    (FOLDER / "logits.safetensors").write_bytes(save(logits))


if __name__ == "__main__":
    sys.exit(write())
