"""The configuration of a run on images, and its presets."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from dual_precision.training.options import FitOptions
from experiments.recipes.choice import resolve
from experiments.recipes.run_config import RunConfig, assembled
from experiments.recipes.settings import check_choice, check_model, read_channels


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(RunConfig):
    """One run on images."""

    low: str = "w2a2"
    model: str = "resnet20"
    dataset: str = "cifar10"
    batch_size: int = 128
    skipped: str = ""  # residual blocks that the network leaves out, "stage2_block1 stage3_block1"
    mean: str = ""  # of pixels per channel, "0.485,0.456,0.406"; "" is that of the training images
    std: str = ""  # likewise; what `init` was trained with, if that is known
    steps_per_dispatch: int = 0  # at most; updates in one program launch; 0 chooses by device
    accumulate: int = 1  # parts of a batch that run one after the other, to save memory

    def __post_init__(self) -> None:
        check_model(self.model, reads="images")
        if bool(self.mean) != bool(self.std):
            raise ValueError(f"mean={self.mean!r} and std={self.std!r}: expected both or none")
        for name in ("mean", "std"):
            read_channels(name, getattr(self, name))
        super().__post_init__()

    def fit_options(self) -> FitOptions:
        """How the recipe is run."""
        return dataclasses.replace(
            super().fit_options(),
            steps_per_dispatch=self.steps_per_dispatch,
            accumulate=self.accumulate,
        )


# What a preset changes of the defaults.
PRESETS: dict[str, dict[str, Any]] = {
    # 7 epochs of high, then 7 of both, each on half of every batch.
    "quick": {
        "model": "resnet8_fast",
        "passes": 14.0,
    },
    # For an accelerator, not run yet: 200 epochs for each phase.
    "paper": {},
    # The standard network, from a trained float one: --init=...
    "resnet20": {
        "passes": 60.0,
        "learning_rate": 0.03,
        "step_learning_rate": 0.003,
        "weight_decay": 1e-4,
        "epochs_per_evaluation": 5,
    },
    # The smoke test, seconds on two CPU cores; what --dataset=digits takes by itself.
    "digits": {
        "dataset": "digits",
        "model": "mlp",
        "batch_size": 64,
        "passes": 120.0,
        "epochs_per_evaluation": 10,
    },
}
# Presets with the rates and the few passes of a network that is trained already.
FOR_A_TRAINED_NETWORK = ("resnet20",)


def preset_for(dataset: str | None) -> str:
    """The preset where none is asked for, whatever the device: of the data set, or quick."""
    return "digits" if dataset == "digits" else "quick"


def note_on_start(preset: str, config: RunConfig, flag: str = "--init") -> str:
    """What to say of a run from random weights whose preset is for a trained network; else "".

    Args:
      flag: of the command, that names the network to start from.
    """
    if preset not in FOR_A_TRAINED_NETWORK or config.init or config.mode == "float":
        return ""
    return (
        f"note: preset {preset} is meant for a network that was trained in float, and this starts"
        f" from random weights; {flag}=notebooks/networks/resnet20-float.safetensors starts from"
        " one of CIFAR-10"
    )


def make_config(preset: str, settings: Mapping[str, Any]) -> Config:
    """The values of a preset, overridden by `settings`: fields of Config and of the recipe.

    Raises:
      ValueError: unknown preset or field; the message lists the known ones.
    """
    check_choice("preset", preset, sorted(PRESETS))
    return config_from({**PRESETS[preset], **settings})


def config_from(values: Mapping[str, Any]) -> Config:
    """The Config that `values` ask for, fields of Config and of the recipe; others by default.

    Raises:
      ValueError: a field that the recipe does not have; the message lists the known ones; a value
        of another type.
    """
    return assembled(Config, resolve(values), values)
