"""Who imports whom: the rooms of the package, read from its source."""

import ast
import configparser
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = "dual_precision"
# The house from top to bottom: a room may import from itself and from all floors below its own;
# rooms of one floor do not know each other. Names that do not exist yet keep their place.
FLOORS = (
    {"search", "loading"},
    {"training", "deploy"},
    {"costs"},
    {"structure", "models"},
    {"tasks"},
    {"layers"},
    {"data", "primitives", "precision", "replacing"},
)
# The same inside of deploy, whose parts are modules and folders.
DEPLOY = (
    {"__init__", "server"},
    {"predictor", "controller", "export", "generation"},
    {"integer", "planes", "pytorch"},
    {"file", "cascade", "forms", "batching", "dispatch", "layer_widths"},
)
ROOT_IMPORTS = {"precision", "loading"}  # what `dual_precision.load` needs, and no more
NOT_YET: set[str] = set()
# Room -> all that it may import from outside of the standard library.
OUTSIDE = {
    "precision": {"flax", "jax"},
    "primitives": {"jax", "numpy"},
    "layers": {"flax", "jax"},
    "models": {"flax", "jax"},
    "structure": {"flax", "jax"},
    "costs": set(),
    "replacing": set(),
}
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


def below(room: str, floors: tuple[set[str], ...]) -> set[str]:
    """The rooms on all floors below."""
    index = next((i for i, floor in enumerate(floors) if room in floor), None)
    assert index is not None, f"{room}: a room that this test does not know; give it a floor"
    return set().union(*floors[index + 1 :])


def is_part_of_the_package(path: Path) -> bool:
    return path.is_relative_to(ROOT / PACKAGE)


PARTS = [path for path in SOURCES if is_part_of_the_package(path)]
each_part = pytest.mark.parametrize(
    "path", PARTS, ids=[str(path.relative_to(ROOT)) for path in PARTS]
)


@each_part
def test_rooms(path):
    room = room_of(path)
    allowed = ROOT_IMPORTS if room == "__init__" else {room, *below(room, FLOORS)}
    for module in imports(path):
        assert not within(module, {"experiments", "tests"}), f"{path} imports {module}"
        if within(module, {PACKAGE}):
            other = (*module.split("."), "__init__")[1]
            assert other in allowed, f"{room} must not import {module} ({path})"


@pytest.mark.parametrize(
    "path", sorted((ROOT / PACKAGE / "deploy").rglob("*.py")), ids=lambda path: path.name
)
def test_parts_of_deploy(path):
    """A folder of deploy knows nothing of what is put together from it."""
    part = path.relative_to(ROOT / PACKAGE / "deploy").parts[0].removesuffix(".py")
    allowed = {part, *below(part, DEPLOY)}
    for module in imports(path):
        if within(module, {f"{PACKAGE}.deploy"}):
            other = (*module.split("."), "__init__")[2]
            assert other in allowed, f"deploy/{part} must not import {module}"


def test_nobody_in_training_knows_a_method():
    """A method is a value that a recipe gives: `fit` and the step are the same for all."""
    methods = ROOT / PACKAGE / "training" / "methods"
    for path in PARTS:
        if not path.is_relative_to(methods):
            found = {m for m in imports(path) if within(m, {f"{PACKAGE}.training.methods"})}
            assert not found, f"{path} imports {found}"


def test_nobody_switches_on_the_class_of_a_layer():
    """A layer states its own facts: see layers/facts.py."""
    layers = {"Conv", "Dense", "QuantizedLayer", "SwitchableBatchNorm"}
    for path in PARTS:
        if room_of(path) == "layers":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            switch = isinstance(node, ast.Compare) or (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Name)
                and node.func.id in ("isinstance", "issubclass")
            )
            names = {n.id for n in ast.walk(node) if isinstance(n, ast.Name)} if switch else set()
            assert not names & layers, f"{path}:{node.lineno}: {names & layers}"


@pytest.mark.parametrize(
    "path",
    [path for path in PARTS if room_of(path) in OUTSIDE],
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_third_parties(path):
    allowed = {PACKAGE, *sys.stdlib_module_names, *OUTSIDE[room_of(path)]}
    assert not [module for module in imports(path) if not within(module, allowed)]


# Words that look like flags of a command, and are none of ours.
FLAGS = {
    "data/provision/download.py": "of npm",
    "primitives/native/build.py": "of the compiler",
}


@each_part
def test_a_package_speaks_of_nothing_that_is_not_installed(path):
    """Neither of the commands in experiments/ nor of their flags: a caller has arguments."""
    own = r"\bexperiments\."
    if str(path.relative_to(ROOT / PACKAGE)) not in FLAGS:
        own += r"|(?<![\w-])--[a-z]"
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            found = re.search(own, node.value)
            assert not found, f"{path}:{node.lineno}: {node.value[found.start() :]!r}"


# Public names that more than one module has, and why.
SHARED = {
    "Bits": "of two rooms that do not know each other: the same alias of an integer",
    "KERNEL": "each compiled kernel is asked by its module, as in planes.KERNEL",
    "available": "likewise, as in planes.available()",
    "load": "dual_precision.load and data.load, which are called by these names",
    "log": "the logger of a module",
}


def public_names(body: list[ast.stmt]) -> set[str]:
    """Classes, functions and constants that a module defines for others."""
    found = set()
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            named = [n for target in targets for n in ast.walk(target) if isinstance(n, ast.Name)]
            found |= {n.id for n in named if isinstance(n.ctx, ast.Store)}
        elif isinstance(node, ast.If | ast.Try):
            found |= public_names([*node.body, *node.orelse])
    return {name for name in found if not name.startswith("_")}


def test_a_word_is_defined_once():
    """No two modules define the same public name: a reader need not ask which one is meant."""
    where: dict[str, list[str]] = {}
    for path in PARTS:
        for name in public_names(ast.parse(path.read_text()).body):
            where.setdefault(name, []).append(str(path.relative_to(ROOT / PACKAGE)))
    assert not {n: paths for n, paths in where.items() if len(paths) > 1 and n not in SHARED}


@each_source
def test_nothing_unpickles(path):
    assert not [module for module in imports(path) if within(module, UNSAFE)]
    assert "allow_pickle=True" not in path.read_text()


def test_an_installed_package_has_every_file():
    """Pages and sources of kernels too: setup.cfg names them."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    package = ROOT / "dual_precision"
    patterns = setup["options.package_data"]["dual_precision"].split()
    named = {path for pattern in patterns for path in package.glob(pattern)}
    files = {path for path in package.rglob("*.*") if "__pycache__" not in path.parts}
    assert named == {path for path in files if path.is_file() and path.suffix != ".py"}


def test_every_room_is_there():
    """A renamed room must not slip out of the rules."""
    there = {room_of(path) for path in PARTS} - {"__init__"}
    assert there | NOT_YET == set().union(*FLOORS) | NOT_YET


def test_a_plain_import_is_light():
    heavy = {"orbax", "tensorflow", "tensorflow_datasets"}
    steps = (("", heavy), (".models", heavy | {"optax"}), (".deploy", heavy | {"optax"}))
    code = "import sys\n" + "\n".join(
        f"import dual_precision{room}; print(*sorted({unwanted!r} & set(sys.modules)))"
        for room, unwanted in steps
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []
