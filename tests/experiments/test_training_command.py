"""The main command in this process: what it starts from, and what it leaves unread."""

import dataclasses
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from dual_precision import data, load
from dual_precision.loading import save_floats
from dual_precision.models import build_from
from dual_precision.precision import Precision
from dual_precision.structure import Structure, structure_of
from dual_precision.tasks.classification import Classification
from dual_precision.training.checkpoint import Checkpoints
from dual_precision.training.fit import fit
from dual_precision.training.options import FitOptions
from experiments import cifar, cli
from experiments.recipes import course
from experiments.recipes import flags as training_flags
from experiments.recipes.config import make_config
from experiments.workdir import read_rows

EXAMPLE = Classification((8, 8, 1)).example


@pytest.fixture
def data_dir(child_environment) -> str:
    return f"--data_dir={child_environment['TFDS_DATA_DIR']}"


class Stopped(Exception):
    """Ends a command where a test has seen enough."""


@pytest.fixture
def before_training(monkeypatch, parse, data_dir):
    """Runs the command up to `fit`: (what `fit` gets, its keywords)."""
    got: dict[str, Any] = {}

    def fit(model, task, *_, **keywords):
        got.update(keywords, model=model, task=task)
        raise Stopped

    def run(*arguments: str) -> dict[str, Any]:
        parse("--dataset=digits", data_dir, *arguments)
        monkeypatch.setattr(course, "fit", fit)
        with pytest.raises(Stopped):
            cli.start_command(cifar.main, [])
        return got

    return run


# -- what it is given -----------------------------------------------------------------------------


def test_unknown_dataset(parse, tmp_path):
    parse("--dataset=emnist", f"--workdir={tmp_path / 'run'}")
    with pytest.raises(ValueError, match="'emnist', expected one of cifar10"):
        cli.start_command(cifar.main, [])
    assert not (tmp_path / "run").exists()


def test_batch_larger_than_the_split(parse, data_dir, tmp_path):
    parse("--dataset=digits", "--set=batch_size=2000", f"--workdir={tmp_path}", data_dir)
    with pytest.raises(ValueError, match="batch of 2000 images from a split of 1222: expected at"):
        cli.start_command(cifar.main, [])
    assert not (tmp_path / "config.json").exists(), "a smaller batch may have this folder"


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("skippable=stage2_block1", r"blocks \['stage2_block1'\] to skip: expected such as have"),
        ("own_choices=dense2:w4a32,w8a32", "choices .* of layer 'dense2': expected all with bits"),
        ("own_choices=conv:w2a2,w3a3", r"choices of layers \['conv'\]: expected some of"),
        ("choices=w2a2", "a space of mode 'low' without alternatives, in 2 layers"),
    ],
)
def test_a_supernet_that_no_search_takes(parse, data_dir, tmp_path, setting, says):
    """It was trained to the end; the search refuses by the same function."""
    workdir = tmp_path / "run"
    own = ("--mode=supernet", "--dataset=digits", "--set=passes=2", f"--set={setting}")
    parse(*own, f"--workdir={workdir}", data_dir)
    with pytest.raises(ValueError, match=says):
        cli.start_command(cifar.main, [])
    assert not (workdir / "config.json").exists(), "the folder is free for other choices"


# -- widths of layers ------------------------------------------------------------------------------


def written(path: Path, widths: object) -> str:
    path.write_text(widths if isinstance(widths, str) else json.dumps(widths))
    return f"--widths={path}"


def test_widths_of_layers_reach_the_network_and_its_description(before_training, tmp_path):
    workdir = tmp_path / "run"
    widths = {"dense2": {"low": "w1a4"}, "dense[3-9]": {"high": "w4a8"}}
    asked = written(tmp_path / "widths.json", widths), f"--workdir={workdir}"
    got = before_training(*asked)
    layers = structure_of(got["model"], EXAMPLE).layers
    assert layers["dense2",].table["low"] == Precision(1, 4)
    assert layers["dense2",].table["high"] == Precision(8, 8)
    assert layers["dense3",].table["high"] == Precision(4, 8)
    told = json.loads((workdir / "config.json").read_text())
    assert told["experiment"]["widths"] == widths
    assert told["network"]["layers"] == widths
    assert build_from(told["network"]) == got["model"]
    before_training(*asked)  # the same again is the same run


