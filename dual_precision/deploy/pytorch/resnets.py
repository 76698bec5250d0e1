"""Residual networks for small images under the names that public PyTorch repositories use.

What a state dict does not say is where option A puts its zero channels. "both" is half of them on
each side, as the networks with a layer `linear` do; "behind" is what ours do, and those with
blocks of `conv_a` and `conv_b`. Under "both" the same function needs another order of channels: of
a stage with twice the channels of the one before, c each,

    ours[0..c) = theirs[c/2 + order of the stage before],   ours[c..2c) = the rest of theirs
"""

import dataclasses
import re
from typing import Any

import numpy as np

from dual_precision.deploy.pytorch.mapping import StateDict

BOTH, BEHIND = "both", "behind"
PADDINGS = (BOTH, BEHIND)
# Part of ours -> what repositories call it.
_ENDS = {
    "stem": ("conv1", "conv_1_3x3"),
    "stem_norm": ("bn1", "bn_1"),
    "classifier": ("linear", "fc", "classifier"),
}
_BLOCKS = {
    "conv1": ("conv1", "conv_a"),
    "norm1": ("bn1", "bn_a"),
    "conv2": ("conv2", "conv_b"),
    "norm2": ("bn2", "bn_b"),
    "shortcut": ("shortcut.0", "downsample.0"),
    "shortcut_norm": ("shortcut.1", "downsample.1"),
}
_PADDING_BY_CLASSIFIER = {"linear": BOTH, "classifier": BEHIND}
_BLOCK = re.compile(r"(layer|stage_)(\d)\.(\d{1,3})\.")
_MOST_STAGES = 9


@dataclasses.dataclass(frozen=True, eq=False)
class FoundResNet:
    """A residual network in a state dict.

    Attributes:
      network: its description for `build_from`, without modes.
      names, orders: for `map_state`.
      padding: where option A puts zero channels; "" where shortcuts are convolutions, or there is
        one stage.
      channels: of the images.
    """

    network: dict[str, Any]
    names: dict[str, str]
    orders: dict[str, tuple[np.ndarray | None, np.ndarray | None]]
    padding: str
    channels: int


def find_resnet(state: StateDict, padding: str = "") -> FoundResNet:
    """The residual network that a state dict holds, by its names.

    Args:
      padding: "both" or "behind", for shortcuts without parameters; "" goes by the names.

    Raises:
      ValueError: no such network; it does not say where zero channels are; a padding without
        effect.
    """
    sizes, stage_name = _stage_sizes(state)
    names = {part: _named(state, "", known, part) for part, known in _ENDS.items()}
    widths = []
    for stage, size in enumerate(sizes, start=1):
        for block in range(size):
            theirs, ours = f"{stage_name}{stage}.{block}.", f"stage{stage}_block{block + 1}"
            for part, known in _BLOCKS.items():
                if not part.startswith("shortcut") or _has(state, theirs, known):
                    names[f"{ours}/{part}"] = _named(state, theirs, known, f"{ours}/{part}")
        widths.append(_axis(state, f"{names[f'stage{stage}_block1/conv2']}.weight", 0))
    projections = any(name.endswith("/shortcut") for name in names)
    network = {
        "name": "resnet20",
        "stage_sizes": list(sizes),
        "widths": widths,
        "projections": projections,
        "num_classes": _axis(state, f"{names['classifier']}.weight", 0),
    }
    plain = not projections and len(sizes) > 1
    padding = _padding(names["classifier"], padding) if plain else _no_padding(padding)
    orders = _orders(names, sizes, widths) if padding == BOTH else {}
    return FoundResNet(network, names, orders, padding, _axis(state, f"{names['stem']}.weight", 1))


def _stage_sizes(state: StateDict) -> tuple[tuple[int, ...], str]:
    """Blocks of each stage, and the word before the number of a stage."""
    found = [match for match in map(_BLOCK.match, state) if match]
    blocks = {(int(match[2]), int(match[3])) for match in found}
    count = len({stage for stage, _ in blocks})
    sizes = tuple(len({b for s, b in blocks if s == stage}) for stage in range(1, count + 1))
    whole = {(stage + 1, block) for stage, size in enumerate(sizes) for block in range(size)}
    if not blocks or blocks != whole or count > _MOST_STAGES or len({m[1] for m in found}) > 1:
        raise ValueError(
            f"tensors {list(state)[:4]} and {max(len(state) - 4, 0)} more: no residual network of"
            " names such as 'layer1.0.conv1.weight'; for another network give the names of its"
            " layers, see docs/engines.md"
        )
    return sizes, found[0][1]


def _has(state: StateDict, prefix: str, known: tuple[str, ...]) -> bool:
    return any(f"{prefix}{name}.weight" in state for name in known)


def _named(state: StateDict, prefix: str, known: tuple[str, ...], ours: str) -> str:
    for name in known:
        if f"{prefix}{name}.weight" in state:
            return f"{prefix}{name}"
    raise ValueError(
        f"a residual network without {ours!r}: expected one of"
        f" {[f'{prefix}{name}.weight' for name in known]}; for another network give the names of"
        " its layers, see docs/engines.md"
    )


def _axis(state: StateDict, name: str, axis: int) -> int:
    shape = state[name].shape
    if len(shape) not in (2, 4):
        raise ValueError(f"{name!r} of shape {list(shape)}: expected a convolution or a matrix")
    return shape[axis]


def _no_padding(padding: str) -> str:
    if padding:
        raise ValueError(
            f"padding={padding!r} has no effect on a network whose shortcuts are convolutions, or"
            " that has one stage: leave it out"
        )
    return ""


def _padding(classifier: str, padding: str) -> str:
    padding = padding or _PADDING_BY_CLASSIFIER.get(classifier, "")
    if padding not in PADDINGS:
        raise ValueError(
            f"padding={padding!r}: the shortcuts have no parameters, and names with {classifier!r}"
            f" do not say on which side their zero channels are: give one of {list(PADDINGS)}"
        )
    return padding


def _orders(
    names: dict[str, str], sizes: tuple[int, ...], widths: list[int]
) -> dict[str, tuple[np.ndarray | None, np.ndarray | None]]:
    """The orders of channels that put the zero channels of each stage behind the others."""
    order = np.arange(widths[0])
    orders: dict[str, tuple[np.ndarray | None, np.ndarray | None]] = {}
    for stage, (size, width) in enumerate(zip(sizes, widths, strict=True), start=1):
        for block in range(1, size + 1):
            ours = f"stage{stage}_block{block}"
            orders[f"{ours}/conv1"] = order, None
            if block == 1 and stage > 1:
                order = _next_order(order, width)
            orders[f"{ours}/conv2"] = None, order
            orders[f"{ours}/norm2"] = None, order
    orders["classifier"] = order, None
    return {name: own for name, own in orders.items() if name in names}


def _next_order(order: np.ndarray, width: int) -> np.ndarray:
    """Of a stage of `width` channels, by that of the stage before."""
    if width != 2 * len(order) or len(order) % 2:
        raise ValueError(
            f"zero channels on both sides from {len(order)} to {width} channels: expected twice as"
            " many, an even number"
        )
    kept = width // 4 + order
    return np.concatenate([kept, np.setdiff1d(np.arange(width), kept)])
