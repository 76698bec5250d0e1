"""Searches the widths of every layer of a network that was trained for all of them at once.

    python -m experiments.cifar --mode=supernet --init=TRAINED --workdir=runs/supernet
    python -m experiments.search --supernet=runs/supernet
    python -m experiments.search --supernet=runs/supernet --page

The folder gets session.jsonl, the log, from which the same command goes on; front.json, front.png;
and widths.json, the most accurate map of at most --bound BitOps in the space as it was edited last,
which --widths of a training takes. With --page the search is watched and steered in a browser, at
an address of this machine alone. `--widths` of this command is a map of another method, such as BSQ
leaves: it is evaluated beside the best one of its cost. A layer that it does not name has the
widths of low, as in a training with that map.
"""

import dataclasses
from pathlib import Path

from absl import flags
from tqdm import tqdm

from dual_precision.search.evolve import Evaluated, Settings
from dual_precision.search.session import Session
from experiments import cli
from experiments.recipes.flags import read_widths_file
from experiments.search.opened import (
    LOG,
    describe_opened,
    open_supernet,
    phase_in,
    trained_in,
)
from experiments.search.results import beside, candidate_of, leave_search
from experiments.workdir import only_user


def main(
    *,
    supernet: str,
    evaluations: int,
    strategy: str,
    population: int,
    seed: int,
    images: int,
    recalibrate: bool,
    bound: float | None = None,
    widths: str | None = None,
    passes: float,
    page: bool,
    port: int,
    workdir: str | None = None,
    data_dir: str | None = None,
) -> None:
    clock, source = cli.Stopwatch(), Path(supernet)
    settings = Settings(strategy, population, seed)
    folder = Path(workdir or f"runs/search-{source.name}-{strategy}-seed{seed}")
    opened = open_supernet(source, images, recalibrate, data_dir)
    phase_in(opened.space, opened.config.recipe, passes)  # not refused at the first click only
    about = describe_opened(opened, source) | {"images": images, "recalibrate": recalibrate}
    space = opened.space
    if bound is None:  # of widths.json alone; the front of all costs is searched
        bound = opened.own_cost
    else:
        space = dataclasses.replace(space, most=bound)
    given = candidate_of(space, read_widths_file(widths), opened.own_path()) if widths else None
    with only_user(folder):
        opened.go_on(trained_in(folder))

        def train(space):
            return opened.train_on(space, passes, folder)

        session = Session(
            folder / LOG, space, settings, about, opened.evaluate, train, opened.take_trained
        )
        if page:
            from dual_precision.search.page.server import serve_page

            serve_page(session, evaluations, port)
        else:
            search(session, evaluations)
        leave_search(session.state, folder, bound)
        if given:
            found = Evaluated(given, opened.evaluate(space, given), space.cost(given))
            print(beside(session.state, found))
    print(f"{clock} in all")


def search(session: Session, evaluations: int) -> None:
    """Until so many candidates have been evaluated, or no new one is found, which is said."""
    if session.state.paused:
        session.pause(False)
    done = len(session.state.evaluated)
    for _ in tqdm(range(done, evaluations), unit=" candidates", disable=None):
        if not session.step():
            break
    found, size = len(session.state.evaluated), session.state.space.size
    if found < evaluations:
        why = (
            f"no new one is found in this space of {size:,} paths (before cuts and the bound); a"
            " larger --bound may have more"
        )
        if size == 1:
            why = "one network is left, and it is evaluated"
        print(f"stopped after {found} of {evaluations} candidates: {why}")


if __name__ == "__main__":
    flags.DEFINE_string("supernet", None, "workdir of a finished run of --mode=supernet")
    flags.DEFINE_integer("evaluations", 200, "candidates to evaluate in all")
    about = "evolve, or random: every alternative of a layer has the same chance"
    flags.DEFINE_string("strategy", "evolve", about)
    flags.DEFINE_integer("population", 20, "candidates of a generation")
    flags.DEFINE_integer("seed", 0, "of what is drawn")
    flags.DEFINE_integer("images", 0, "of the validation split, for one candidate; 0 is all")
    flags.DEFINE_bool("recalibrate", True, "statistics of normalisation of every candidate")
    about = "limit of BitOps; by default none for candidates, and the cost of low for widths.json"
    flags.DEFINE_float("bound", None, about)
    about = "a JSON file of widths, evaluated beside the best candidate of its cost"
    flags.DEFINE_string("widths", None, about)
    flags.DEFINE_float("passes", 2.0, "of training, each time 'train on' is clicked on the page")
    flags.DEFINE_bool("page", False, "watch and steer in a browser (extra [pages])")
    about = "of the page; 0 takes a free one"
    flags.DEFINE_integer("port", 5006, about, lower_bound=0, upper_bound=65535)
    flags.DEFINE_string("workdir", None, "folder of the session; by default one under runs/")
    flags.DEFINE_string("data_dir", None, "folder of prepared TFDS data sets")
    cli.run(main)
