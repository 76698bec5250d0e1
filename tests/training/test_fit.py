"""fit: resumed equals uninterrupted, bit for bit; what is logged; what stops it."""

import dataclasses
import json
import shutil
import signal
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.compilation_cache.compilation_cache import reset_cache

from dual_precision import data, loading, modes
from dual_precision.models import MLP
from dual_precision.training import fit as fit_module
from dual_precision.training.checkpoint import CheckpointError, Checkpoints, manifest
from dual_precision.training.fit import FitOptions, NonFiniteLoss, fit
from dual_precision.training.metrics import evaluate
from dual_precision.training.phases import Phase, Preparation
from dual_precision.training.signals import Interrupted, Signals
from experiments.recipes.config import Config
from experiments.recipes.recipes import RECIPES

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
AUGMENT = partial(data.augment, padding=1, flip=True)
# Every kind of phase: steps fitted at the start, a teacher, a protected mode.
PHASES = (
    Phase("high", 1, ("high",), 0.1, prepare=Preparation("low", input_steps=("high",))),
    Phase(
        "both",
        1,
        ("high", "low"),
        0.1,
        teacher="high",
        distillation=0.5,
        prepare=Preparation(norms=(("low", "high"),), input_steps=("low",)),
    ),
    Phase("polish", 1, ("high",), 0.1, protect="low"),
)


def split(size: int, seed: int) -> data.Images:
    """Images whose class shows, so that something is learned."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 4, size).astype(np.int32)
    images = generator.integers(0, 128, (size, 8, 8, 1)).astype(np.uint8)
    for image, label in zip(images, labels, strict=True):
        image[2 * label : 2 * label + 2] += 100
    return data.Images(images, labels)


TRAIN, VALIDATION = split(SIZE, 0), split(40, 1)


def run(workdir: Path, phases=PHASES, options=OPTIONS, **more):
    settings = {"train": TRAIN, "validation": VALIDATION, "config": {"network": NETWORK}, **more}
    return fit(MODEL, phases, augment=AUGMENT, options=options, workdir=workdir, **settings)


def all_of(state) -> dict[str, str]:
    """Digests of everything that a state holds, opt_state included."""
    return manifest(dataclasses.asdict(state))


def log_of(workdir: Path) -> list[dict]:
    records = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    for record in records:
        record.pop("images_per_second")
    return records


class Chunks:
    """Stands in for fit's compile_chunk: notes the data order, and may act after a chunk."""

    def __init__(self, monkeypatch, after=lambda number, state: state):
        self.orders: list[np.ndarray] = []
        self.after = after
        self.compile = fit_module.compile_chunk
        monkeypatch.setattr(fit_module, "compile_chunk", self)

    def __call__(self, *arguments):
        run_chunk = self.compile(*arguments)

        def noting(state, images, labels, order):
            state, metrics = run_chunk(state, images, labels, order)
            self.orders.append(np.asarray(order))
            return self.after(len(self.orders), state), metrics

        return noting


def interrupt(_number, state):
    signal.raise_signal(signal.SIGTERM)
    return state


@pytest.fixture(scope="module", autouse=True)
def _programs_kept(tmp_path_factory):
    """XLA compiles each program once for all runs of this file."""
    settings = {
        "jax_compilation_cache_dir": str(tmp_path_factory.mktemp("programs")),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
    }
    before = {name: getattr(jax.config, name) for name in settings}
    for values in (settings, before):
        for name, value in values.items():
            jax.config.update(name, value)
        reset_cache()
        if values is settings:
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
    total = len(PHASES) * STEPS // 2
    for number in range(1, total):
        with pytest.raises(Interrupted, match=f"SIGTERM: saved at step {2 * number} of 18") as stop:
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


@pytest.mark.parametrize("epoch", [1, 2, 3])
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
    about = finished / "checkpoints" / str(3 * STEPS) / "about" / "metadata"
    about.write_text(about.read_text()[:-5])
    assert all_of(run(finished)) == uninterrupted.state
    assert log_of(finished) == uninterrupted.log
    assert any(message.startswith("checkpoint skipped: step 18") for message in caplog.messages)
    assert [path.name for path in (finished / "checkpoints_damaged").iterdir()] == ["18_0"]


