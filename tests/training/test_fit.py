"""fit: resumed equals uninterrupted, bit for bit; what is logged; what stops it."""

import dataclasses
import json
import shutil
import signal
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dual_precision import data, loading, modes
from dual_precision.layers import Dense
from dual_precision.models import MLP
from dual_precision.tasks.classification import Classification
from dual_precision.training import fit as fit_module
from dual_precision.training.checkpoint import Checkpoints
from dual_precision.training.fit import NonFiniteLoss, fit
from dual_precision.training.given import check_same_run
from dual_precision.training.initialize import CopyNorms, FitInputSteps, FitWeightSteps
from dual_precision.training.manifest import manifest
from dual_precision.training.methods.modes import Together
from dual_precision.training.metrics import evaluate
from dual_precision.training.optimizers import RATE, STEP_RATE, Sgd
from dual_precision.training.options import FitOptions
from dual_precision.training.phases import Phase
from dual_precision.training.reading import CheckpointError
from dual_precision.training.schedules import warmup_cosine
from dual_precision.training.signals import Interrupted, Signals
from dual_precision.training.state import TrainState, initial_variables

SIZE, BATCH = 100, 16  # 6 updates in an epoch; 4 images of every epoch's permutation are left out
STEPS = SIZE // BATCH
MODEL = MLP(num_classes=4, modes=modes(low="w2a2", high="w8a8"), hidden=(16,))
NETWORK = {
    "name": "mlp",
    "num_classes": 4,
    "modes": {"low": "w2a2", "high": "w8a8"},
    "hidden": [16],
}
OPTIONS = FitOptions(batch_size=BATCH, steps_per_dispatch=2)
TASK = Classification((8, 8, 1), partial(data.augment, padding=0, flip=True))


def phase(name, *precisions, epochs=1, peak=0.1, warmup=0.1, loss=None, sgd=None, **more):
    """A phase at the usual rates."""
    schedules = {
        field: partial(warmup_cosine, peak=top, warmup=warmup)
        for field, top in ((RATE, peak), (STEP_RATE, 1e-2))
    }
    loss, sgd = loss or Together(precisions), sgd or Sgd()
    return Phase(name, epochs, precisions, loss, sgd, schedules, **more)


def shift(state, moment):
    """An event that moves parameters: a leaf says how many epochs were over when it happened."""
    params = jax.tree.map(jnp.copy, state.params)
    params["classifier"]["bias"] = params["classifier"]["bias"].at[0].add(moment.epoch)
    return dataclasses.replace(state, params=params)


def forget(state, moment):
    """An event that drops what the optimizer knows."""
    del moment
    return dataclasses.replace(state, opt_state=None)


# Every kind of phase: steps fitted at its start, events in it, a teacher, a protected mode.
PHASES = (
    phase(
        "high",
        "high",
        epochs=2,
        at_start=(FitWeightSteps("low"), FitInputSteps("high")),
        events=((1, shift), (1, forget)),
    ),
    phase(
        "both",
        "high",
        "low",
        loss=Together(("high", "low"), teacher="high", distillation=0.5),
        at_start=(CopyNorms("low", "high"), FitInputSteps("low")),
    ),
    phase("polish", "high", sgd=Sgd(protect="low")),
)
EPOCHS = 4
FLOAT = phase("float", "float")
# Evaluated after two epochs, and at the end of a phase; a phase's updates in one program.
LONGER = (phase("float", "float", epochs=3), phase("more", "float"))
WHOLE = dataclasses.replace(OPTIONS, epochs_per_evaluation=2, steps_per_dispatch=6)


