"""A run on text, read back: its network, its task, and the text that it was on."""

import dataclasses
from pathlib import Path
from typing import Any

from flax import linen as nn

from dual_precision.data.text import Text, load_text
from dual_precision.loading import load
from dual_precision.tasks.language import NextByte
from experiments.lm.training import language_task
from experiments.recipes.language_config import LanguageConfig, language_config_from
from experiments.recipes.settings import read_widths
from experiments.workdir import read_description

SPLITS = ("validation", "test")


@dataclasses.dataclass(frozen=True, eq=False)
class TrainedOnText:
    """What the last checkpoint of a run holds, and what it was trained on."""

    config: LanguageConfig
    model: nn.Module
    variables: dict[str, Any]
    task: NextByte
    text: Text

    def part(self, split: str, limit: int | None = None) -> Any:
        """The first bytes of the text that validates, or of the one that is held out.

        Raises:
          ValueError: another split, or no number of bytes.
        """
        if split not in SPLITS:
            raise ValueError(f"split {split!r} is unknown: expected one of {list(SPLITS)}")
        if limit is not None and limit < 1:
            raise ValueError(f"{limit} bytes of the text: expected 1 or more")
        return getattr(self.text, split)[:limit]


def config_of_text_run(workdir: Path) -> LanguageConfig:
    """The config of a run on text.

    Raises:
      ValueError: `workdir` is not the folder of such a run.
    """
    found = read_description(workdir)["experiment"]
    if "epoch_bytes" not in found:
        raise ValueError(f"{workdir} is not a run on text: expected one of experiments.lm")
    return language_config_from({**found, "widths": read_widths(found.get("widths"))})


def read_trained(
    workdir: str | Path, data_dir: str | None = None, archive: str | None = None
) -> TrainedOnText:
    """A run on text; errors as `config_of_text_run`, `load` and `load_text`."""
    config = config_of_text_run(Path(workdir))
    model, variables = load(workdir)
    text = load_text(config.dataset, data_dir=data_dir, archive=archive)
    return TrainedOnText(config, model, variables, language_task(config), text)