def test_all_checkpoints_damaged(finished):
    for path in (finished / "checkpoints").glob("*/about/metadata"):
        path.write_text("{")
    with pytest.raises(CheckpointError, match="Start again in another --workdir"):
        run(finished)


# -- data order and dispatch -----------------------------------------------------------------------


def test_every_epoch_visits_distinct_images_in_its_own_order(uninterrupted):
    epochs = np.concatenate(uninterrupted.orders).reshape(len(PHASES), STEPS * BATCH)
    for epoch in epochs:
        assert len(np.unique(epoch)) == STEPS * BATCH
        assert epoch.min() >= 0
        assert epoch.max() < SIZE
    assert len({tuple(epoch) for epoch in epochs}) == len(PHASES)
    assert len(np.unique(epochs)) == SIZE, "other images are left out each time"


def test_seed_decides(tmp_path, monkeypatch, uninterrupted):
    chunks = Chunks(monkeypatch)
    again = run(tmp_path / "same", phases=PHASES[:1])
    other = run(tmp_path / "other", phases=PHASES[:1], options=dataclasses.replace(OPTIONS, seed=1))
    assert log_of(tmp_path / "same")[0]["loss"] == uninterrupted.log[0]["loss"]
    assert all_of(again) != all_of(other)
    same, differing = chunks.orders[:3], chunks.orders[3:]
    np.testing.assert_array_equal(same, uninterrupted.orders[:3])
    assert not np.array_equal(same, differing)


def test_steps_per_dispatch_changes_speed_alone(tmp_path):
    phases = (Phase("float", 2, ("float",), 0.1),)
    one, several = (
        run(
            tmp_path / str(steps),
            phases=phases,
            options=dataclasses.replace(OPTIONS, steps_per_dispatch=steps),
        )
        for steps in (1, 6)
    )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
        one.variables,
        several.variables,
    )
    logs = log_of(tmp_path / "1"), log_of(tmp_path / "6")
    assert [r["step"] for r in logs[0]] == [r["step"] for r in logs[1]]


@pytest.mark.parametrize(("most", "chunk"), [(1, 1), (2, 2), (4, 3), (5, 3), (64, 6)])
def test_dispatches_divide_the_epoch(tmp_path, monkeypatch, most, chunk):
    """So that evaluation and checkpoints fall between two of them."""
    options = dataclasses.replace(OPTIONS, steps_per_dispatch=most)
    chunks = Chunks(monkeypatch)

    class Enough(Exception):
        pass

    def stop(_number, _state):
        raise Enough

    chunks.after = stop
    with pytest.raises(Enough):
        run(tmp_path, phases=(Phase("float", 1, ("float",), 0.1),), options=options)
    assert chunks.orders[0].shape == (chunk, BATCH)


# -- what phases set, what the log says ------------------------------------------------------------


def test_log_has_a_record_for_each_evaluation(uninterrupted):
    assert [(r["step"], r["epoch"], r["phase"]) for r in uninterrupted.log] == [
        (6, 1, "high"),
        (12, 2, "both"),
        (18, 3, "polish"),
    ]
    last = uninterrupted.log[-1]
    assert {"loss", "high_loss", "learning_rate", "validation_high_accuracy"} <= last.keys()
    assert all(np.isfinite(v) for v in last.values() if isinstance(v, float))


def test_polish_leaves_low_as_it_was(uninterrupted):
    _, both, polish = uninterrupted.log
    for metric in ("accuracy", "loss"):
        assert polish[f"validation_low_{metric}"] == both[f"validation_low_{metric}"]
    assert polish["validation_high_loss"] != both["validation_high_loss"]


def test_evaluation_after_several_epochs_and_at_the_end_of_a_phase(tmp_path):
    options = dataclasses.replace(OPTIONS, epochs_per_evaluation=2, steps_per_dispatch=6)
    phases = (Phase("float", 3, ("float",), 0.1), Phase("more", 1, ("float",), 0.1))
    run(tmp_path, phases=phases, options=options)
    assert [record["epoch"] for record in log_of(tmp_path)] == [2, 3, 4]