def split(size: int, seed: int) -> data.Images:
    """Images whose class shows, so that something is learned."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 4, size).astype(np.int32)
    images = generator.integers(0, 128, (size, 8, 8, 1)).astype(np.uint8)
    for image, label in zip(images, labels, strict=True):
        image[2 * label : 2 * label + 2] += 100
    return data.Images(images, labels)


TRAIN, VALIDATION = split(SIZE, 0), split(40, 1)


def run(workdir: Path, phases=PHASES, options=OPTIONS, model=MODEL, **more):
    settings = {"train": TRAIN, "validation": VALIDATION, "config": {"network": NETWORK}, **more}
    return fit(model, TASK, phases, options=options, workdir=workdir, **settings)


def all_of(state) -> dict[str, str]:
    """Digests of everything that a state holds, opt_state included."""
    return manifest(dataclasses.asdict(state))


def exchange(one: Path, other: Path) -> None:
    """Each gets the name of the other."""
    spare = one.rename(one.with_name("spare"))
    other.rename(one)
    spare.rename(other)


def log_of(workdir: Path) -> list[dict]:
    records = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    for record in records:
        assert record.pop("examples_per_second") > 0
    return records


class Chunks:
    """Stands in for fit's compile_steps: notes the data order, and may act after a chunk."""

    def __init__(self, monkeypatch, after=lambda number, state: state):
        self.orders: list[np.ndarray] = []
        self.after = after
        self.compile = fit_module.compile_steps
        monkeypatch.setattr(fit_module, "compile_steps", self)

    def __call__(self, *arguments):
        run_chunk = self.compile(*arguments)

        def noting(state, arrays, order):
            state, metrics = run_chunk(state, arrays, order)
            self.orders.append(np.asarray(order))
            return self.after(len(self.orders), state), metrics

        return noting


def interrupt(_number, state):
    signal.raise_signal(signal.SIGTERM)
    return state


@pytest.fixture(scope="module", autouse=True)
def _traced_once(compiled_quickly):
    """The large programs of this file are traced once for all of its runs."""
    del compiled_quickly
    compile_steps, kept = fit_module.compile_steps, {}

    def once(network, stage, key, mesh):
        name = id(stage.phase), stage.start, str(jax.random.key_data(key))
        if name not in kept:
            kept[name] = compile_steps(network, stage, key, mesh), stage
        return kept[name][0]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fit_module, "compile_steps", once)
        yield


@dataclasses.dataclass
class Uninterrupted:
    workdir: Path
    state: dict[str, str]
    log: list[dict]
    orders: list[np.ndarray]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> Uninterrupted:
    workdir = tmp_path_factory.mktemp("uninterrupted")
    with pytest.MonkeyPatch.context() as patch:
        chunks = Chunks(patch)
        state = run(workdir)
    return Uninterrupted(workdir, all_of(state), log_of(workdir), chunks.orders)


@pytest.fixture
def finished(uninterrupted, tmp_path) -> Path:
    """A copy of the uninterrupted run's workdir."""
    return Path(shutil.copytree(uninterrupted.workdir, tmp_path / "finished"))


# -- resume ----------------------------------------------------------------------------------------


def test_stopped_at_every_chunk_boundary_ends_with_the_same_bits(
    tmp_path, monkeypatch, uninterrupted
):
    """SIGTERM in every chunk in turn, those that end an epoch or a phase included."""
    chunks = Chunks(monkeypatch, after=interrupt)
    total = EPOCHS * STEPS // 2
    for number in range(1, total):
        with pytest.raises(Interrupted, match=f"SIGTERM: saved at step {2 * number} of 24") as stop:
            run(tmp_path)
        assert stop.value.signum == signal.SIGTERM
        assert "start the same command again" in str(stop.value)
        assert Checkpoints(tmp_path).steps()[-1] == 2 * number
    state = run(tmp_path)
    assert len(chunks.orders) == total, "no update was done twice"
    assert all_of(state) == uninterrupted.state
    assert log_of(tmp_path) == uninterrupted.log
    np.testing.assert_array_equal(chunks.orders, uninterrupted.orders)
    assert all_of(run(tmp_path)) == uninterrupted.state, "a finished run has nothing to do"
    assert len(chunks.orders) == total


@pytest.mark.parametrize("epoch", [1, 3])
def test_record_without_its_checkpoint_is_written_again(tmp_path, uninterrupted, epoch):
    """Stopped between the two, as a kill may: the log ends where the restored state stands."""

    def stop(record):
        if record["epoch"] == epoch:
            raise RuntimeError("stopped here")

    with pytest.raises(RuntimeError, match="stopped here"):
        run(tmp_path, listeners=[stop])
    assert len(log_of(tmp_path)) == epoch
    assert Checkpoints(tmp_path).steps() == [STEPS * e for e in range(1, epoch)]
    with (tmp_path / "metrics.jsonl").open("a") as log:
        log.write('{"step": 99, "epo')  # and half a line
    assert all_of(run(tmp_path)) == uninterrupted.state
    assert log_of(tmp_path) == uninterrupted.log


