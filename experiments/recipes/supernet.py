"""One-shot training: low at widths that every update draws anew for every layer."""

import dataclasses
from typing import ClassVar

from flax.core import FrozenDict

from dual_precision.precision import parse
from dual_precision.search.space import Space, space_of
from dual_precision.structure import Structure
from dual_precision.training.initialize import EstimateNorms
from dual_precision.training.methods.sampled import SampledLoss
from experiments.recipes.recipe import Phases, Recipe, fitted, phase

# Every pair of 1 to 4 bits.
CHOICES = " ".join(f"w{w}a{a}" for w in range(1, 5) for a in range(1, 5))


@dataclasses.dataclass(frozen=True)
class SupernetRecipe(Recipe):
    """Low alone, for half of the passes; each update draws one of `choices` for every layer.

    Layers that have the same widths in all modes, the first and the last, keep them where
    `own_choices` does not name them. What is trained here is searched by `python -m
    experiments.search`.
    """

    choices: str = CHOICES  # widths of a layer, separated by spaces
    own_choices: str = ""  # of single layers: "stem:w3a32,w4a32,w8a32", separated by spaces
    skippable: str = ""  # blocks that half of the paths leave out: "stage2_block1 stage3_block1"
    refit: bool = True  # fit quantizer steps at the start; false keeps those of --init
    reestimate: int = 20  # training batches that the statistics of low are estimated on at the end

    reported: ClassVar[tuple[str, ...]] = ("low",)

    def phases(self) -> Phases:
        own = {
            layer: tuple(parse(text) for text in texts) for layer, texts in self.own_lists().items()
        }
        choices = tuple(parse(text) for text in self.choices.split())
        loss = SampledLoss("low", choices, FrozenDict(own), tuple(self.skippable.split()))
        start = fitted("low") if self.refit else ()
        end = (EstimateNorms("low", self.reestimate),)
        half = self.passes / 2
        return (phase(self, "supernet", half, ("low",), loss=loss, at_start=start, at_end=end),)

    def check(self, structure: Structure) -> None:
        self.space(structure)  # what no search takes is not trained for hours before

    def space(self, structure: Structure) -> Space:
        """What is searched in the trained network: all choices, for every free layer.

        Raises:
          SpaceError: see `space_of`.
        """
        choices, blocks = self.choices.split(), self.skippable.split()
        return space_of(structure, "low", choices, self.own_lists(), blocks)

    def own_lists(self) -> dict[str, tuple[str, ...]]:
        """Layer -> what `own_choices` lists for it.

        Raises:
          ValueError: an entry without a layer or without choices.
        """
        found = {}
        for entry in self.own_choices.split():
            layer, _, texts = entry.rpartition(":")
            if not layer or not texts:
                raise ValueError(
                    f"own_choices entry {entry!r}: expected a layer and its choices, as in"
                    " stem:w4a32,w8a32"
                )
            found[layer] = tuple(texts.split(","))
        return found
