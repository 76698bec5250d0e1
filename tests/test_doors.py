"""The doors of the house: a method, a task, a layer come in as code of their own.

Everything here is written in this file alone and runs through `fit`, the structure and the packed
file as they are. What a new method, task or layer needs is what stands between two blank lines.
"""

import dataclasses
from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from dual_precision import Modes, Widths, data, modes
from dual_precision.costs import mode_cost
from dual_precision.layers import (
    Conv,
    Dense,
    Embed,
    QuantizedLayer,
    Recurrence,
    SwitchableBatchNorm,
)
from dual_precision.models import LSTM, MLP
from dual_precision.primitives.ste import round_ste
from dual_precision.structure import structure_of
from dual_precision.tasks.classification import Classification
from dual_precision.training.fit import fit
from dual_precision.training.initialize import FitInputSteps, FitWeightSteps
from dual_precision.training.methods.modes import Split
from dual_precision.training.optimizers import Sgd
from dual_precision.training.options import FitOptions
from dual_precision.training.phases import Phase
from dual_precision.training.schedules import warmup_cosine

pytestmark = pytest.mark.usefixtures("compiled_quickly")

RATES = {
    "learning_rate": partial(warmup_cosine, peak=0.1, warmup=0.1),
    "step_learning_rate": partial(warmup_cosine, peak=0.01, warmup=0.1),
}
START = (FitWeightSteps("low"), FitInputSteps("high"), FitInputSteps("low"))


@pytest.fixture(scope="module")
def digits(tmp_path_factory) -> data.Dataset:
    return data.load("digits", data_dir=tmp_path_factory.mktemp("tfds"))


def train(
    digits: data.Dataset, phase: Phase, workdir: Any, dense: type = Dense
) -> tuple[nn.Module, Any, float]:
    """A run on digits: the model, the last state, and the validation accuracy of high."""
    means = {"mean": tuple(map(float, digits.mean)), "std": tuple(map(float, digits.std))}
    own = {"modes": modes(low="w2a2", high="w8a8"), "dense": dense, **means}
    model = MLP(num_classes=10, hidden=(32,), **own)
    task, records = Classification.of(digits), []
    options = FitOptions(batch_size=64, epochs_per_evaluation=phase.epochs)
    parts = (digits.train, digits.validation, options, workdir)
    state = fit(model, task, (phase,), *parts, listeners=[records.append])
    return model, state, records[-1]["validation_high_accuracy"]


# -- a method is a loss and schedules --------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Cyclic:
    """One mode whose widths follow a schedule."""

    mode: str

    def __call__(self, network, params, state, batch, key, values):
        bits = jnp.round(values["width"]).astype(jnp.int32)
        asked = Widths(self.mode, weights=bits, activations=bits, gradients=8)
        outputs, state = network(params, state, batch, precision=asked, train=True, key=key)
        return network.task.loss(outputs, batch), (state, {"bits": values["width"]})


def cosine_cycles(updates: int, low: int, high: int, cycles: int):
    length = updates // cycles
    return lambda step: low + (high - low) / 2 * (1 - jnp.cos(jnp.pi * (step % length) / length))


@dataclasses.dataclass(frozen=True)
class RandomWidths:
    """Every layer has a width of its own, drawn anew for every batch."""

    layers: tuple[str, ...]

    def __call__(self, network, params, state, batch, key, values):
        drawn = jax.random.randint(key, (len(self.layers),), 2, 9)
        widths = dict(zip(self.layers, drawn, strict=True))
        asked = Widths("high", weights=widths)
        outputs, state = network(params, state, batch, precision=asked, train=True)
        return network.task.loss(outputs, batch), (state, {})


@dataclasses.dataclass(frozen=True)
class HalveSmallWeights:
    """An event: the smallest weights of a kernel become smaller; the optimizer starts anew."""

    layer: str

    def __call__(self, state, moment):
        own = state.params[self.layer]
        small = jnp.abs(own["kernel"]) < jnp.quantile(jnp.abs(own["kernel"]), 0.25)
        kernel = jnp.where(small, own["kernel"] / 2, own["kernel"])
        params = {**state.params, self.layer: {**own, "kernel": kernel}}
        HAPPENED.append(moment.epoch)
        return dataclasses.replace(state, params=params, opt_state=None)