def test_damaged_checkpoint_costs_its_epoch_and_nothing_else(finished, uninterrupted, caplog):
    about = finished / "checkpoints" / str(EPOCHS * STEPS) / "about" / "metadata"
    about.write_text(about.read_text()[:-5])
    assert all_of(run(finished)) == uninterrupted.state
    assert log_of(finished) == uninterrupted.log
    assert any(message.startswith("checkpoint skipped: step 24") for message in caplog.messages)
    assert [path.name for path in (finished / "checkpoints_damaged").iterdir()] == ["24_0"]


def test_exchanged_checkpoints_are_passed_over(finished, uninterrupted, caplog):
    folder = finished / "checkpoints"
    exchange(folder / "18", folder / "24")
    assert all_of(run(finished)) == uninterrupted.state
    assert log_of(finished) == uninterrupted.log
    for step, other in ((24, 18), (18, 24)):
        line = f"checkpoint skipped: step {step}: its folder holds the checkpoint of step {other}"
        assert any(message.startswith(line) for message in caplog.messages)


def test_all_checkpoints_damaged(finished):
    for path in (finished / "checkpoints").glob("*/about/metadata"):
        path.write_text("{")
    with pytest.raises(CheckpointError, match="Start again in another workdir"):
        run(finished)


def begun(number, **changes):
    """PHASES with another one in one place."""
    changed = dataclasses.replace(PHASES[number], **changes)
    return (*PHASES[:number], changed, *PHASES[number + 1 :])


RATES = {name: partial(warmup_cosine, peak=0.2, warmup=0.1) for name in (RATE, STEP_RATE)}
WIDER = MODEL.clone(modes=modes({"dense*": {"low": "w1a2"}}, low="w2a2", high="w8a8"))


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"options": dataclasses.replace(OPTIONS, seed=1)}, r"seed \(there 0, now 1\);"),
        ({"options": FitOptions(batch_size=8)}, r"batch_size \(there 16, now 8\), steps_per_epoch"),
        ({"train": split(64, 0)}, r"steps_per_epoch \(there 6, now 4\)"),
        ({"phases": PHASES[:2]}, r"phases \(there 3 or more, now 2\)"),
        ({"phases": begun(0, epochs=3)}, r"phases.0.epochs \(there 2, now 3\)"),
        ({"phases": begun(2, schedules=RATES)}, r"learning_rate.peak \(there 0.1, now 0.2\)"),
        (
            {"phases": begun(0, schedules={**PHASES[0].schedules, "cycle": RATES[RATE]})},
            r"phases.0.schedules.cycle \(there nothing, now \{'of': 'warmup_cosine',",
        ),
        (
            {"model": WIDER, "config": None},
            r"model.modes.layers.dense\* \(there nothing, now \{'low': ",
        ),
        ({"phases": begun(1, loss=Together(("high",)))}, "phases.1.loss.precisions"),
        ({"phases": begun(2, optimizer=Sgd())}, r"optimizer.protect \(there 'low', now None\)"),
    ],
)
def test_a_workdir_of_another_run_is_refused(uninterrupted, given, says):
    with pytest.raises(ValueError, match=rf"of another run: .*{says}.* choose another workdir"):
        run(uninterrupted.workdir, **given)


@pytest.mark.parametrize("name", ["train", "validation"])
def test_a_workdir_of_other_data_is_refused(uninterrupted, name):
    """Of as many images: nothing but what they are tells them apart."""
    own = {"train": TRAIN, "validation": VALIDATION}[name]
    with pytest.raises(ValueError, match=rf"of another run: data\.{name} \(there '\w+', now '\w+"):
        run(uninterrupted.workdir, **{name: split(len(own.images), seed=7)})


def test_a_checkpoint_of_before_data_were_described_is_of_any():
    now = {"seed": 0, "data": {"train": "a", "validation": "b"}, "phases": ["first"]}
    there = {"seed": 0, "phases": ["first"]}
    check_same_run({"progress": {"phase": 0}, "run": there}, now, Path("workdir"))


def test_an_entry_that_only_the_checkpoint_has_makes_another_run():
    there = {"seed": 0, "model": {"layers": {"dense2": "w1a2"}}, "phases": ["first", "second"]}
    about = {"progress": {"phase": 0}, "run": there}
    check_same_run(about, {**there, "phases": ["first", "other"]}, Path("workdir"))
    with pytest.raises(ValueError, match=r"model.layers.dense2 \(there 'w1a2', now nothing\);"):
        check_same_run(about, {**there, "model": {"layers": {}}}, Path("workdir"))


