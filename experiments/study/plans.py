"""Plans of the study, as data: pairs of widths, settings, and what is taken away in ablations."""

import dataclasses
from collections.abc import Mapping
from typing import Any

Pair = tuple[str, str]  # what low and high mean


@dataclasses.dataclass(frozen=True)
class Ablation:
    """What is set otherwise than in the row `against`, which says what the change brings."""

    settings: Mapping[str, Any]
    against: str = "as it is"


@dataclasses.dataclass(frozen=True)
class Plan:
    """A study at one scale.

    Attributes:
      preset: of experiments/recipes/config.py.
      settings: what the study changes of it.
      main: the pair that runs with every seed and method.
      others: these run with `other_seeds` of the seeds, and without the methods of `main_only`.
    """

    preset: str
    settings: Mapping[str, Any]
    main: Pair
    others: tuple[Pair, ...]
    other_seeds: int | None
    main_only: tuple[str, ...]
    ablations: Mapping[str, Ablation]


OTHERS = (("w2a2", "w4a4"), ("w4a4", "w8a8"), ("w1a4", "w4a4"))
# Of `two_phase --order=joint` on the main pair. Both modes on every batch take two passes an
# epoch, and six passes have no half for that: hence the rows with a third.
_THIRD = {"first_share": 0.33}
_TOGETHER = {**_THIRD, "split": False, "distillation": 0.0}
ABLATIONS: dict[str, Ablation] = {
    "as it is": Ablation({}),
    "no phase 1: split batches from the start": Ablation({"mode": "joint"}),
    "phase 1 a sixth of the passes": Ablation({"first_share": 0.17}),
    "phase 1 a third": Ablation(_THIRD),
    "a third, then both modes on every batch": Ablation(_TOGETHER, "phase 1 a third"),
    "the same, low distilled from high": Ablation(
        {**_THIRD, "split": False}, "a third, then both modes on every batch"
    ),
}
_MAIN_ONLY = ("float", "half-batch twins", "truncate re-estimated", "joint split")
PLANS: dict[str, Plan] = {
    # 267 passes, two to three hours on two CPU cores.
    "quick": Plan("quick", {"passes": 6.0}, ("w2a2", "w8a8"), OTHERS, 1, _MAIN_ONLY, ABLATIONS),
    # For an accelerator.
    "paper": Plan("paper", {}, ("w2a2", "w8a8"), OTHERS, None, (), ABLATIONS),
    # The standard network, every run from the float network that --set init=... names.
    # High is what such a network can do already: of the passes for both, it takes few beforehand,
    # and it teaches low from the first one on. With order=refine, low has nearly all of them.
    "resnet20": Plan(
        "resnet20",
        {"first_share": 1 / 16, "distillation": 0.5, "low_share": 0.9},
        ("w2a2", "w8a8"),
        OTHERS,
        1,
        _MAIN_ONLY,
        {},
    ),
    # Tries the machinery in minutes; nothing is learned from 1,797 digits.
    "digits": Plan(
        "digits", {"dataset": "digits", "passes": 24.0}, ("w2a2", "w8a8"), (), None, (), {}
    ),
}
