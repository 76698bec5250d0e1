"""Does steering help? A scripted analyst, the search by itself, and chance, at equal evaluations.

    python -m experiments.search.steering --supernets=runs/super0,runs/super1,runs/super2

One supernet for every seed; the same one may be named again, for another seed of the search. The
analyst has one rule: after each generation, of every layer remove the alternatives that no member
of the front has and whose fitness is below the --quantile of those of its layer, and never the last
two. What is compared is the mean accuracy of the front over the logarithm of BitOps, from the
cheapest uniform path to the dearest, or to --bound; its validation images are the first --images,
so that the test set is never read. Candidates that two strategies share are evaluated once. Writes
steering.json. The same command goes on from the logs in --workdir; logs of other supernets, or of
another --images, --bound or --quantile, are refused.
"""

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from dual_precision.search.edits import Edit
from dual_precision.search.evolve import (
    Evaluated,
    Settings,
    best_within,
    fitness_of,
    front_accuracy,
    front_of,
)
from dual_precision.search.session import Evaluate, Session, read_events, replay
from dual_precision.search.space import Candidate, Space
from dual_precision.search.state import SearchState
from experiments import cli
from experiments.figures.tables import markdown_table
from experiments.search.opened import describe_opened, open_supernet
from experiments.study.results import spread
from experiments.workdir import only_user, write_whole

STRATEGIES = ("random", "evolve", "steered")
_COLUMNS = (
    ("seed", "seed", "{}"),
    *((name, name, "{:.2f}") for name in STRATEGIES),
    ("uniform", "uniform", "{:.2f}"),
    ("needed", "evaluations, steered/evolve", "{:.2f}"),
    ("gain", "over uniform at the cost of low", "{:+.2f}"),
)


def cuts_of(state: SearchState, quantile: float) -> list[Edit]:
    """What the scripted analyst does after a generation."""
    fitness = fitness_of(state.space, state.evaluated)
    kept = {
        block
        for one in front_of(state.evaluated)
        for block in zip(state.space.layers, one.candidate, strict=True)
    }
    edits = []
    for layer, own in zip(state.space.layers, state.space.alternatives, strict=True):
        limit = float(np.quantile([fitness[layer, text][0] for text in own], quantile))
        weak = [t for t in own if fitness[layer, t][0] < limit and (layer, t) not in kept]
        edits += [Edit("remove", layer, text) for text in weak[: len(own) - 2]]
    return edits


def cuts_left(session: Session, quantile: float) -> list[Edit]:
    """The edits of the last generation that its log does not have.

    They follow from the state in which the generation ended, before the first of them, so that a
    run that was stopped between two edits goes on with those that it would have made.
    """
    states = replay(read_events(session.path))
    ended = [len(state.evaluated) for state in states].index(len(states[-1].evaluated))
    made = len(states) - 1 - ended  # nothing but edits comes after it
    return cuts_of(states[ended], quantile)[made:]


def run_strategy(session: Session, strategy: str, evaluations: int, quantile: float) -> None:
    """Runs a session until so many have been evaluated; "steered" edits it between generations.

    Where its log goes further than a generation, the edits of that one are in it.
    """
    every = session.state.settings.population
    for count in range(every, evaluations, every):
        session.run(count)
        if strategy == "steered" and len(session.state.evaluated) == count:
            for edit in cuts_left(session, quantile):
                session.edit(edit, "script")
    session.run(evaluations)


def evaluations_needed(
    evaluated: Sequence[Evaluated], target: float, ends: tuple[float, float]
) -> float:
    """Evaluations until the front is as good as `target`; infinite where it never is."""
    for count in range(1, len(evaluated) + 1):
        if front_accuracy(evaluated[:count], *ends) >= target:
            return count
    return math.inf


