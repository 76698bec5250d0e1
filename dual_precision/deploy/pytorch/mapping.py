"""From tensors under the names of PyTorch to the float values of a network of ours.

    convolution  weight [out, in, h, w] -> kernel [h, w, in, out]
    linear       weight [out, in]       -> kernel [in, out]
    BatchNorm2d  weight, bias, running_mean, running_var -> scale, bias, mean, var

A convolution of theirs may have a bias where ours has none and a normalisation follows: its mean
becomes mean - bias, which is the same function.
"""

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np

from dual_precision.precision import FLOAT_NAME
from dual_precision.structure import LayerPath, Structure

StateDict = Mapping[str, np.ndarray]
Names = Mapping[str, str]  # layer or norm of ours, "stage1_block1/conv1" -> module of theirs
# Layer or norm of ours -> order of its input channels, of its output channels; None is as they are.
Orders = Mapping[str, tuple[np.ndarray | None, np.ndarray | None]]

NORM_NAMES = {"scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
_AXES = {4: (2, 3, 1, 0), 2: (1, 0)}


@dataclasses.dataclass(frozen=True, eq=False)
class Mapped:
    """What of a state dict stands where in a network of ours.

    Attributes:
      leaves: path in our tree, collection first -> float32 array in our layout.
      theirs: path in our tree -> name of the tensor that it comes from, also where that is missing.
      problems: a line for each tensor that is missing, of another shape, or only theirs.
    """

    leaves: dict[LayerPath, np.ndarray]
    theirs: dict[LayerPath, str]
    problems: list[str]


def map_state(
    state: StateDict, structure: Structure, names: Names, orders: Orders = MappingProxyType({})
) -> Mapped:
    """The float values of the network that `structure` describes, from a state dict.

    Args:
      state: as `read_state` gives.
      names: for every layer and norm of the network the name of the module of theirs.
      orders: of channels, where theirs stand in another order: ours[i] = theirs[order[i]].

    Raises:
      ValueError: `names` names layers that the network does not have.
    """
    parts = {"/".join(path): path for path in (*structure.layers, *structure.norms)}
    if unknown := sorted(set(names) - set(parts)):
        raise ValueError(f"names of layers {unknown}: expected some of {sorted(parts)}")
    found = _Found(state, dict(names), orders)
    for path, layer in structure.layers.items():
        found.layer(path, layer.kernel, ("params", *path, "bias") in structure.shapes)
    for path in structure.norms:
        found.norm(path, structure)
    left = [name for name in state if name not in found.read]
    problems = [
        *found.problems,
        *(f"{name} {list(state[name].shape)}: only there" for name in left),
    ]
    return Mapped(found.leaves, found.theirs, problems)


class _Found:
    """The values that are found, one layer or norm after the other."""

    def __init__(self, state: StateDict, names: dict[str, str], orders: Orders) -> None:
        self.state, self.names, self.orders = state, names, orders
        self.leaves: dict[LayerPath, np.ndarray] = {}
        self.theirs: dict[LayerPath, str] = {}
        self.problems: list[str] = []
        self.read: set[str] = set()

    def layer(self, path: LayerPath, kernel: tuple[int, ...], biased: bool) -> None:
        into, out = self.orders.get("/".join(path), (None, None))
        theirs = tuple(kernel[axis] for axis in np.argsort(_AXES[len(kernel)]))
        weight = self.take(("params", *path, "kernel"), "weight", theirs)
        if weight is not None:
            weight = weight.transpose(_AXES[len(kernel)])
            weight = weight if into is None else weight[..., into, :]
            self.put(("params", *path, "kernel"), weight if out is None else weight[..., out])
        if biased:
            bias = self.take(("params", *path, "bias"), "bias", kernel[-1:])
            if bias is not None:
                self.put(("params", *path, "bias"), bias if out is None else bias[out])

    def norm(self, path: LayerPath, structure: Structure) -> None:
        _, out = self.orders.get("/".join(path), (None, None))
        for name, leaf in structure.norm_leaves(path, FLOAT_NAME).items():
            shape = structure.shapes[leaf].shape
            value = self.take(leaf, NORM_NAMES[name], shape)
            if value is None:
                continue
            if name == "mean":
                value = value - self.folded_bias(structure.sources.get(path), structure, shape)
            self.put(leaf, value if out is None else value[out])

    def folded_bias(self, layer: LayerPath | None, structure: Structure, shape: Any) -> Any:
        """The bias of a convolution that has none here; 0 where theirs has none either."""
        if layer is None or ("params", *layer, "bias") in structure.shapes:
            return np.float32(0)
        name = f"{self.names.get('/'.join(layer), '')}.bias"
        if name not in self.state or self.state[name].shape != shape:
            return np.float32(0)
        self.read.add(name)
        return self.state[name]

    def take(self, leaf: LayerPath, name: str, shape: tuple[int, ...]) -> np.ndarray | None:
        """A tensor of theirs; None, and a line, where it is missing or of another shape."""
        ours = _shown(leaf)
        module = self.names.get("/".join(ours.split("/")[:-1]))
        if module is None:
            self.problems.append(f"{ours}: no name for it")
            return None
        self.theirs[leaf] = theirs = f"{module}.{name}"
        self.read.add(theirs)
        if theirs not in self.state:
            self.problems.append(f"{ours} <- {theirs}: missing there")
            return None
        if self.state[theirs].shape != shape:
            there = list(self.state[theirs].shape)
            self.problems.append(f"{ours} <- {theirs}: {there} there, expected {list(shape)}")
            return None
        return self.state[theirs]

    def put(self, leaf: LayerPath, value: np.ndarray) -> None:
        self.leaves[leaf] = np.ascontiguousarray(value, np.float32)


def _shown(leaf: LayerPath) -> str:
    """A leaf of the float network as reports name it: "stem_norm/mean"."""
    return "/".join(part for part in leaf[1:] if part != FLOAT_NAME)
