"""How sharp a minimum is; the figures of cycles and bits; the commands refuse what is no run."""

import json

import numpy as np
import pytest

from dual_precision import modes
from dual_precision.models import MLP
from dual_precision.structure import structure_of
from dual_precision.tasks.classification import Classification
from dual_precision.training.state import initial_variables
from experiments.figures.drawing import COLOURS, RECIPES
from experiments.figures.valleys import draw_valleys, losses_around, sharpness
from experiments.methods import bit_sweep, valleys
from experiments.recipes.config import make_config
from experiments.workdir import CONFIG, RESULTS

MODEL = MLP(num_classes=4, modes=modes(low="w2a2", high="w8a8"), hidden=(16, 16))
EXAMPLE = Classification((8, 8, 1)).example


def test_sharpness_is_the_mean_rise():
    places = np.array([-1.0, -0.5, 0.0, 0.5, 1.0])
    bowls = np.stack([2 + 3 * places**2, 1 + 5 * places**2])
    assert sharpness(bowls, places, 1.0) == pytest.approx(4)
    assert sharpness(bowls, places, 0.5) == pytest.approx(1)
    assert sharpness(np.ones((2, 5)), places, 1.0) == 0


def test_losses_around_a_network():
    """The same in the middle of every line; a line of its own for every direction."""
    variables = initial_variables(MODEL, EXAMPLE, seed=0)
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (16, 8, 8, 1)).astype(np.uint8)
    labels = generator.integers(0, 4, 16).astype(np.int32)
    layers = [*structure_of(MODEL, EXAMPLE).layers]
    found = losses_around(MODEL, variables, layers, [-0.5, 0.0, 0.5], images, labels, 2)
    assert found.shape == (2, 3)
    assert found[0, 1] == found[1, 1]
    assert found[0, 0] != found[1, 0]
    assert len(draw_valleys([-0.5, 0.0, 0.5], {"a": [found], "b": [found]}).axes) == 1
    with pytest.raises(ValueError, match=r"5 kinds of networks beside .*: expected at most 4"):
        draw_valleys([-0.5, 0.0, 0.5], {name: [found] for name in "abcde"})


def test_a_kind_keeps_its_colour_whatever_stands_beside_it():
    """And none has that of a mode: the loss is of high for all."""
    losses = [np.ones((1, 3)), np.ones((1, 3))]

    def colours(*names):
        (axes,) = draw_valleys([-0.5, 0.0, 0.5], dict.fromkeys(names, losses)).axes
        return {line.get_label(): line.get_color() for line in axes.lines if line.get_lw() > 1}

    both, turned = colours("cyclic", "static"), colours("static", "two_phase", "float", "cyclic")
    assert both == {name: turned[name] for name in both} == RECIPES
    assert len({*turned.values()}) == 4
    assert not {COLOURS["low"], COLOURS["high"]} & {*turned.values()}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"folders": ()}, "no workdirs given"),
        ({"radius": 0.0}, r"--radius=0\.0 with --directions=5: expected more than 0"),
        ({"directions": 0}, "--directions=0"),
        ({}, "expected the folder of a run"),
    ],
)
def test_valleys_refused(tmp_path, arguments, says):
    folders = arguments.pop("folders", (str(tmp_path),))
    settings = {"radius": 0.5, "directions": 5, "picture": "p.png", **arguments}
    with pytest.raises((ValueError, OSError), match=says):
        valleys.main(*folders, **settings)


def finished_run(folder, mode, **settings):
    config = make_config("digits", {"dataset": "digits", "mode": mode, **settings})
    folder.mkdir()
    (folder / CONFIG).write_text(json.dumps({"experiment": config.to_json()}))
    rows = [{"mode": name, "validation": 80.0} for name in config.recipe.reported]
    (folder / RESULTS).write_text(json.dumps({"rows": rows}))
    return str(folder)


def test_only_runs_of_seeds_have_a_spread(tmp_path):
    """Of high, trained to the end, each once: the rest had figures all the same."""
    settings = {"radius": 0.5, "directions": 5, "picture": "p.png"}
    cyclic = finished_run(tmp_path / "cyclic", "cyclic")
    low = finished_run(tmp_path / "low", "low")
    with pytest.raises(ValueError, match=r"low is a run of --mode=low, which trains .*: exp"):
        valleys.main(cyclic, low, **settings)
    with pytest.raises(ValueError, match="are one folder: expected runs of different seeds"):
        valleys.main(cyclic, f"{cyclic}/../cyclic", **settings)
    other = finished_run(tmp_path / "other", "cyclic", seed=1, passes=8.0)
    with pytest.raises(ValueError, match="2 configs in 2 runs: expected all but the seed alike"):
        valleys.main(cyclic, other, **settings)
    static = finished_run(tmp_path / "static", "static")
    (tmp_path / "static" / RESULTS).unlink()
    with pytest.raises(ValueError, match=r"static has no results\.json: expected a finished run"):
        valleys.main(cyclic, static, **settings)


def test_sweeps_refused(tmp_path):
    with pytest.raises(ValueError, match="no workdirs given: expected the folders of finished"):
        bit_sweep.main(picture="p.png")
    with pytest.raises((ValueError, OSError), match="expected the folder of a run"):
        bit_sweep.main(str(tmp_path), picture="p.png")
