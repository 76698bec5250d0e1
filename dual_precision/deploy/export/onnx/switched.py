"""Two modes of 4 and 8 bits in one graph, which a bool input `wide` switches between.

Each layer goes on from the sums with the top halves of the codes, which both modes take. The rest
of a layer is a branch of each mode, and ONNX Runtime computes one of them, so that every weight is
in memory once, and a run of the narrow mode does not touch the other halves.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from dual_precision.deploy.export.onnx.arrays import Arrays
from dual_precision.deploy.export.onnx.graph import Graph
from dual_precision.deploy.export.onnx.layers import NIBBLES
from dual_precision.deploy.export.onnx.network import OnnxNetwork
from dual_precision.deploy.export.onnx.nibbles import in_nibbles, narrow_sums
from dual_precision.deploy.export.onnx.steps import Part, Steps
from dual_precision.structure import Structure

WIDE = "wide"  # the name of the input


class Switched(Arrays):
    """The nodes of both modes.

    Args:
      precisions: the narrow mode, and the wide one.
      integers: variables of the integer network.
    """

    def __init__(
        self,
        graph: Graph,
        steps: Steps,
        structure: Structure,
        integers: Mapping[str, Any],
        precisions: tuple[str, str],
    ) -> None:
        super().__init__(graph, steps)
        self._branches = [
            _Branch(graph, steps, structure, integers, mode, form=NIBBLES, around=self)
            for mode in precisions
        ]
        self._structure = structure

    def _part(self, part: Part) -> str:
        layers = self._structure.layers
        before = part if part.path in layers else self._branches[0].layer_before(part)
        if before is not None and all(
            in_nibbles(layers[before.path], branch.mode) for branch in self._branches
        ):
            self._give_sums(before)
        return self._choose(lambda branch: branch._part(part))

    def _give_sums(self, layer: Part) -> None:
        narrow, wide = self._branches
        name = "/".join(layer.path)
        if all(branch.seen(layer.path).bits is None for branch in self._branches):
            x = self.tensor(layer.source)
        else:
            x = self._choose(lambda branch: branch.codes_seen(layer))
        x = narrow.in_order(layer, x)
        sums = narrow_sums(self.graph, x, narrow.codes_of(layer.path), name)
        narrow.given[layer.path] = wide.given[layer.path] = x, sums

    def _choose(self, build: Callable[["_Branch"], str]) -> str:
        made = []
        for branch in self._branches:
            # Its own graph: what a branch takes may have branches, and is made around both.
            own = dataclasses.replace(branch, graph=Graph(self.graph))
            made.append((own.graph, build(own)))
        narrow, wide = made
        return self.graph.choose(WIDE, wide, narrow)

    def _sum(self, eqn: Any) -> str | None:
        return None


@dataclasses.dataclass
class _Branch(OnnxNetwork):
    """A layer of one mode; what it takes is computed around it."""

    around: Arrays | None = None

    def tensor(self, var: Any) -> str:
        assert self.around is not None
        return self.around.tensor(var)
