"""Who imports whom: the rooms of the package, read from its source."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = "dual_precision"
# Room -> the rooms that it may import from, beside itself. The root may know what `load` needs.
ROOMS = {
    "__init__": {"precision", "loading"},
    "loading": {"precision", "models", "training"},
    "precision": set(),
    "primitives": set(),
    "layers": {"precision", "primitives"},
    "describe": {"precision", "layers"},
    "energy": {"precision", "describe"},
    "models": {"precision", "primitives", "layers"},
    "training": {"precision", "primitives", "layers", "describe"},
    "data": set(),
    "deploy": {"precision", "primitives", "layers", "describe", "models"},
}
# Room -> all that it may import from outside of the standard library.
OUTSIDE = {"precision": {"flax.core"}, "primitives": {"jax", "numpy"}}
UNSAFE = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
SOURCES = sorted([*(ROOT / PACKAGE).rglob("*.py"), *(ROOT / "experiments").rglob("*.py")])
each_source = pytest.mark.parametrize(
    "path", SOURCES, ids=[str(path.relative_to(ROOT)) for path in SOURCES]
)


def imports(path: Path) -> set[str]:
    """Every module that a file imports, anywhere in it: "a.b" of `from a import b` too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import; write it out"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def room_of(path: Path) -> str:
    return path.relative_to(ROOT / PACKAGE).parts[0].removesuffix(".py")


def within(module: str, allowed: set[str]) -> bool:
    return any(f"{module}.".startswith(f"{name}.") for name in allowed)


@each_source
def test_rooms(path):
    if path.is_relative_to(ROOT / "experiments"):
        return  # may import everything
    room = room_of(path)
    assert room in ROOMS, f"{room}: a room that this test does not know; say what it may import"
    names = {"__init__", *ROOMS}
    for module in imports(path):
        assert not within(module, {"experiments", "tests"}), f"{path} imports {module}"
        if not within(module, {PACKAGE}):
            continue
        parts = module.split(".")
        other = parts[1] if len(parts) > 1 and parts[1] in names else "__init__"
        assert other in {room, *ROOMS[room]}, f"{room} must not import {module} ({path})"


@each_source
def test_third_parties(path):
    if path.is_relative_to(ROOT / "experiments") or room_of(path) not in OUTSIDE:
        return
    allowed = {PACKAGE, *sys.stdlib_module_names, *OUTSIDE[room_of(path)]}
    assert not [module for module in imports(path) if not within(module, allowed)]


@each_source
def test_nothing_unpickles(path):
    assert not [module for module in imports(path) if within(module, UNSAFE)]
    assert "allow_pickle=True" not in path.read_text()


def test_every_room_is_there():
    """A renamed room must not slip out of the rules."""
    there = {room_of(path) for path in SOURCES if path.is_relative_to(ROOT / PACKAGE)}
    assert there >= set(ROOMS)


@pytest.mark.parametrize(
    ("statement", "unwanted"),
    [
        ("import dual_precision", {"orbax", "tensorflow", "tensorflow_datasets"}),
        ("import dual_precision.models", {"orbax", "tensorflow", "tensorflow_datasets", "optax"}),
        ("import dual_precision.deploy", {"orbax", "tensorflow", "tensorflow_datasets", "optax"}),
    ],
)
def test_a_plain_import_is_light(statement, unwanted):
    code = f"{statement}; import sys; print(*sorted({unwanted!r} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []
