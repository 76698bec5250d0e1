"""How the accuracy of a study's runs went while they were trained: data, and a plot."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.figures.drawing import AUTO, DARK, GREY, pyplot_for_files, save_figure
from experiments.recipes.config import Config
from experiments.study.runner import passes_behind

Point = dict[str, float]
_SHOWN = {  # no colour of a mode: each panel is one
    "twins": GREY,
    "long twins": DARK,
    "joint split": "#e09f3e",
    "two_phase refine": AUTO,
    "two_phase joint": "#6a994e",
}


def course_of(config: Config, records: Sequence[Mapping[str, Any]]) -> list[Point]:
    """A point for each evaluation of a run: its passes by then, and what its modes had, in %."""
    modes = {*config.recipe.reported}
    return [
        {
            "passes": passes_behind(config, record["epoch"]),
            **{
                mode: round(100 * record[f"validation_{mode}_accuracy"], 2)
                for mode in sorted(modes)
                if f"validation_{mode}_accuracy" in record
            },
        }
        for record in records
    ]


def plot_courses(results: Mapping[str, Any], pair: Mapping[str, Any], path: Path) -> bool:
    """Validation accuracy against the passes of all networks of a method, a panel for each mode.

    A line is the mean over seeds. Returns False, and draws nothing, where there are no courses.
    """
    lines = {
        mode: {method: _mean_course(results["runs"], pair, method, mode) for method in _SHOWN}
        for mode in ("low", "high")
    }
    if not any(points for methods in lines.values() for points in methods.values()):
        return False
    figure, panels = pyplot_for_files().subplots(1, 2, figsize=(9.5, 3.9), layout="constrained")
    for axes, (mode, methods) in zip(panels, lines.items(), strict=True):
        for method, points in methods.items():
            if points:
                axes.plot(*zip(*points, strict=True), "o-", ms=3, c=_SHOWN[method], label=method)
        axes.set(title=f"{mode} ({pair[mode]})", xlabel="passes, of all networks of the method")
        axes.grid(alpha=0.3)
    panels[0].set(ylabel="validation accuracy, %")
    panels[0].legend(loc="lower right")
    save_figure(figure, path)
    return True


def _mean_course(
    runs: Mapping[str, Any], pair: Mapping[str, Any], method: str, mode: str
) -> list[tuple[float, float]]:
    """(passes, mean over seeds) where all seeds were measured; [] where one has no course."""
    by_seed = pair["methods"].get(method, {}).get("runs", {}).values()
    courses = []
    for names in by_seed:
        if mode not in names:
            return []
        networks = len({*names.values()})
        own = "high" if networks > 1 and mode == "low" else mode  # a twin runs its width as high
        found = runs[names[mode]].get("course", [])
        courses.append({networks * p["passes"]: p[own] for p in found if own in p})
    common = set.intersection(*map(set, courses)) if courses else set()
    return [(at, sum(course[at] for course in courses) / len(courses)) for at in sorted(common)]