def test_widths_of_an_unknown_layer_list_the_known_ones(parse, data_dir, tmp_path):
    workdir = tmp_path / "run"
    widths = written(tmp_path / "widths.json", {"conv1": {"low": "w4a4"}})
    parse("--dataset=digits", widths, f"--workdir={workdir}", data_dir)
    with pytest.raises(
        ValueError, match=r"unknown layers \['conv1'\]: expected some of \['classifier', 'dense1',"
    ):
        cli.start_command(cifar.main, [])
    assert not (workdir / "config.json").exists(), "the folder is free for the right widths"


# -- a start from a trained network ----------------------------------------------------------------


def random_variables(structure: Structure, seed: int) -> dict[str, Any]:
    """Variables in which every number is another one."""
    generator = np.random.default_rng(seed)
    return unflatten_dict(
        {
            path: generator.uniform(0.01, 0.02, leaf.shape).astype(np.float32)
            for path, leaf in structure.shapes.items()
        }
    )


@pytest.fixture
def floats(tmp_path) -> Path:
    """The workdir of a run of --mode=float on digits, with one checkpoint."""
    config = make_config("digits", {"dataset": "digits", "mode": "float"})
    network = {"name": "mlp", "num_classes": 10, **config.modes.to_json()}
    variables = random_variables(structure_of(build_from(network), EXAMPLE), seed=1)
    state = {"step": np.int32(7), **variables, "carry": {}, "opt_state": ()}
    about = {"network": network, "trained": ["float"], "experiment": config.to_json()}
    with Checkpoints(tmp_path / "floats", about) as checkpoints:
        checkpoints.save(7, state, {"phase": 0}, score=0.5)
    return tmp_path / "floats"


def test_init_from_a_float_run(before_training, floats, tmp_path, capsys):
    """Both modes then start from its weights and from its normalisation."""
    got = before_training("--mode=joint", f"--init={floats}", f"--workdir={tmp_path / 'run'}")
    assert f"starts from {floats}; 0 values do not fit\n" in capsys.readouterr().out
    start, there = flatten_dict(got["variables"]), flatten_dict(load(floats)[1])
    for mode in ("low", "high"):
        for place in (("params", "norm1", mode, "scale"), ("batch_stats", "norm2", mode, "var")):
            source = tuple("float" if part == mode else part for part in place)
            np.testing.assert_array_equal(start[place], there[source])
    kernel = "params", "dense2", "kernel"
    np.testing.assert_array_equal(start[kernel], there[kernel])
    told = json.loads((tmp_path / "run" / "config.json").read_text())
    assert told["experiment"]["init"] == str(floats)


def test_init_from_a_file_lists_what_does_not_fit(before_training, floats, tmp_path, capsys):
    model, variables = load(floats)
    structure = structure_of(model, EXAMPLE)
    flat = flatten_dict(variables)
    del flat["params", "classifier", "kernel"]
    save_floats(tmp_path / "floats.safetensors", unflatten_dict(flat), structure)
    before_training(f"--init={tmp_path / 'floats.safetensors'}", f"--workdir={tmp_path / 'run'}")
    assert (
        "; 1 values do not fit:\n  params/classifier/kernel: missing there, starts fresh\n"
        in capsys.readouterr().out
    )


def test_a_run_that_has_begun_does_not_read_its_source_again(before_training, floats, tmp_path):
    arguments = "--mode=joint", f"--init={floats}", f"--workdir={tmp_path / 'run'}"
    assert before_training(*arguments)["variables"] is not None
    (tmp_path / "run" / "checkpoints" / "19").mkdir(parents=True)
    floats.rename(tmp_path / "gone")
    assert before_training(*arguments)["variables"] is None