def halved(width, **more):
    """A layer of half the features; the classifier keeps its own."""
    return Dense(width if width == MODEL.num_classes else width // 2, **more)


def test_a_workdir_of_another_network_is_refused(uninterrupted, monkeypatch):
    """By what is described; by its shapes where the code behind a name is another one by now."""
    workdir = uninterrupted.workdir
    with pytest.raises(ValueError, match=r"model.hidden.0 \(there 16, now 8\)"):
        run(workdir, model=MODEL.clone(hidden=(8,)), config=None)
    monkeypatch.setattr(halved, "__name__", "Dense")
    with pytest.raises(ValueError, match=r"norm1/float/mean \(there \(16,\), now \(8,\)\)"):
        run(workdir, model=MODEL.clone(dense=halved), config=None)


def test_a_checkpoint_that_does_not_describe_its_run_is_refused(uninterrupted, tmp_path):
    """As one that `Checkpoints` has saved for somebody else, with no run to go on with."""
    found = Checkpoints(uninterrupted.workdir)
    with Checkpoints(tmp_path, {"network": NETWORK}) as checkpoints:
        checkpoints.save(24, found.restore(24), {"phase": 2}, score=0.0)
    with pytest.raises(ValueError, match=r"of another run: .*seed \(there nothing, now 0\)"):
        run(tmp_path)


def test_phases_to_come_and_evaluations_may_be_others(tmp_path, uninterrupted):
    run(tmp_path, PHASES[:1], options=WHOLE)
    longer = dataclasses.replace(PHASES[1], epochs=5)
    assert int(run(tmp_path, (PHASES[0], longer), OPTIONS).step) == 7 * STEPS


# -- data order and dispatch -----------------------------------------------------------------------


def test_every_epoch_visits_distinct_images_in_its_own_order(uninterrupted):
    epochs = np.concatenate(uninterrupted.orders).reshape(EPOCHS, STEPS * BATCH)
    for epoch in epochs:
        assert len(np.unique(epoch)) == STEPS * BATCH
        assert epoch.min() >= 0
        assert epoch.max() < SIZE
    assert len({tuple(epoch) for epoch in epochs}) == EPOCHS
    assert len(np.unique(epochs)) == SIZE, "other images are left out each time"


def test_seed_decides(tmp_path, monkeypatch, uninterrupted):
    """Of the weights, the order and the augmentation; the same one gave the same bits above."""
    chunks = Chunks(monkeypatch)
    run(tmp_path, phases=PHASES[:1], options=dataclasses.replace(OPTIONS, seed=1))
    assert log_of(tmp_path)[0]["loss"] != uninterrupted.log[0]["loss"]
    assert not np.array_equal(chunks.orders, uninterrupted.orders[: len(chunks.orders)])


def test_steps_per_dispatch_changes_speed_alone(tmp_path):
    one, several = (
        run(
            tmp_path / str(steps),
            phases=LONGER,
            options=dataclasses.replace(WHOLE, steps_per_dispatch=steps),
        )
        for steps in (1, 6)
    )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
        one.variables,
        several.variables,
    )
    logs = log_of(tmp_path / "1"), log_of(tmp_path / "6")
    for records in logs:
        assert [record["epoch"] for record in records] == [2, 3, 4]
        assert [record["step"] for record in records] == [12, 18, 24]


def test_a_run_stopped_within_a_chunk_goes_on_with_longer_ones(tmp_path, monkeypatch):
    """As one begun on a CPU does on an accelerator: to the end of the chunk, then whole ones."""
    with monkeypatch.context() as patch:
        Chunks(patch, lambda number, state: interrupt(0, state) if number == 2 else state)
        with pytest.raises(Interrupted, match="saved at step 2 of 24"):
            run(tmp_path, LONGER, dataclasses.replace(WHOLE, steps_per_dispatch=1))
    assert Checkpoints(tmp_path).about(2)["progress"]["validated"] == 0
    chunks = Chunks(monkeypatch)
    assert int(run(tmp_path, LONGER, WHOLE).step) == 24
    assert [len(order) for order in chunks.orders] == [4, 6, 6, 6]
    assert [record["step"] for record in log_of(tmp_path)] == [12, 18, 24]


