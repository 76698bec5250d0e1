"""The search: paths, edits, fitness, one trace for all candidates, logs that are replayed."""

import contextlib
import dataclasses
import json
import resource
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dual_precision import modes
from dual_precision.costs import mode_cost
from dual_precision.data.arrays import Images
from dual_precision.models import MLP, build
from dual_precision.precision import modes_from, parse
from dual_precision.search.edits import Edit, edited
from dual_precision.search.evolve import (
    Evaluated,
    Settings,
    fitness_of,
    front_accuracy,
    front_of,
)
from dual_precision.search.session import Session, read_events, replay
from dual_precision.search.space import Space, SpaceError, space_from, space_of
from dual_precision.search.supernet import Supernet, widths_of
from dual_precision.structure import structure_of
from dual_precision.tasks.classification import Classification
from dual_precision.tasks.language import NextByte
from dual_precision.tasks.task import Network
from dual_precision.training.methods import sampled
from dual_precision.training.metrics import _batch_program
from dual_precision.training.optimizers import Sgd
from dual_precision.training.phases import Phase, check_recipe
from dual_precision.training.state import initial_variables

CHOICES = ("w1a1", "w2a2", "w4a4")
SPACE = Space("low", ("a", "b", "c"), (CHOICES,) * 3, (100, 200, 300), 50)
GENERATOR = np.random.default_rng(0)
TASK = Classification((4, 4, 1))
DUAL = modes(low="w2a2", high="w8a8")


def network(own=DUAL):
    return MLP(num_classes=3, modes=own, hidden=(16, 8, 8, 8))


def score(space, candidate):
    """More bits are better, those of the second layer most."""
    return sum(k * float(text[1]) for k, text in zip((1, 5, 1), candidate, strict=True))


def begun(path, **settings):
    return Session(path, SPACE, Settings(**settings), {}, score)


# -- the space -------------------------------------------------------------------------------------


def test_costs_are_those_of_a_network_with_these_widths():
    structure = structure_of(network(), TASK.example)
    space = space_of(structure, "low", CHOICES)
    assert space.layers == ("dense2", "dense3", "dense4")
    for candidate in (("w2a2",) * 3, ("w1a1", "w4a4", "w2a2")):
        entry = {**DUAL.to_json(), "layers": space.widths(candidate)}
        own = structure_of(network(modes_from(entry)), TASK.example)
        assert mode_cost(own, "low").bit_operations == space.cost(candidate)
    assert space_from(json.loads(json.dumps(space.to_json()))) == space


@given(st.integers(0, 2**32 - 1), st.floats(0.05, 1), st.sets(st.integers(0, 17), max_size=8))
def test_what_is_drawn_is_a_path_within_the_bound(seed, share, cuts):
    steps = [(i, a, b) for i in range(2) for a in CHOICES for b in CHOICES]
    most = share * SPACE.cost(("w4a4",) * 3)
    try:
        space = dataclasses.replace(SPACE, cut=frozenset(steps[i] for i in cuts), most=most)
    except SpaceError:  # there is none
        return
    for candidate in (space.draw([{}, {}, {}], np.random.default_rng(seed)), *space.uniform()):
        assert space.contains(candidate)


def test_edits_and_their_errors():
    space = edited(SPACE, Edit("remove", "a", "w1a1"))
    assert space.alternatives[0] == ("w2a2", "w4a4")
    assert space.digest == SPACE.digest
    space = edited(space, Edit("add", "a", "w3a2"))
    space = edited(space, Edit("keep", "a", "w3a2"))
    cut = edited(space, Edit("cut", "a", "w3a2", next="w1a1"))
    assert ("w3a2", "w1a1", "w1a1") not in [cut.draw([{}] * 3, GENERATOR) for _ in range(30)]
    assert edited(cut, Edit("join", "a", "w3a2", next="w1a1")) == space
    for edit, message in (
        (Edit("remove", "a", "w3a2"), "last alternative of layer 'a': without it no path"),
        (Edit("remove", "b", "w7a7"), r"no 'w7a7', or no longer: expected one of \['w1a1'"),
        (Edit("remove", "z", "w1a1"), r"'z' is unknown: expected one of \['a', 'b', 'c'\]"),
        (Edit("add", "a", "w3a2"), "already"),
        (Edit("add", "a", "w9a2"), "expected w<bits>a<bits>"),
        (Edit("add", "a", "w2a32"), "expected bits of both"),
        (Edit("bound", most=10), "a bound of 10 BitOps leaves no path: the cheapest takes 1,150"),
        (Edit("paint", "a", "w1a1"), "'paint' is unknown"),
    ):
        with pytest.raises(ValueError, match=message):
            edited(space, edit)
    for text in CHOICES[:2]:
        space = edited(space, Edit("cut", "a", "w3a2", next=text))
    with pytest.raises(SpaceError, match="no path from the first layer to the last is left"):
        edited(space, Edit("cut", "a", "w3a2", next="w4a4"))


