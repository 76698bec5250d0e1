"""The examples in the docstrings are true."""

import doctest
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def has_examples(path: Path) -> bool:
    lines = path.read_text().splitlines()
    return any(">>> " in line and "+SKIP" not in line for line in lines)


MODULES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for folder in ("dual_precision", "experiments")
    for path in (ROOT / folder).rglob("*.py")
    if has_examples(path)
)


@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    found = doctest.testmod(importlib.import_module(name))
    assert found.failed == 0
    assert found.attempted > 0


def test_there_are_examples():
    primitives = [name for name in MODULES if name.startswith("dual_precision.primitives.")]
    assert len(primitives) >= 7
    assert len(MODULES) >= 12