# -- what phases set, what the log says ------------------------------------------------------------


def test_log_has_a_record_for_each_evaluation(uninterrupted):
    assert [(r["step"], r["epoch"], r["phase"]) for r in uninterrupted.log] == [
        (6, 1, "high"),
        (12, 2, "high"),
        (18, 3, "both"),
        (24, 4, "polish"),
    ]
    last = uninterrupted.log[-1]
    assert {"loss", "high_loss", "high_accuracy", "validation_high_accuracy"} <= last.keys()
    assert {"learning_rate", "step_learning_rate"} <= last.keys()
    assert all(np.isfinite(v) for v in last.values() if isinstance(v, float))


def test_polish_leaves_low_as_it_was(uninterrupted):
    *_, both, polish = uninterrupted.log
    for metric in ("accuracy", "loss"):
        assert polish[f"validation_low_{metric}"] == both[f"validation_low_{metric}"]
    assert polish["validation_high_loss"] != both["validation_high_loss"]


def test_events_happen_when_they_should_whatever_stops_the_run(tmp_path, monkeypatch):
    """At the start and the end of a phase, and after every so many epochs; each of them once."""
    seen = []

    def note(what):
        def event(state, moment):
            labels = np.asarray(next(moment.batches(1))["labels"])
            seen.append((what, int(state.step), moment.epoch, tuple(labels)))
            return state

        return event

    first, second = LONGER
    events = ((2, note("every 2")), (1, note("every")))
    ends = {"at_start": (note("start"),), "at_end": (note("end"),)}
    first = dataclasses.replace(first, events=events, **ends)
    second = dataclasses.replace(second, at_start=(note("next"),))
    chunks = Chunks(monkeypatch, after=interrupt)
    for _ in range(3):
        with pytest.raises(Interrupted):
            run(tmp_path, phases=(first, second), options=WHOLE)
    run(tmp_path, phases=(first, second), options=WHOLE)
    assert [event[:3] for event in seen] == [
        ("start", 0, 0),
        ("every", 6, 1),
        ("every 2", 12, 2),
        ("every", 12, 2),
        ("every", 18, 3),
        ("end", 18, 3),
        ("next", 18, 0),
    ]
    # The batch that an event draws is the one of the update that follows.
    for _, step, _, labels in seen:
        order = chunks.orders[step // STEPS][0]
        np.testing.assert_array_equal(labels, TRAIN.labels[order])


def test_an_event_may_move_parameters_and_drop_what_the_optimizer_knows(uninterrupted):
    """Both are in the checkpoint of the same step: here the end of the phase that has them."""
    checkpoints = Checkpoints(uninterrupted.workdir)
    with_events, without = (checkpoints.restore(step) for step in (2 * STEPS, 3 * STEPS))
    assert with_events["params"]["classifier"]["bias"][0] > 2, "shifted by 1 and by 2"
    moments = [
        [leaf for leaf in jax.tree.leaves(state["opt_state"]) if np.size(leaf) > 1]
        for state in (with_events, without)
    ]
    assert not any(np.any(leaf) for leaf in moments[0])
    assert any(np.any(leaf) for leaf in moments[1])


@pytest.mark.parametrize("accumulate", [1, 2])
def test_schedules_go_on_where_an_optimizer_begins_anew(tmp_path, accumulate):
    """Without momentum nothing else is lost: the weights are the same, bit for bit."""
    options = dataclasses.replace(OPTIONS, accumulate=accumulate)
    sgd = Sgd(momentum=0.0, nesterov=False)
    plain, forgetting = (
        run(
            tmp_path / name,
            phases=(phase("float", "float", epochs=3, warmup=0.5, sgd=sgd, events=events),),
            options=options,
        )
        for name, events in (("plain", ()), ("forgetting", ((1, forget),)))
    )
    assert manifest(plain.variables) == manifest(forgetting.variables)


def test_truncated_low_takes_over_the_normalisation_of_high(tmp_path):
    end = (CopyNorms("low", "high"), FitInputSteps("low"))
    state = run(tmp_path, phases=(phase("high", "high", epochs=2, at_end=end, reports=("low",)),))
    for tree in (state.params["norm1"], state.batch_stats["norm1"]):
        jax.tree.map(np.testing.assert_array_equal, tree["low"], tree["high"])
    before = initial_variables(MODEL, TASK.example, OPTIONS.seed)["batch_stats"]["norm1"]
    assert manifest(before["low"]) != manifest(state.batch_stats["norm1"]["low"])
    assert "validation_low_accuracy" in log_of(tmp_path)[-1]


class Enough(Exception):
    """Raised by a test that has seen what it wants to see."""


def test_starts_from_given_variables(tmp_path):
    given = initial_variables(MODEL, TASK.example, seed=7)

    def look(state, _moment):
        assert manifest(state.variables) == manifest(given)
        raise Enough

    with pytest.raises(Enough):
        run(tmp_path, phases=(phase("float", "float", at_start=(look,)),), variables=given)
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(given))


