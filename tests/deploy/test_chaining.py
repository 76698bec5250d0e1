"""A program whose convolutions take along what follows them gives the same bits."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict

from dual_precision import modes
from dual_precision.deploy import to_integer
from dual_precision.deploy.integer import chaining
from dual_precision.deploy.integer.chaining import CALL, chained
from dual_precision.deploy.integer.programs import CompiledProgram, TracedGraph, flatten
from dual_precision.layers import Conv, SwitchableBatchNorm
from dual_precision.models import build
from dual_precision.primitives.convolution import codes_pay, conv2d_integers
from dual_precision.tasks.classification import Classification
from dual_precision.training.state import initial_variables

pytestmark = pytest.mark.skipif(
    not codes_pay((255, 128)), reason="bytes are not multiplied here: a log line says why"
)
DUAL = modes(low="w2a2", high="w8a8")
SIZE = (8, 8, 3)


class Odd(nn.Module):
    """Channels that fill no register, strides, windows of 5, sums that go two ways."""

    modes: object
    conv: type = Conv
    norm: type = SwitchableBatchNorm

    @nn.compact
    def __call__(self, x, *, precision, train=False):
        x = x.astype(jnp.float32) / 255
        for at, (features, size, stride) in enumerate([(7, 3, 1), (19, 5, 2), (19, 1, 1)]):
            conv = self.conv(features, self.modes, kernel_size=size, stride=stride, name=f"c{at}")
            y = self.norm(self.modes, name=f"n{at}")(
                conv(x, precision=precision), precision=precision, train=train
            )
            x = nn.relu(y) + 0.5 * jnp.abs(y) if at < 2 else x - 2.0 * y
        return jnp.max(x, axis=(1, 2))  # of no order, as a sum has


def trained(model, example):
    """Values away from where `init` puts them."""
    rng = np.random.default_rng(0)
    flat = flatten_dict(initial_variables(model, example, 0))

    def moved(path, leaf):
        away = rng.uniform(0.5, 1.5, leaf.shape)
        shift = 0.3 if path[-1] in ("bias", "mean") else 0.0
        return jnp.asarray(leaf * away + shift, jnp.float32)

    return unflatten_dict({path: moved(path, leaf) for path, leaf in flat.items()})


MODELS = {
    "option A": build("resnet8", num_classes=10, modes=DUAL, widths=(16, 32, 32)),
    "option B": build("resnet20b", num_classes=10, modes=DUAL, stage_sizes=(1, 1), widths=(8, 24)),
    "odd": Odd(DUAL),
}


# 400 images are more than go through a call together.
@pytest.mark.parametrize(
    ("name", "batch"), [*((name, 3) for name in MODELS), ("odd", 1), ("option A", 400)]
)
def test_the_same_bits(name, batch):
    example = Classification(SIZE).example
    model, variables = to_integer(MODELS[name], trained(MODELS[name], example), example)
    x = np.random.default_rng(1).integers(0, 256, (batch, *SIZE), np.uint8)
    for mode in DUAL.default:

        def forward(variables, x, mode=mode):
            return model.apply(variables, x, precision=mode)

        graph = chained(flatten(jax.make_jaxpr(forward)(variables, x)))
        kinds = [node.primitive for node in graph.nodes]
        assert CALL in kinds
        assert "ffi_call" not in kinds or name == "odd"
        expected = jax.jit(forward)(variables, x)
        assert float(jnp.ptp(expected)) > 0
        program = CompiledProgram(forward, variables, x, change=chained)
        np.testing.assert_array_equal(program(x), expected)


def test_a_program_made_again_is_the_same_and_one_of_other_codes_is_not():
    """A cache of programs finds it; codes that stay have a tag made of what they are."""
    example = Classification(SIZE).example
    given = trained(MODELS["odd"], example)
    other = jax.tree.map(lambda leaf: -leaf if leaf.ndim > 1 else leaf, given)
    x = jnp.zeros((1, *SIZE), jnp.uint8)

    def text(variables):
        model, integers = to_integer(MODELS["odd"], variables, example)
        program = CompiledProgram(
            lambda variables, x: model.apply(variables, x, precision="low"),
            integers, x, change=chained,
        )  # fmt: skip
        return program.compiled.as_text()

    first, again, third = (text(variables) for variables in (given, given, other))
    assert again == first
    assert third != first


def test_a_link_waits_for_one_of_another_batch():
    """Links of one batch go through a call together, but not before what they read is made."""

    def link(x, operands, result):
        return SimpleNamespace(x=x, kernel=9, operands=operands, results=(result,))

    batches = {0: 8, 1: 1, 2: 8, 3: 1, 4: 8, 9: 3}
    avals = [SimpleNamespace(shape=(batches.get(value, 0), 4)) for value in range(10)]
    graph = TracedGraph([], [0, 1, 9], [4], {}, avals)
    links = [link(0, (), 2), link(1, (), 3), link(2, (3,), 4)]
    ready = {0, 1, 9}
    for node in chaining._in_few_calls(graph, links, []).nodes:
        assert ready.issuperset(node.inputs)
        ready.update(node.outputs)
    assert 4 in ready


def test_a_cpu_without_the_instructions_has_no_links(monkeypatch):
    """It would end the process."""
    model, example = MODELS["option A"], Classification(SIZE).example
    integer, variables = to_integer(model, trained(model, example), example)
    images = jnp.zeros((1, *SIZE), jnp.uint8)
    graph = flatten(jax.make_jaxpr(lambda x: integer.apply(variables, x, precision="low"))(images))
    assert CALL in {node.primitive for node in chained(graph).nodes}
    monkeypatch.setattr(chaining, "runs_here", lambda: False)
    assert chained(graph) is graph


def test_a_program_without_codes_stays_as_it_is():
    graph = flatten(jax.make_jaxpr(lambda x, y: (jnp.tanh(x) @ x, y * 2.0))(jnp.eye(3), 1.0))
    assert chained(graph) is graph


def test_convolutions_of_bfloat16_are_left_alone():
    """Those of the training forward, where the CPU has units for it."""

    def forward(x, kernel):
        return jnp.maximum(conv2d_integers(x, kernel, 1), 0.0)

    x, kernel = jnp.ones((2, 4, 4, 3)), jnp.full((3, 3, 3, 5), 2.0)
    program = CompiledProgram(forward, x, kernel, change=chained)
    np.testing.assert_array_equal(program(kernel), jax.jit(forward)(x, kernel))


@pytest.mark.parametrize("name", ["odd", "option A"])
def test_nan_of_an_image_stays_its_own(name):
    """Float images may hold it: such a network keeps what carries it."""
    example = jax.ShapeDtypeStruct(SIZE, jnp.float32)
    model, variables = to_integer(MODELS[name], trained(MODELS[name], example), example)
    x = np.ones((2, *SIZE), np.float32)
    x[1, 2, 3, 0] = np.nan
    program = CompiledProgram(
        lambda variables, x: model.apply(variables, x, precision="high"),
        variables, x, change=chained,
    )  # fmt: skip
    found = np.asarray(program(x))
    assert np.isfinite(found[0]).all()
    assert np.isnan(found[1]).all()