HAPPENED: list[int] = []


def test_a_method_is_a_loss_and_schedules(digits, tmp_path):
    schedules = {**RATES, "width": partial(cosine_cycles, low=3, high=8, cycles=8)}
    phase = Phase("cyclic", 20, ("high",), Cyclic("high"), Sgd(), schedules, START)
    assert train(digits, phase, tmp_path)[2] > 0.85


def test_a_method_may_give_every_layer_its_own_width(digits, tmp_path):
    loss = RandomWidths(("dense1", "classifier"))
    phase = Phase("random", 20, ("high",), loss, Sgd(), RATES, START)
    assert train(digits, phase, tmp_path)[2] > 0.85


def test_a_method_may_have_an_event_every_few_epochs(digits, tmp_path):
    HAPPENED.clear()
    both, event = ("high", "low"), (6, HalveSmallWeights("classifier"))
    phase = Phase("events", 20, both, Split(both), Sgd(), RATES, START, events=(event,))
    assert train(digits, phase, tmp_path)[2] > 0.85
    assert HAPPENED == [6, 12, 18]


# -- a task is a class of its own ------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class NextCharacter:
    """Contiguous text: every row of a batch reads on where it ended, with its state carried."""

    length: int
    features: int

    @property
    def example(self):
        state = jax.ShapeDtypeStruct((self.features,), jnp.float32)
        return (jax.ShapeDtypeStruct((self.length,), jnp.int32), state)

    def carry(self, rows: int):
        return jnp.zeros((rows, self.features))

    def arrays(self, split):
        return {"text": split}

    def order(self, split, batch_size, key):
        row = (len(split) - 1) // batch_size
        starts = np.arange(row // self.length, dtype=np.int32)[:, None] * self.length
        return starts + np.arange(batch_size, dtype=np.int32) * row

    def draw(self, arrays, index, key):
        window = arrays["text"][index[:, None] + jnp.arange(self.length + 1)[None]]
        return {"inputs": window[:, :-1], "next": window[:, 1:]}

    def batches(self, split, batch_size) -> Iterator[tuple[Any, np.ndarray]]:
        for index in self.order(split, batch_size, None):
            yield self.draw({"text": split}, index, None), np.ones(batch_size, bool)

    def loss(self, outputs, batch):
        return jnp.mean(self.measures(outputs, batch)["loss"])

    def measures(self, outputs, batch):
        losses = optax.softmax_cross_entropy_with_integer_labels(outputs, batch["next"])
        return {"loss": jnp.mean(losses, axis=1)}

    def score(self, measured):
        return -measured["loss"]


class Recurrent(nn.Module):
    """h_t = tanh(x_t + W h_(t-1)); its matrix is called for every character."""

    modes: Modes
    letters: int
    features: int

    @nn.compact
    def __call__(self, text, h, *, precision, train=False):
        embed = self.param("table", nn.initializers.normal(1.0), (self.letters, self.features))
        again = Dense(self.features, self.modes, signed=True, name="again")
        head = Dense(self.letters, self.modes.pin(8, 8), signed=True, name="head")
        logits = []
        for step in range(text.shape[1]):
            h = jnp.tanh(embed[text[:, step]] + again(h, precision=precision))
            logits.append(head(h, precision=precision))
        return jnp.stack(logits, axis=1), h


def test_a_task_is_a_class_of_its_own(tmp_path):
    """Text of period 12 whose letters say little by themselves: the state has to be carried."""
    text = np.tile(np.array([0, 0, 1, 0, 2, 2, 0, 1, 1, 2, 0, 2], np.int32), 120)
    task, model = NextCharacter(4, 24), Recurrent(modes(low="w2a4", high="w8a8"), 3, 24)
    both, starts = ("high", "low"), (FitWeightSteps("low"), FitInputSteps("high"))
    phase = Phase("text", 30, both, Split(both), Sgd(), RATES, starts)
    records: list[dict] = []
    options = FitOptions(batch_size=8, epochs_per_evaluation=30)
    evaluated = np.tile(text, 3)[: 500 * 4 + 1]  # evaluation runs rows of its own, 500 of them
    fit(model, task, (phase,), text, evaluated, options, tmp_path, listeners=[records.append])
    assert records[-1]["high_loss"] < 0.4, "uniform letters have 1.1"
    assert records[-1]["low_loss"] < 0.7


# -- a width is a value ----------------------------------------------------------------------------


@pytest.mark.parametrize("layerwise", [False, True])
def test_one_trace_for_every_width(layerwise):
    model = MLP(num_classes=4, modes=modes(low="w2a2", high="w8a8"), hidden=(8, 8))
    images, traces = jnp.zeros((2, 4, 4, 1), jnp.uint8), 0
    variables = model.init(jax.random.key(0), images, precision="high")

    @jax.jit
    def predict(variables, images, asked):
        nonlocal traces
        traces += 1
        return model.apply(variables, images, precision=asked)

    for weights in range(1, 9):
        for activations in range(1, 9):
            given = {"dense2": weights} if layerwise else weights
            predict(variables, images, Widths("high", weights=given, activations=activations))
    assert traces == 1


# -- a layer states its own facts ------------------------------------------------------------------


class Mixing(QuantizedLayer):
    """One matrix for all groups of channels: [N, groups * in] -> [N, groups * features]."""

    groups: int = 2

    def kernel_shape(self, inputs):
        return (inputs // self.groups, self.features)

    def product(self, x, kernel):
        parts = x.reshape(x.shape[0], self.groups, -1) @ kernel
        return parts.reshape(x.shape[0], self.groups * self.features)

    def _check_inputs(self, inputs):
        super()._check_inputs(inputs // self.groups)


class Mixer(nn.Module):
    modes: Modes
    layer: Any = Mixing
    dense: Any = Dense
    norm: Any = SwitchableBatchNorm

    @nn.compact
    def __call__(self, x, *, precision, train=False):
        x = x.reshape(x.shape[0], -1).astype(jnp.float32) / 128.0 - 1.0
        mix = self.layer(8, modes=self.modes, signed=True, name="mix")
        x = mix(x, precision=precision)
        x = mix(jnp.tanh(x), precision=precision)
        x = nn.relu(self.norm(modes=self.modes, name="norm")(x, precision=precision, train=train))
        return self.dense(3, modes=self.modes, name="head")(x, precision=precision)


def test_a_layer_states_its_own_facts(tmp_path, monkeypatch):
    """A class of this file, called twice on inputs with a sign: billed, packed, loaded."""
    from dual_precision import models
    from dual_precision.deploy import load_packed, save_packed

    monkeypatch.setitem(models.MODELS, "mixer", Mixer)
    own = modes(low="w2a2", high="w8a8")
    model, example = Mixer(own), jax.ShapeDtypeStruct((4, 4, 1), jnp.uint8)
    structure = structure_of(model, example)
    mix = structure.layers["mix",]
    assert (mix.kernel, mix.calls, mix.signed) == ((8, 8), 2, True)
    assert mix.macs == 2 * 2 * 8 * 8, "two calls of two groups"
    assert mode_cost(structure, "low").macs == mix.macs + 16 * 3

    images = jax.random.randint(jax.random.key(1), (5, 4, 4, 1), 0, 256).astype(jnp.uint8)
    variables = jax.jit(partial(model.init, precision="high"))(jax.random.key(0), images)
    network = {"name": "mixer", **own.to_json()}
    save_packed(tmp_path / "net.safetensors", model, variables, network, example)
    again, loaded = load_packed(tmp_path / "net.safetensors")
    predict = jax.jit(model.apply, static_argnames="precision")
    for mode in ("low", "high"):
        wanted = predict(variables, images, precision=mode)
        found = jax.jit(again.apply, static_argnames="precision")(loaded, images, precision=mode)
        np.testing.assert_array_equal(found, wanted)


# -- a quantizer is one class for all layers -------------------------------------------------------


class Largest(QuantizedLayer):
    """2^n - 1 levels to the largest magnitude, of each output channel and of the inputs."""

    def stored_bits(self):
        return None  # floats: the codes of one width are no part of those of another

    def grid_of_weights(self, asked, kernel):
        if asked.weights is None:
            return None
        axes = tuple(range(kernel.ndim - 1))
        return step_of(jnp.max(jnp.abs(kernel), axes, keepdims=True), asked.weights)

    def grid_of_inputs(self, asked, x):
        return (
            None if asked.activations is None else step_of(jnp.max(jnp.abs(x)), asked.activations)
        )

    def weights_on(self, kernel, grid):
        return round_ste(kernel / grid) * grid

    def inputs_on(self, x, grid):
        return round_ste(x / grid) * grid

    def fits_inputs(self):
        return True  # in every call


def step_of(largest, bits):
    return jax.lax.stop_gradient(largest) / (2.0 ** (bits - 1) - 1)


class LargestDense(Dense, Largest):
    """Behind a class of layers, so that what these say of themselves comes first."""


class LargestConv(Conv, Largest):
    pass


class LargestEmbed(Embed, Largest):
    pass


class LargestRecurrence(Recurrence, Largest):
    pass


def rounded(x, bits, axes=None):
    step = np.abs(x).max(axes, keepdims=True) / np.float32(2 ** (bits - 1) - 1)
    return np.round(x / step) * step


@pytest.mark.parametrize("cls", [LargestDense, LargestConv])
def test_a_quantizer_is_one_class_for_products(cls):
    x = np.random.default_rng(0).normal(size=(3, 5, 5, 4)).astype(np.float32)
    own, base = (c(6, modes(low="w2a4", high="w5a6")) for c in (cls, cls.__bases__[0]))
    assert own.use_bias == base.use_bias
    variables, plain = (layer.init(jax.random.key(0), x, precision="low") for layer in (own, base))
    assert "step" not in variables["params"]
    kernel = np.asarray(variables["params"]["kernel"])
    for mode, (weights, inputs) in {"low": (2, 4), "high": (5, 6)}.items():
        seen = {"kernel": rounded(kernel, weights, tuple(range(kernel.ndim - 1)))}
        variables_of_base = {"params": {**plain["params"], **seen}}
        wanted = base.apply(variables_of_base, rounded(x, inputs), precision="float")
        found = own.apply(variables, x, precision=mode)
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


def test_a_quantizer_is_one_class_for_tables_and_recurrences():
    text = np.random.default_rng(1).integers(0, 256, (2, 7)).astype(np.uint8)
    own = {"embed": LargestEmbed, "dense": LargestDense, "recurrence": LargestRecurrence}
    model = LSTM(modes(low="w2a4", high="w8a8"), features=16, depth=1, **own)
    variables = jax.jit(partial(model.init, precision="high"))(jax.random.key(0), text)
    table = LargestEmbed(16, model.modes.pin(4, None))
    params = {"params": variables["params"]["embed"]}
    rows = table.apply(params, np.arange(256, dtype=np.uint8), precision="low")
    np.testing.assert_array_equal(table.apply(params, text, precision="low"), rows[text])
    np.testing.assert_allclose(rows, rounded(params["params"]["kernel"], 4, 0), atol=1e-5)

    def loss(variables, mode):
        return jnp.sum(model.apply(variables, text, precision=mode) ** 2)

    predict = jax.jit(model.apply, static_argnames="precision")
    exact, errors = predict(variables, text, precision="float"), {}
    for mode in ("low", "high"):
        apart = predict(variables, text, precision=mode) - exact
        errors[mode] = float(jnp.linalg.norm(apart) / jnp.linalg.norm(exact))
    assert 0 < errors["high"] < 0.05 < errors["low"]
    gradients = jax.jit(jax.grad(loss), static_argnums=1)(variables, "low")["params"]
    for name in ("embed", "input1", "hidden1", "head"):
        assert 0 < float(jnp.linalg.norm(gradients[name]["kernel"])) < np.inf


def test_a_network_of_an_own_quantizer_is_trained_and_not_converted(digits, tmp_path):
    from dual_precision.deploy import to_integer

    both = ("high", "low")
    phase = Phase("own", 20, both, Split(both), Sgd(), RATES)
    model, state, accuracy = train(digits, phase, tmp_path, LargestDense)
    assert accuracy > 0.85
    with pytest.raises(ValueError, match="'dense1' of class LargestDense quantizes in a way of"):
        to_integer(model, state.variables, Classification.of(digits).example)