def test_a_search_begins_with_alternatives():
    """A space without any can be had by edits alone."""
    with pytest.raises(SpaceError, match=r"without alternatives, in 3 layers: expected a layer"):
        space_of(structure_of(network(), TASK.example), "low", ("w2a2",))
    with pytest.raises(SpaceError, match="without layers"):
        Space("low", (), (), (), 0)
    alone = structure_of(network(modes(low="w2a2")), TASK.example)
    with pytest.raises(SpaceError, match="without alternatives, in 0 layers"):
        space_of(alone, "low", CHOICES)


@pytest.mark.parametrize("stored", [4, 8])
def test_no_alternative_is_wider_than_the_store(stored, tmp_path):
    """A mode reads the first bits of what is stored: 8 of 4 gave logits that are no numbers."""
    own = modes(low="w2a2", high="w4a4", stored=stored)
    structure = structure_of(network(own), TASK.example)
    space = space_of(structure, "low", CHOICES)
    assert space.stored == (stored,) * 3
    assert space_from(json.loads(json.dumps(space.to_json()))) == space
    added = Edit("add", "dense3", "w8a2")
    if stored == 8:
        assert "w8a2" in edited(space, added).alternatives[1]
        return
    session = Session(tmp_path / "log", space, Settings(), {}, score)
    with pytest.raises(SpaceError, match=r"'dense3': 'w8a2' has 8-bit weights, and 4 bits are sto"):
        session.edit(added)
    with pytest.raises(SpaceError, match="expected at most 4 bits of weights"):
        space_of(structure, "low", (*CHOICES, "w5a2"))
    assert edited(space, Edit("add", "dense3", "w4a8")).digest == space.digest
    old = tmp_path / "old"  # its log does not say what is stored, and edits would not be checked
    Session(old, dataclasses.replace(space, stored=()), Settings(), {}, score)
    with pytest.raises(SpaceError, match="give another workdir"):
        Session(old, space, Settings(), {}, score)


def test_a_log_that_does_not_say_what_is_stored_is_of_8_bits(tmp_path):
    session = begun(tmp_path / "log")
    first = dict(read_events(session.path)[0])
    first["space"] = {k: v for k, v in first["space"].items() if k != "stored"}
    session.path.write_text(json.dumps(first) + "\n")
    wide = dataclasses.replace(SPACE, stored=(8, 8, 8))
    Session(session.path, wide, Settings(), {}, score).run(3)


# -- the search ------------------------------------------------------------------------------------


def test_fitness_and_front():
    found = [
        Evaluated(("w1a1",) * 3, 10.0, 650.0),
        Evaluated(("w2a2",) * 3, 8.0, 2450.0),
        Evaluated(("w4a4",) * 3, 20.0, 9650.0),
    ]
    assert [one.accuracy for one in front_of(found)] == [10.0, 20.0]
    fitness = fitness_of(SPACE, found[:2])  # distances 0 and 2, their median 1
    assert fitness["a", "w1a1"] == (pytest.approx((0.5 + 1) / 2), 1)
    assert fitness["a", "w2a2"] == (pytest.approx((0.5 + np.exp(-2)) / 2), 1)
    assert fitness["a", "w4a4"] == (0.5, 0)
    assert front_accuracy(found, 650, 9650) == pytest.approx(10)
    assert front_accuracy(found[2:], 650, 9650 * 9650 / 650) == pytest.approx(10)


