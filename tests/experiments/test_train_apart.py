"""Programs in processes of their own: they answer, and end with the block."""

import pytest

from experiments.benchmark import train_apart
from experiments.benchmark.train_step import LOW


def test_a_program_in_a_process_of_its_own():
    with train_apart.started([LOW], "resnet8", 8) as programs:
        own = programs[LOW]
        assert own.run(1) > 0
        assert 0 < own.difference < 1
        process = own._process
    process.join(10)
    assert process.exitcode is not None


def test_a_process_that_cannot_build_its_program():
    with (
        pytest.raises(RuntimeError, match="the process of 'no such program' ended"),
        train_apart.started(["no such program"], "resnet8", 8),
    ):
        pass