def test_truncated_low_takes_over_the_normalisation_of_high(tmp_path):
    recipe = RECIPES["truncate"](Config(mode="truncate", passes=2.0, batch_size=BATCH))
    state = run(tmp_path, phases=recipe)
    for tree in (state.params["norm1"], state.batch_stats["norm1"]):
        jax.tree.map(np.testing.assert_array_equal, tree["low"], tree["high"])
    before = fit_module.initial_variables(MODEL, (8, 8, 1), OPTIONS.seed)["batch_stats"]["norm1"]
    assert manifest(before["low"]) != manifest(state.batch_stats["norm1"]["low"])
    assert "validation_low_accuracy" in log_of(tmp_path)[-1]


def test_starts_from_given_variables(tmp_path):
    given = fit_module.initial_variables(MODEL, (8, 8, 1), seed=7)
    kernel = np.asarray(given["params"]["dense1"]["kernel"])
    phases = (Phase("float", 1, ("float",), 1e-9, weight_decay=0.0),)
    state = run(tmp_path, phases=phases, variables=given)
    np.testing.assert_allclose(state.params["dense1"]["kernel"], kernel, atol=1e-6)


def test_load_gives_the_model_and_the_variables_of_the_run(finished, uninterrupted):
    model, variables = loading.load(finished)
    assert model == MODEL
    assert manifest(variables).items() <= uninterrupted.state.items()
    checkpoints = Checkpoints(finished)
    kept = checkpoints.steps()
    assert kept[-2:] == [12, 18]
    for step, asked in ((12, 12), (checkpoints.best(), "best"), (18, "latest")):
        _, variables = loading.load(finished, step=asked)
        record = next(r for r in uninterrupted.log if r["step"] == step)
        found = evaluate(model, variables, VALIDATION.images, VALIDATION.labels, precision="high")
        assert found["loss"] == record["validation_high_loss"]
    with pytest.raises(ValueError, match=r"no checkpoint of step 7: expected one of \[.*12, 18\]"):
        loading.load(finished, step=7)


def test_load_where_there_is_nothing(tmp_path):
    with pytest.raises(CheckpointError, match="train one first"):
        loading.load(tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()


def test_load_without_a_description_of_the_network(tmp_path):
    run(tmp_path, phases=PHASES[:1], config=None)
    with pytest.raises(ValueError, match='entry "network"'):
        loading.load(tmp_path)


# -- what stops it ---------------------------------------------------------------------------------


def test_loss_that_is_not_finite_keeps_the_checkpoint_before(tmp_path):
    phases = (Phase("calm", 1, ("float",), 0.1), Phase("wild", 1, ("float",), 1e30, warmup=0.0))
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
    options = dataclasses.replace(OPTIONS, steps_per_dispatch=6)
    with pytest.raises(NonFiniteLoss, match=r"at step 24 .*the last good checkpoint is step 18"):
        run(tmp_path, phases=(Phase("float", 5, ("float",), 0.1),), options=options)
    assert Checkpoints(tmp_path).steps()[-1] == 18


def test_batch_larger_than_the_split(tmp_path):
    with pytest.raises(ValueError, match="batch of 128 images from a split of 100: expected"):
        run(tmp_path, options=FitOptions())


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


@pytest.mark.parametrize("images", [VALIDATION.images[..., 0], VALIDATION.images.astype(np.int16)])
def test_evaluation_of_a_wrong_shape_or_dtype(images):
    variables = fit_module.initial_variables(MODEL, (8, 8, 1), 0)
    with pytest.raises(ValueError, match=r"expected \[N, H, W, C\]|expected uint8"):
        evaluate(MODEL, variables, images, VALIDATION.labels, precision="low")
    with pytest.raises(ValueError, match="no images"):
        evaluate(MODEL, variables, images[:0], VALIDATION.labels[:0], precision="low")


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