@pytest.mark.parametrize("strategy", ["evolve", "random"])
def test_every_path_once_the_uniform_ones_first(tmp_path, strategy):
    session = begun(tmp_path / "log", strategy=strategy, population=4)
    session.run(100)
    candidates = [one.candidate for one in session.state.evaluated]
    assert candidates[:3] == [(text,) * 3 for text in CHOICES]
    assert len(candidates) == len(set(candidates)) == 27


def test_evolution_finds_what_counts(tmp_path):
    """Bits of the second layer: its front is better than that of chance after as many."""
    wide = tuple(f"w{w}a{a}" for w in range(1, 5) for a in range(1, 5))
    space = Space("low", ("a", "b", "c"), (wide,) * 3, (100, 200, 300), 50)
    reached = {}
    for strategy in ("evolve", "random"):
        sums = []
        for seed in range(5):
            settings = Settings(strategy, 10, seed)
            path = tmp_path / f"{strategy}{seed}"
            session = Session(path, space, settings, {}, score)
            session.run(80)
            sums.append(front_accuracy(session.state.evaluated, 650, 9650))
        reached[strategy] = np.mean(sums)
    assert reached["evolve"] > reached["random"]


# -- the network -----------------------------------------------------------------------------------


@pytest.mark.parametrize("calibrated", [True, False])
def test_one_trace_for_500_candidates(calibrated, monkeypatch):
    """Of the evaluation and of the calibration, whose statistics are those of the candidate."""
    model = network()
    variables = initial_variables(model, TASK.example, 0)
    images = GENERATOR.integers(0, 256, (20, 4, 4, 1)).astype(np.uint8)
    split = Images(images, (np.arange(20) % 3).astype(np.int32))
    batch = {"inputs": jnp.asarray(images), "labels": jnp.zeros(20, jnp.int32)}
    supernet = Supernet(model, variables, TASK, split, batch if calibrated else None, 10)
    choices = tuple(f"w{w}a{a}" for w in range(1, 9) for a in range(1, 9))
    space = space_of(supernet.structure, "low", choices)
    session_of_all = {space.draw([{}] * 3, GENERATOR) for _ in range(500)}
    found = {supernet.accuracy(space, candidate) for candidate in session_of_all}
    assert len(session_of_all) > 490
    assert len(found) > 3
    assert _batch_program(supernet.network, None)._cache_size() == 1
    assert not calibrated or supernet._statistics._cache_size() == 1
    if calibrated:
        asked = widths_of(space, ("w8a8", "w1a1", "w2a2"))
        own = supernet.calibrated(asked)["batch_stats"]["norm1"]["low"]["mean"]
        state = {"batch_stats": variables["batch_stats"], "carry": {}}
        _, moving = supernet.network(variables["params"], state, batch, precision="low", train=True)
        seen = moving["batch_stats"]["norm1"]["low"]["mean"]  # 0.1 of it, from zeros
        np.testing.assert_allclose(own, seen * 10, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("strategy", ["evolve", "random"])
@pytest.mark.parametrize("path", [("w2a2", "w2a2", "w2a2"), ("w4a4", "w1a1", "w2a2")])
def test_edits_may_end_in_one_network(tmp_path, strategy, path):
    """The last edit of the last layer with a choice was refused. The one path is evaluated once."""
    session = begun(tmp_path / "log", strategy=strategy)
    for layer, text in zip(SPACE.layers, path, strict=True):
        session.edit(Edit("keep", layer, text))
    assert session.step()
    assert not session.step()
    assert [one.candidate for one in session.state.evaluated] == [path]
    assert replay(read_events(session.path))[-1] == session.state
    session.undo()
    assert session.step()


# -- sessions --------------------------------------------------------------------------------------


def test_a_log_is_the_session(tmp_path):
    """Replayed it gives the same state; and a session that was stopped goes on with the same."""
    session = begun(tmp_path / "log", population=4)
    session.run(8)
    session.edit(Edit("remove", "b", "w1a1"), "one")
    session.run(12)
    session.edit(Edit("bound", most=7000.0), "two")
    session.undo("one")
    session.pause(True)
    assert not session.step()
    session.pause(False)
    assert replay(read_events(session.path))[-1] == session.state
    copy = tmp_path / "copy"
    copy.write_text(session.path.read_text() + '{"event": "eva')  # killed while it wrote
    again = begun(copy, population=4)
    begun(copy, population=4)
    copy.write_text(copy.read_text().removesuffix("\n"))  # killed before the end of the line
    assert begun(copy, population=4).version == again.version
    session.run(16)
    again.run(16)
    assert again.state.evaluated == session.state.evaluated
    assert copy.read_text() == session.path.read_text()
    assert again.version == session.version


def test_a_session_that_could_not_begin_can_begin(tmp_path):
    """A full disk left a log of no bytes, and a kill half a line: neither could be gone on with."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))  # bytes: a part of the first line
    try:
        with pytest.raises(OSError, match=r"large|space"):
            begun(tmp_path / "log")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not [*tmp_path.iterdir()]
    assert begun(tmp_path / "log").step()


def test_edits_take_effect_at_once_and_undo_takes_them_back(tmp_path):
    session = begun(tmp_path / "log", population=100)
    session.run(3)
    session.edit(Edit("keep", "b", "w4a4"))
    session.run(9)
    assert {one.candidate[1] for one in session.state.evaluated[3:]} == {"w4a4"}
    session.undo()
    assert session.state.space == SPACE
    with pytest.raises(SpaceError, match="nothing to undo"):
        session.undo()


def test_two_analysts_at_once(tmp_path):
    """Each edit happens once and whole; who comes second is told, and nothing is lost."""
    session = begun(tmp_path / "log")
    told = []

    def analyst(name):
        for layer in SPACE.layers:
            try:
                session.edit(Edit("remove", layer, "w1a1"), name)
            except SpaceError as error:
                told.append(str(error))

    threads = [threading.Thread(target=analyst, args=(name,)) for name in ("one", "two")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(told) == 3
    assert all("or no longer" in text for text in told)
    assert replay(read_events(session.path))[-1] == session.state


@pytest.mark.parametrize("text", ["w02a2", "w2a02", "w5a05"])
def test_widths_are_written_one_way(tmp_path, text):
    """w02a2 was another alternative beside w2a2, evaluated anew."""
    session = begun(tmp_path / "log")
    with pytest.raises(SpaceError, match=rf"'{text}': expected '{parse(text)}', as these"):
        session.edit(Edit("add", "a", text))
    assert session.state.space == SPACE


@pytest.mark.parametrize("most", [float("nan"), float("inf"), -float("inf")])
def test_a_bound_is_a_number(most):
    with pytest.raises(SpaceError, match=rf"a bound of {most} BitOps: expected a number, or none"):
        dataclasses.replace(SPACE, most=most)


def test_logs_of_others(tmp_path):
    path = tmp_path / "log"
    begun(path).run(3)
    other = Space("low", ("x", "y"), (CHOICES,) * 2, (1, 2), 0)
    with pytest.raises(SpaceError, match=r"another space, of \['a', 'b', 'c'\]: expected one of"):
        Session(path, other, Settings(), {}, score)
    with pytest.raises(SpaceError, match=r"begun with .*'seed': 0.*: give the same"):
        begun(path, seed=1)
    with pytest.raises(SpaceError, match=r"images \(there None, here 100\); give the same"):
        Session(path, SPACE, Settings(), {"images": 100}, score)
    lines = path.read_text().splitlines()
    for bad, message in (
        ("", "is empty"),
        ("x\n", ":1 is no event"),
        ("{}\n", "begins with {}"),
        ("\n".join([lines[0], '{"event": "dance"}', ""]), "line 2 of the log: event 'dance'"),
        (
            "\n".join([lines[0], '{"event": "edit", "edit": {"kind": "bound", "most": "x"}}', ""]),
            "line 2 of the log: edit .* a finite number",
        ),
        (
            "\n".join(
                [
                    lines[0],
                    '{"event": "edit", "edit": {"kind": "add", "layer": "a", "alternative": "x"}}',
                ]
            ),
            "line 2 of the log",
        ),
        ("\n".join([lines[0], "[]", lines[1], ""]), ":2 is no event"),
        (
            "\n".join([lines[0], '{"event": "evaluated", "candidate": ["w1a1"], "accuracy": 1}']),
            "none of this space",
        ),
        (lines[0].replace('"macs": [100', '"macs": [101') + "\n", "its digest is of"),
    ):
        path.write_text(bad)
        with pytest.raises(SpaceError, match=message):
            replay(read_events(path))


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"most": 3000.0}, r"other choices: bound \(there None, here 3000.0\); give the same"),
        (
            {"alternatives": (CHOICES, CHOICES[:2], CHOICES)},
            r"alternatives of b \(there 'w1a1 w2a2 w4a4', here 'w1a1 w2a2'\); give the same",
        ),
        ({"cut": frozenset({(0, "w1a1", "w2a2")})}, r"cut \(there \[\], here .*; give the same"),
    ],
)
def test_a_session_goes_on_with_the_choices_that_it_began_with(tmp_path, other, message):
    """Another bound was ignored once, in silence. What has been edited since is no matter."""
    path, others = tmp_path / "log", dataclasses.replace(SPACE, **other)
    session = begun(path)
    session.run(3)
    with pytest.raises(SpaceError, match=message):
        Session(path, others, Settings(), {}, score)
    session.edit(Edit("bound", most=7000.0))
    session.edit(Edit("remove", "b", "w4a4"))
    assert begun(path).state == session.state
    again = Session(tmp_path / "other", others, Settings(), {}, score)
    assert Session(again.path, others, Settings(), {}, score).state == again.state


def test_training_on_makes_what_was_evaluated_old(tmp_path):
    session = Session(tmp_path / "log", SPACE, Settings(), {}, score, lambda space: [2.0, 1.0])
    session.run(5)
    session.train()
    state = session.state
    assert (len(state.evaluated), len(state.before), state.losses) == (0, 5, (2.0, 1.0))
    with pytest.raises(SpaceError, match="no training"):
        begun(tmp_path / "other").train()


def test_paths_of_training_are_drawn_from_the_choices():
    """All of them, each layer by itself."""
    loss = sampled.SampledLoss(
        "low", tuple(map(parse, CHOICES)), {"dense3": (parse("w3a2"), parse("w1a4"))}
    )
    path = jax.jit(lambda key: loss.path(Network(network(), TASK), key))
    drawn = [path(jax.random.key(seed)) for seed in range(40)]
    pairs = {
        name: {(int(d.weights[name]), int(d.activations[name])) for d in drawn}
        for name in ("dense2", "dense3", "dense4")
    }
    assert pairs == {
        "dense2": {(1, 1), (2, 2), (4, 4)},
        "dense3": {(3, 2), (1, 4)},
        "dense4": {(1, 1), (2, 2), (4, 4)},
    }
    assert len({tuple(int(d.weights[n]) for n in pairs) for d in drawn}) > 8


@pytest.mark.parametrize("choices", [("w2a2", "w4a4g8"), ("w2a2g8",)])
def test_choices_have_no_width_of_gradients(choices):
    """It would be ignored in training, and the search that follows refuses such a text."""
    loss = sampled.SampledLoss("low", tuple(map(parse, choices)))
    phase = Phase("supernet", 1, ("low",), loss, Sgd())
    with pytest.raises(ValueError, match="gradients have the width of the mode"):
        check_recipe((phase,), DUAL)


def test_choices_of_signed_layers_have_two_bits_or_more():
    """A traced width of 1 counts as 2 there: another width than the one that is drawn."""
    model = build("transformer", features=8, depth=1, modes=modes(low="w2a2", high="w8a8"))
    signed = Network(model, NextByte(4, 8))
    for choices, says in ((CHOICES, "signed inputs, and choices"), (CHOICES[1:], None)):
        loss = sampled.SampledLoss("low", tuple(map(parse, choices)))
        with pytest.raises(ValueError, match=says) if says else contextlib.nullcontext():
            loss.path(signed, jax.random.key(0))