def test_a_wrong_init_leaves_the_workdir_free(parse, data_dir, tmp_path):
    workdir, gone = tmp_path / "run", tmp_path / "gone.safetensors"
    parse("--dataset=digits", f"--init={gone}", f"--workdir={workdir}", data_dir)
    with pytest.raises(OSError, match=r"gone\.safetensors"):
        cli.start_command(cifar.main, [])
    assert not (workdir / "config.json").exists()


def test_tensorboard_that_is_not_installed_leaves_the_workdir_free(
    parse, data_dir, tmp_path, monkeypatch
):
    monkeypatch.setitem(sys.modules, "clu.metric_writers", None)
    monkeypatch.delattr("clu.metric_writers", raising=False)
    parse("--dataset=digits", "--tensorboard", f"--workdir={tmp_path / 'run'}", data_dir)
    with pytest.raises(ValueError, match="--tensorboard needs what is not installed"):
        cli.start_command(cifar.main, [])
    assert not (tmp_path / "run" / "config.json").exists()


# -- what a run reads and leaves -------------------------------------------------------------------


def test_training_does_not_see_the_test_set(
    parse, data_dir, child_environment, monkeypatch, tmp_path
):
    """Of the whole command, only the report reads it, once, at the end."""
    whole = data.load("digits", data_dir=child_environment["TFDS_DATA_DIR"])
    names = [f.name for f in dataclasses.fields(whole) if f.name != "test"]
    without = {name: getattr(whole, name) for name in [*names, "image_shape", "num_classes"]}
    trained_on = []

    def fit(model, task, phases, train, validation, *_, **__):
        trained_on.extend([train, validation])
        return SimpleNamespace(variables=None)

    def results(*_: Any) -> None:
        raise Stopped

    monkeypatch.setattr(cifar, "load_data", lambda *_: SimpleNamespace(**without))
    monkeypatch.setattr(course, "fit", fit)
    monkeypatch.setattr(course, "results", results)
    parse("--dataset=digits", "--mode=float", f"--workdir={tmp_path}", data_dir)
    with pytest.raises(Stopped):
        cli.start_command(cifar.main, [])
    assert [id(split) for split in trained_on] == [id(whole.train), id(whole.validation)]


@pytest.mark.parametrize(("validation", "kept"), [(90.0, True), (80.0, False)])
def test_a_finished_run_keeps_what_it_read_of_the_test_set(tmp_path, capsys, validation, kept):
    """Asked again with --test=false. Other figures are of another training: they take its place."""
    whole = [{"mode": "low", "bits": "w2a2", "validation": 90.0, "test": 89.0}]
    (tmp_path / "metrics.jsonl").touch()
    problem = SimpleNamespace(plot=lambda *_: None, table=lambda rows: f"{rows}")
    course.leave_results(whole, problem, tmp_path)
    again = [{"mode": "low", "bits": "w2a2", "validation": validation}]
    course.leave_results(again, problem, tmp_path)
    assert read_rows(tmp_path) == (whole if kept else again)


def test_statistics_are_estimated_again_after_the_cut(parse, tmp_path):
    """--mode=truncate --set reestimate=2: low has everything of high but its statistics."""
    parse("--dataset=digits", "--mode=truncate", "--set=passes=2", "--set=reestimate=2")
    config, _ = training_flags.read_config()
    network = {"name": "mlp", "num_classes": 4, "hidden": [8], **config.modes.to_json()}
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (32, 8, 8, 1)).astype(np.uint8)
    split = data.Images(images, generator.integers(0, 4, 32).astype(np.int32))
    state = fit(
        build_from(network),
        Classification((8, 8, 1)),
        config.recipe.phases(),
        split,
        split,
        FitOptions(batch_size=16),
        tmp_path,
    )
    norms, statistics = state.params["norm1"], state.batch_stats["norm1"]
    for name in ("scale", "bias"):
        np.testing.assert_array_equal(norms["low"][name], norms["high"][name])
    for name in ("mean", "var"):
        assert np.isfinite(statistics["low"][name]).all()
        assert not np.array_equal(statistics["low"][name], statistics["high"][name])
    (record,) = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert {"validation_low_accuracy", "validation_high_accuracy"} <= set(record)