def test_load_gives_the_model_and_the_variables_of_the_run(finished, uninterrupted):
    model, variables = loading.load(finished)
    assert model == MODEL
    assert manifest(variables).items() <= uninterrupted.state.items()
    checkpoints = Checkpoints(finished)
    kept = checkpoints.steps()
    assert kept[-2:] == [18, 24]
    for step, asked in ((18, 18), (checkpoints.best(), "best"), (24, "latest")):
        _, variables = loading.load(finished, step=asked)
        record = next(r for r in uninterrupted.log if r["step"] == step)
        found = evaluate(model, variables, VALIDATION, task=TASK, precision="high")
        assert found["loss"] == record["validation_high_loss"]
    with pytest.raises(ValueError, match=r"no checkpoint of step 7: expected one of \[.*18, 24\]"):
        loading.load(finished, step=7)


def test_load_where_there_is_nothing(tmp_path):
    with pytest.raises(CheckpointError, match="expected the folder of a run"):
        loading.load(tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()


def test_load_without_a_description_of_the_network(tmp_path):
    run(tmp_path, phases=PHASES[:1], config=None)
    with pytest.raises(ValueError, match='entry "network"'):
        loading.load(tmp_path)


# -- what stops it ---------------------------------------------------------------------------------


def test_loss_that_is_not_finite_keeps_the_checkpoint_before(tmp_path):
    phases = (FLOAT, phase("wild", "float", peak=1e30, warmup=0.0))
    with pytest.raises(NonFiniteLoss) as caught:
        run(tmp_path, phases=phases)
    assert "step 7 (phase wild); the last good checkpoint is step 6" in str(caught.value)
    assert Checkpoints(tmp_path).steps() == [6]
    _, variables = loading.load(tmp_path)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(variables))


def test_parameters_that_the_last_update_broke_are_not_saved(tmp_path, monkeypatch):
    def break_it(number, state):
        if number < 4:
            return state
        params = jax.tree.map(lambda leaf: leaf * jnp.float32(np.nan), state.params)
        return dataclasses.replace(state, params=params)

    Chunks(monkeypatch, after=break_it)
    with pytest.raises(NonFiniteLoss, match=r"at step 24 .*the last good checkpoint is step 18"):
        run(tmp_path, phases=LONGER, options=WHOLE)
    assert Checkpoints(tmp_path).steps()[-1] == 18


def test_batch_larger_than_the_split(tmp_path):
    with pytest.raises(ValueError, match="batch of 128 images from a split of 100: expected"):
        run(tmp_path, options=FitOptions())


class Unhashable(Classification):
    """As a dataclass is that is not frozen."""

    __hash__ = None


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"config": {"rate": np.float32(1)}}, "config is not JSON .*float32.*: expected a dict"),
        ({"config": "quick"}, "config is not JSON .*str, no entries.*: expected a dict"),
        ({"config": {"network": "mlp"}}, "a network of mlp: expected a name"),
        ({"config": {"network": {**NETWORK, "hidden": [8]}}}, "describes another model than the"),
        ({"model": MODEL.clone(hidden=[16])}, r"model MLP\(hidden=\[16\]\) cannot be hashed"),
        ({"task": Unhashable((8, 8, 1))}, "task Unhashable.* cannot be hashed: expected a frozen"),
        (
            {"task": Classification((8, 8, 1), classes=5)},
            "of 4 outputs: expected 5, .*num_classes=5",
        ),
    ],
)
def test_what_would_fail_when_all_is_done_is_refused_at_the_start(tmp_path, given, says):
    parts = {"model": MODEL, "task": TASK, **given}
    options = {"train": TRAIN, "validation": VALIDATION, "options": OPTIONS}
    with pytest.raises(ValueError, match=says):
        fit(phases=PHASES, workdir=tmp_path / "run", **options, **parts)
    assert not (tmp_path / "run").exists()


