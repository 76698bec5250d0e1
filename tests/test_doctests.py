"""The examples in the docstrings are true."""

import doctest
import importlib
import pkgutil

import pytest

import dual_precision.primitives

MODULES = [
    "dual_precision.precision.table",
    "dual_precision.precision.widths",
    "dual_precision.training.schedules",
    "dual_precision.deploy.cascade.rule",
    "experiments.benchmark.timing",
    "experiments.deploy.pack",
    "experiments.figures.tables",
    "dual_precision.deploy.batching",
    "dual_precision.deploy.file.examples",
    *(
        module.name
        for module in pkgutil.iter_modules(
            dual_precision.primitives.__path__, "dual_precision.primitives."
        )
    ),
]


@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    assert doctest.testmod(importlib.import_module(name)).failed == 0


def test_there_are_examples():
    found = [
        test
        for name in MODULES
        for test in doctest.DocTestFinder().find(importlib.import_module(name))
        if test.examples
    ]
    assert len(found) >= 15
