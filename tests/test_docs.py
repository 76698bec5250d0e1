"""The pages: what they link to, name, import and start is there."""

import ast
import dataclasses
import importlib
import inspect
import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import dual_precision
from dual_precision import models
from dual_precision.costs import mode_cost
from dual_precision.deploy import inspect_packed
from experiments.figures.idea import (
    DRAWN_WEIGHTS,
    GRID,
    PLANES_READ,
    draw_idea,
    drawn_values,
    planes_of,
)
from experiments.lm.training import default_language_workdir
from experiments.recipes.choice import RECIPES
from experiments.recipes.config import Config, make_config, preset_for
from experiments.recipes.flags import FIELDS, settings_asked
from experiments.recipes.language_config import LanguageConfig, make_language_config
from experiments.recipes.run_config import every_field
from experiments.recipes.settings import read_settings, read_widths
from experiments.workdir import default_workdir

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "notebooks").glob("*/*_notes.md")),  # written by hand
]
EXPERIMENTS = ROOT / "experiments"
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)

LINK = re.compile(r"\]\(([^)\s]+)\)")
COMMAND = re.compile(r"python -m experiments\.([\w.]+)([^\n`;&#]*)")
FLAG = re.compile(r"(?<![\w-])--([a-z_]+)")
SETTING = re.compile(r"--set (\w+)=(?!value)")
PATH = re.compile(r"`((?:dual_precision|experiments|notebooks|tests|docs)/[\w/.]*)`")


def blocks(page: Path, language: str) -> list[str]:
    """The fenced blocks of a page in that language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """What a link may name behind its "#": the headings, as their addresses are made."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title).strip().lower().replace(" ", "-") for title in titles}


def sources(command: str) -> str:
    """What may define a flag of a command: its file or folder, and what commands share."""
    folder = EXPERIMENTS / command.replace(".", "/")
    own = [folder.with_suffix(".py"), *folder.glob("*.py")]
    shared = [EXPERIMENTS / "cli.py", EXPERIMENTS / "recipes" / "flags.py"]
    return "\n".join(path.read_text() for path in own + shared if path.exists())


def defines(text: str, flag: str) -> bool:
    """absl's DEFINE_... takes the name as a text; a bool can be given as --noname."""
    return any(f'"{name}"' in text for name in {flag, flag.removeprefix("no")})


def imported(block: str) -> dict[str, Any]:
    """What a sample imports from the package, by name; ImportError where it is not there."""
    found = {}
    for node in ast.walk(ast.parse(block)):
        if isinstance(node, ast.ImportFrom) and node.module.startswith("dual_precision"):
            module = importlib.import_module(node.module)
            for alias in node.names:
                if not hasattr(module, alias.name):
                    importlib.import_module(f"{node.module}.{alias.name}")
                found[alias.name] = getattr(module, alias.name)
    return found


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 160


@each_page
def test_links_and_pictures_are_there(page):
    for link in LINK.findall(page.read_text()):
        if link.startswith("https://"):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@each_page
def test_paths_are_there(page):
    assert not [path for path in PATH.findall(page.read_text()) if not (ROOT / path).exists()]


@each_page
def test_commands_are_there(page):
    """And the flags beside them; flags that stand alone belong to some command."""
    text = page.read_text()
    for command, rest in COMMAND.findall(text):
        folder = EXPERIMENTS / command.replace(".", "/")
        assert folder.with_suffix(".py").exists() or (folder / "__main__.py").exists(), command
        assert not [flag for flag in FLAG.findall(rest) if not defines(sources(command), flag)]
    everything = "\n".join(path.read_text() for path in EXPERIMENTS.rglob("*.py"))
    assert not [flag for flag in FLAG.findall(text) if not defines(everything, flag)]


@each_page
def test_settings_are_fields(page):
    fields = "\n".join(path.read_text() for path in (EXPERIMENTS / "recipes").glob("*.py"))
    for name in SETTING.findall(page.read_text()):
        assert re.search(rf"^    {name}: ", fields, re.MULTILINE), name


# Command -> class of its config, config of a preset and settings, folder of a config and preset.
TRAININGS: dict[str, tuple[Any, ...]] = {
    "cifar": (Config, make_config, default_workdir),
    "lm": (LanguageConfig, make_language_config, default_language_workdir),
}


def run_of(command: str, rest: str) -> tuple[Path, Any] | None:
    """The default folder and the config of a documented training; None for other commands."""
    words = shlex.split(rest.replace("--set ", "--set="))
    if command not in TRAININGS or (words and not words[0].startswith("--")):
        return None  # what stands first is a sub-command
    kind, make, folder_of = TRAININGS[command]
    given = [word.removeprefix("--").partition("=")[::2] for word in words if word[:2] == "--"]
    named: dict[str, Any] = {name: value for name, value in given if name in FIELDS}
    if "seed" in named:  # a page may have $seed there
        named["seed"] = int(named["seed"]) if named["seed"].isdigit() else 0
    assigned = [value for name, value in given if name == "set"]
    settings = settings_asked(assigned, named, None, every_field(kind))
    flags = dict(given)
    if "widths" in flags:
        settings["widths"] = read_widths({"stage3_*": {"low": "w1a2"}})
    preset = flags.get("preset") or preset_for(flags.get("dataset"))
    config = make(preset, settings)
    return Path(flags.get("workdir") or folder_of(config, preset)), config


