"""The flags of the training command, for the files that set them."""

from collections.abc import Callable, Iterator

import pytest
from absl import flags

from experiments.recipes import flags as training_flags


@pytest.fixture
def parse() -> Iterator[Callable[..., object]]:
    """Sets the flags of the main command; they are put back after the test."""
    if "mode" not in flags.FLAGS:
        training_flags.define_flags()
    yield lambda *arguments: flags.FLAGS(["cifar", *arguments])
    for flag in flags.FLAGS.get_flags_for_module(training_flags.__name__):
        flag.unparse()