@dataclasses.dataclass
class Unchecked:
    images: np.ndarray
    labels: np.ndarray


@pytest.mark.parametrize(
    ("images", "says"),
    [
        (TRAIN.images.astype(np.float32), "float32"),
        (TRAIN.images.astype(np.int32), "int32"),
        (TRAIN.images[..., 0], r"\[N, H, W, C\]"),
    ],
)
def test_images_of_a_wrong_shape_or_dtype(tmp_path, images, says):
    with pytest.raises(ValueError, match=says) as caught:
        run(tmp_path, train=Unchecked(images, TRAIN.labels))
    assert "expected" in str(caught.value)
    assert not Checkpoints(tmp_path).steps()


def test_values_to_start_from_that_the_model_does_not_have(tmp_path):
    given = initial_variables(MODEL.clone(num_classes=5), TASK.example, 0)
    with pytest.raises(ValueError, match=r"classifier/bias has the shape \(5,\), expected \(4"):
        run(tmp_path, variables=given)
    with pytest.raises(ValueError, match=r"variables are of another network: .* shape None, exp"):
        run(tmp_path, variables={"params": {}})
    with pytest.raises(ValueError, match="got TrainState, expected what model"):
        run(tmp_path, variables=TrainState(jnp.int32(0), {}, {}, {}, ()))
    own = initial_variables(MODEL, TASK.example, 0)
    with pytest.raises(ValueError, match=r"params/more has the shape \(3,\), expected None"):
        run(tmp_path, variables={**own, "params": {**own["params"], "more": jnp.zeros(3)}})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("images", [VALIDATION.images[..., 0], VALIDATION.images.astype(np.int16)])
def test_evaluation_of_a_wrong_shape_or_dtype(images):
    variables = initial_variables(MODEL, TASK.example, 0)
    split = Unchecked(images, VALIDATION.labels)
    with pytest.raises(ValueError, match=r"expected \[N, H, W, C\]|expected uint8"):
        evaluate(MODEL, variables, split, task=TASK, precision="low")
    split = Unchecked(images[:0], VALIDATION.labels[:0])
    with pytest.raises(ValueError, match="nothing to evaluate on: expected at least one"):
        evaluate(MODEL, variables, split, task=TASK, precision="low")


def test_evaluation_by_a_network_of_too_few_classes():
    variables, task = (
        initial_variables(MODEL, TASK.example, 0),
        Classification((8, 8, 1), classes=5),
    )
    with pytest.raises(ValueError, match="a network of 4 outputs: expected 5, one for each class"):
        evaluate(MODEL, variables, VALIDATION, task=task, precision="low")


# -- signals ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_first_signal_is_noted_and_the_second_acts_as_usual(signum):
    before = signal.getsignal(signum)
    with Signals() as signals:
        assert signals.received is None
        assert signal.getsignal(signum) != before
        signal.raise_signal(signum)
        assert signals.received == signum
        assert signal.getsignal(signum) == before
    assert signal.getsignal(signum) == before
    with Signals():
        pass
    assert signal.getsignal(signum) == before


@pytest.mark.parametrize("error", [BrokenPipeError, RuntimeError("reentrant call")])
def test_a_signal_is_noted_where_nobody_reads_the_output(monkeypatch, error):
    def write(_):
        raise error

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(sys, "stdout", SimpleNamespace(write=write, flush=lambda: None))
    with Signals() as signals:
        signal.raise_signal(signal.SIGTERM)
        assert signals.received == signal.SIGTERM
        assert signal.getsignal(signal.SIGTERM) == before


def test_parts_of_a_batch_make_one_update(tmp_path):
    """Without normalisation and augmentation, only the order of sums is another."""
    model, task = MODEL.clone(norm=None), Classification((8, 8, 1))
    states = []
    for parts in (1, 4):
        options = FitOptions(batch_size=BATCH, accumulate=parts)
        phases = (phase("float", "float", epochs=2),)
        folder = tmp_path / str(parts)
        states.append(fit(model, task, phases, TRAIN, VALIDATION, options, folder))
    assert int(states[1].step) == 4 * int(states[0].step)
    leaves = [jax.tree.leaves(state.params) for state in states]
    for one, other in zip(*leaves, strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-4, atol=1e-6)
