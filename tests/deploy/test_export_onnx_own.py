"""The integer form of networks that are none of ours: what is between their layers is right too."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict

from dual_precision import modes
from dual_precision.layers import Conv, Dense, SwitchableBatchNorm
from dual_precision.precision import Asked, Modes
from dual_precision.structure import structure_of
from dual_precision.tasks.classification import Classification
from dual_precision.training.state import initial_variables

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from dual_precision.deploy.export.onnx import nibbles
from dual_precision.deploy.export.onnx.file import (
    LOGITS,
    EngineNetwork,
    write_graph,
    write_traced,
)
from dual_precision.deploy.export.onnx.graph import Graph
from dual_precision.deploy.export.onnx.layers import EXACT, INTEGER, PLAIN, VNNI
from dual_precision.deploy.export.onnx.network import OnnxNetwork
from dual_precision.deploy.export.onnx.ranges import ranges_of
from dual_precision.deploy.export.onnx.steps import trace_steps
from dual_precision.deploy.export.onnx.switched import Switched
from dual_precision.deploy.integer.conversion import to_integer

pytestmark = pytest.mark.slow

SHAPE = (13, 7, 3)
Part = Callable[..., Any]


def two_heads(x: Any, block: Part, dense: Part) -> Any:
    mean = jnp.mean(nn.relu(x + block(x)), axis=(1, 2))
    return dense(mean, "clips") * 0.0 + dense(mean, "head")


def mean_and_more(x: Any, block: Part, dense: Part) -> Any:
    mean = jnp.mean(nn.relu(x + block(x)), axis=(1, 2))
    return mean + 0.0 * dense(mean, "clips", 8)


def mean_of_taken(x: Any, block: Part, dense: Part) -> Any:
    """The sum has negative numbers, which the next layer does not see and the mean does."""
    taken = x - 0.1 + block(x)
    taker = dense(jnp.mean(block(taken), axis=(1, 2)), "other")
    return dense(jnp.mean(taken, axis=(1, 2)), "head") + 0.0 * taker


def mean_of_clipped(x: Any, block: Part, dense: Part) -> Any:
    taken = x + nn.relu(block(x))
    taker = dense(jnp.mean(block(taken, "clips"), axis=(1, 2)), "other")
    return dense(jnp.mean(taken, axis=(1, 2)), "head") + 0.0 * taker


def shortcut_of_clipped(x: Any, block: Part, dense: Part) -> Any:
    return dense(jnp.mean(nn.relu(x + block(x, "clips")), axis=(1, 2)), "head")


def padded_both_sides(x: Any, block: Part, dense: Part) -> Any:
    moved = jax.lax.slice(x, (0, 0, 0, 0), x.shape, (1, 3, 3, 1))
    moved = jnp.pad(moved, ((0, 0), (0, 0), (0, 0), (2, 5)))
    return dense(jnp.mean(nn.relu(moved + block(x, width=15, stride=3)), axis=(1, 2)), "head")


def reciprocal(x: Any, block: Part, dense: Part) -> Any:
    return dense(1.0 / (1.0 + jnp.mean(x, axis=(1, 2))), "head")


def transposed(x: Any, block: Part, dense: Part) -> Any:
    turned = jnp.transpose(x, (1, 0, 2, 3)) * 2.0
    return dense(jnp.mean(jnp.transpose(turned, (1, 0, 2, 3)), axis=(1, 2)), "head")


class Own(nn.Module):
    """A stem, then `what` is between its output, blocks of a layer and a norm, and a head."""

    what: Callable[[Any, Part, Part], Any]
    modes: Modes = modes(low="w4a8", high="w8a8")
    conv: Any = Conv
    dense: Any = Dense
    norm: Any = SwitchableBatchNorm

    @nn.compact
    def __call__(self, x: Any, *, precision: Asked, train: bool = False) -> Any:
        count = iter(range(9))

        def block(x: Any, name: str = "", width: int = 8, stride: int = 1) -> Any:
            name = name or f"block{next(count)}"
            x = self.conv(width, stride=stride, modes=self.modes, name=name)(x, precision=precision)
            norm = self.norm(modes=self.modes, name=f"{name}_norm")
            return norm(x, precision=precision, train=train)

        def dense(x: Any, name: str, width: int = 3) -> Any:
            return self.dense(width, modes=self.modes.pin(8, 8), name=name)(x, precision=precision)

        stem = self.conv(8, modes=self.modes.pin(8, None), name="stem")
        x = stem(x.astype(jnp.float32) / 255.0, precision=precision)
        x = self.norm(modes=self.modes, name="stem_norm")(x, precision=precision, train=train)
        return self.what(nn.relu(x), block, dense)


@pytest.mark.parametrize(
    "what",
    [
        two_heads,
        mean_and_more,
        mean_of_taken,
        mean_of_clipped,
        shortcut_of_clipped,
        padded_both_sides,
        reciprocal,
        transposed,
    ],
)
def test_what_is_between_layers_keeps_its_numbers(tmp_path, what):
    """Layers named "clips" see little of their input; nobody else may be clipped for that."""
    model, example = Own(what), Classification(SHAPE).example
    leaves = flatten_dict(initial_variables(model, example, 0))
    for path, leaf in leaves.items():
        if "clips" in path and "input_step" in path:
            leaves[path] = leaf * 0.05
    variables = unflatten_dict(leaves)
    images = np.random.default_rng(0).integers(0, 256, (6, *SHAPE), np.uint8)
    found, expected = answers(tmp_path, model, variables, images, VNNI)
    assert np.abs(found - expected).max() < 0.08 * np.abs(expected).max()  # a code of the head


def answers(tmp_path: Any, model: Any, variables: Any, images: Any, form: str) -> Any:
    """Of mode "high": (what ONNX Runtime gives, what the model gives)."""
    example, file = Classification(images.shape[1:]).example, tmp_path / "net.onnx"
    if form == PLAIN:
        write_traced(file, model, variables, example, ["high"], form)
    else:
        structure = structure_of(model, example)
        _, integers = to_integer(model, variables, example)
        steps, graph, ranges = trace_steps(model, structure, example), Graph(), None
        if form in (INTEGER, VNNI):
            ranges = ranges_of(model, variables, structure, images, "high", integers)
        network = OnnxNetwork(graph, steps, structure, integers, "high", ranges, form)
        shape = steps.output.aval.shape[1:]
        write_graph(file, graph, shape, example, {"high": network.output()}, ["high"])
    expected = jax.jit(model.apply, static_argnames="precision")(
        variables, images, precision="high"
    )
    return EngineNetwork(file).predict(images, "high"), np.asarray(expected)


def rows(x: Any) -> Any:
    return x.reshape(x.shape[0], -1)


def fewer_axes(x: Any, block: Part, dense: Part) -> Any:
    """What is left of the axes of the model has another order in the graph."""
    centred = x - jnp.mean(x, axis=3, keepdims=True) * jnp.ones((1, 1, 1, 8))
    kept = jnp.mean(x, axis=1), jnp.sum(x, axis=2), jnp.mean(x, axis=3), jnp.mean(x, axis=(1, 3))
    parts = (*kept, jnp.sum(centred, axis=1))
    return sum(dense(rows(own), f"of{index}") for index, own in enumerate(parts))


def a_map_of_pixels(x: Any, block: Part, dense: Part) -> Any:
    """A matrix takes the last axis, which four axes have second in the graph."""
    return nn.relu(x + block(dense(x, "pixels", 8)))


def rows_of_pixels(x: Any, block: Part, dense: Part) -> Any:
    return dense(jnp.sum(block(x), axis=2), "rows", 8) + 0.1 * jnp.sum(x, axis=2)


@pytest.mark.parametrize("form", [EXACT, INTEGER, PLAIN])
@pytest.mark.parametrize("what", [fewer_axes, a_map_of_pixels, rows_of_pixels])
def test_axes_have_the_order_of_the_model(tmp_path, what, form):
    """The graph has the channels of four axes first, and the model has them last."""
    model = Own(what)
    variables = initial_variables(model, Classification(SHAPE).example, 0)
    images = np.random.default_rng(0).integers(0, 256, (4, *SHAPE), np.uint8)
    found, expected = answers(tmp_path, model, variables, images, form)
    assert found.shape == expected.shape
    if form == INTEGER:  # its weights are rounded, and some codes are the next ones for it
        assert np.corrcoef(found.ravel(), expected.ravel())[0, 1] > 0.98
    else:
        assert np.abs(found - expected).max() < 1e-3 * np.abs(expected).max()


def test_a_switch_keeps_the_order_of_the_model(tmp_path, monkeypatch):
    monkeypatch.setattr(nibbles, "LEAST", 1)
    model, example = Own(a_map_of_pixels), Classification(SHAPE).example
    variables = initial_variables(model, example, 0)
    structure = structure_of(model, example)
    _, integers = to_integer(model, variables, example)
    steps, graph, both = trace_steps(model, structure, example), Graph(), ("low", "high")
    outputs = {LOGITS: Switched(graph, steps, structure, integers, both).output()}
    write_graph(tmp_path / "net", graph, steps.output.aval.shape[1:], example, outputs, both)
    images = np.random.default_rng(0).integers(0, 256, (4, *SHAPE), np.uint8)
    for mode in both:
        found = EngineNetwork(tmp_path / "net").predict(images, mode)
        expected = jax.jit(partial(model.apply, precision=mode))(variables, images)
        assert found.shape == expected.shape
        assert np.corrcoef(found.ravel(), np.ravel(expected))[0, 1] > 0.98