def compare(
    space: Space,
    about: Mapping[str, Any],
    evaluate: Evaluate,
    seed: int,
    evaluations: int,
    quantile: float,
    folder: Path,
    own_cost: float,
) -> dict[str, Any]:
    """A row: front accuracy of every strategy, and what steering saved: "needed" is None where it
    never was as good.

    Args:
      about: what accuracies depend on beside the candidate: the supernet, the images.
      own_cost: BitOps of the mode that is searched, at which the best map is compared.

    Raises:
      SpaceError: the folder has a log of this seed that is of something else.
    """
    known: dict[Candidate, float] = {}

    def once(own: Space, candidate: Candidate) -> float:
        if candidate not in known:
            known[candidate] = evaluate(own, candidate)
        return known[candidate]

    costs = [space.cost(path) for path in space.uniform()]
    ends = (min(costs), max(costs) if space.most is None else space.most)
    found: dict[str, tuple[Evaluated, ...]] = {}
    for strategy in STRATEGIES:
        kind = "random" if strategy == "random" else "evolve"
        path, settings = folder / f"{strategy}{seed}.jsonl", Settings(kind, 20, seed)
        session = Session(path, space, settings, {**about, "quantile": quantile}, once)
        run_strategy(session, strategy, evaluations, quantile)
        found[strategy] = session.state.evaluated[:evaluations]  # a log may have more
    uniform = [one for one in found["random"] if space.is_uniform(one.candidate)]
    row: dict[str, Any] = {"seed": seed}
    row |= {name: front_accuracy(own, *ends) for name, own in found.items()}
    row["uniform"] = front_accuracy(uniform, *ends)
    steered, alone = (
        evaluations_needed(found[name], row["evolve"], ends) for name in ("steered", "evolve")
    )
    row["needed"] = None if math.isinf(steered) else steered / alone  # JSON has no infinity
    best = best_within(front_of(found["evolve"] + found["steered"]), own_cost)
    same = best_within(front_of(uniform), own_cost)
    if best and same:
        row |= {"gain": best.accuracy - same.accuracy, "best": list(best.candidate)}
    return row


def interval(rows: Sequence[Mapping[str, Any]], one: str, other: str) -> str:
    """Mean difference, paired by seed, with its 95 % interval."""
    found = spread([row[one] - row[other] for row in rows])
    ends = found["interval"]
    return f"{found['mean']:+.2f}" + (f" [{ends[0]:.2f}, {ends[1]:.2f}]" if ends else "")


def main(
    *,
    supernets: list[str],
    evaluations: int,
    quantile: float,
    images: int,
    workdir: str,
    bound: float | None = None,
    data_dir: str | None = None,
) -> None:
    clock, folder, rows = cli.Stopwatch(), Path(workdir), []
    if not 0 <= quantile <= 1:
        raise ValueError(f"--quantile={quantile}: expected 0 to 1")
    with only_user(folder):
        for seed, source in enumerate(supernets):
            opened = open_supernet(Path(source), images, True, data_dir)
            space = dataclasses.replace(opened.space, most=bound)
            about = describe_opened(opened, Path(source)) | {"images": images}
            cost = opened.own_cost
            row = compare(space, about, opened.evaluate, seed, evaluations, quantile, folder, cost)
            rows.append(row)
            print(json.dumps(row, allow_nan=False), flush=True)
            text = json.dumps({"rows": rows}, indent=1, allow_nan=False)
            write_whole(folder / "steering.json", text + "\n")
    print(f"\n{markdown_table(rows, _COLUMNS, missing='not reached')}\n")
    for one, other in (("evolve", "random"), ("steered", "evolve"), ("steered", "random")):
        print(f"{one} - {other}: {interval(rows, one, other)} points of front accuracy")
    print(f"{clock} in all")


if __name__ == "__main__":
    flags.DEFINE_list("supernets", None, "workdirs of --mode=supernet, one for every seed")
    flags.DEFINE_integer("evaluations", 100, "candidates of every strategy", lower_bound=1)
    flags.DEFINE_float("quantile", 0.25, "of fitness, below which the analyst removes")
    flags.DEFINE_integer("images", 1000, "of the validation split, for one candidate")
    flags.DEFINE_float("bound", None, "the most BitOps of a candidate", lower_bound=1.0)
    flags.DEFINE_string("workdir", "runs/steering", "folder of the logs")
    flags.DEFINE_string("data_dir", None, "folder of prepared TFDS data sets")
    cli.run(main)