def test_trainings_of_different_settings_have_different_folders():
    """The second would end with "holds a run with another config"."""
    found: dict[Path, Any] = {}
    for page in PAGES:
        for command, rest in COMMAND.findall(page.read_text()):
            if run := run_of(command, rest):
                folder, config = run
                assert found.setdefault(folder, config) == config, f"{page.name}: {rest}"
    assert len(found) >= 20


def test_folders_that_pages_name_are_left_by_commands_of_pages():
    """By a training with that --workdir, or one that has it by default."""
    runs = [run_of(*found) for page in PAGES for found in COMMAND.findall(page.read_text())]
    left = {str(run[0]) for run in runs if run}
    for page in PAGES:
        for name in re.findall(r"runs/[\w=.-]+-seed\d", page.read_text()):
            assert name in left or name.startswith("runs/search-"), f"{page.name}: {name}"


@each_page
def test_imports_are_there(page):
    for block in blocks(page, "python"):
        imported(block)


@each_page
def test_arguments_have_their_names(page):
    """Of what the samples import and call: a keyword that is not taken fails for the reader."""
    for block in blocks(page, "python"):
        known = imported(block)
        for call in ast.walk(ast.parse(block)):
            if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name):
                continue
            if not callable(known.get(call.func.id)):
                continue
            taken = inspect.signature(known[call.func.id]).parameters
            if any(one.kind is one.VAR_KEYWORD for one in taken.values()):
                continue
            given = {keyword.arg for keyword in call.keywords if keyword.arg}
            assert given <= set(taken), call.func.id


def test_there_is_something_to_check():
    text = "\n".join(page.read_text() for page in PAGES)
    assert len(LINK.findall(text)) >= 30
    assert len(COMMAND.findall(text)) >= 15
    assert len(PATH.findall(text)) >= 15
    assert sum(len(blocks(page, "python")) for page in PAGES) >= 6


def test_the_drawing_is_what_its_script_draws():
    assert (ROOT / "docs" / "idea.svg").read_text() == draw_idea()


def test_the_drawing_is_true():
    """The signs of a row add up to what each mode reads."""
    worth = GRID * 2.0 ** np.arange(6, -2, -1)
    signs = planes_of(DRAWN_WEIGHTS)
    for bits in PLANES_READ.values():
        read = signs[:, :bits] @ worth[:bits]
        np.testing.assert_array_equal(read, drawn_values(DRAWN_WEIGHTS, bits))


def run_samples(title: str, names: dict[str, Any]) -> dict[str, Any]:
    """Runs the Python blocks of a section of docs/training.md, with these names, as they stand."""
    page = (ROOT / "docs" / "training.md").read_text()
    (section,) = re.findall(rf"^## {title}\n(.*?)(?=^## |\Z)", page, re.DOTALL | re.MULTILINE)
    for sample in re.findall(r"^```python\n(.*?)^```$", section, re.DOTALL | re.MULTILINE):
        exec(compile(sample, f"training.md, {title}", "exec"), names)
    return names


def assert_learned(names: dict[str, Any]) -> None:
    """That the modes of the model that a sample has loaded know the images that validate."""
    model, variables, validation = (names[name] for name in ("model", "variables", "validation"))
    for mode in model.modes.default:
        logits = model.apply(variables, validation.images, precision=mode)
        assert (logits.argmax(-1) == validation.labels).mean() > 0.95, mode


@pytest.mark.usefixtures("compiled_quickly")
def test_images_networks_and_modes_of_your_own_are_learned(tmp_path, monkeypatch, capsys):
    """The samples as they stand, one after the other."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(models, "MODELS", models.MODELS.copy())
    names = run_samples("Images of your own", {"__name__": "sample"})
    assert float(capsys.readouterr().out.splitlines()[-2]) > 0.95
    info = inspect_packed("runs/own.safetensors")
    assert mode_cost(info, "low").bit_operations < mode_cost(info, "high").bit_operations

    run_samples("A network of your own", names)
    assert_learned(names)
    models.MODELS.pop("small")
    with pytest.raises(ValueError, match="'small' is unknown"):
        dual_precision.load("runs/small")

    run_samples("Three modes and more", names)
    assert_learned(names)
    assert [*names["model"].modes.default] == ["low", "mid", "high"]


def test_the_table_of_settings_has_the_defaults():
    page = (ROOT / "docs" / "training.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| (\S+) \| ([^|]*) \|", page, re.MULTILINE)
    recipes = [recipe for orders in RECIPES.values() for recipe in orders.values()]
    assert len(rows) >= 10
    for name, default, where in rows:
        fields = [f for kind in (Config, *recipes) for f in dataclasses.fields(kind)]
        found = {field.default for field in fields if field.name == name}
        (value,) = read_settings([f"{name}={default}"], every_field(Config)).values()
        assert value in found, name
        assert found == {value} or where != "all", name
