"""Every deployed form gives what the network itself gives, or is refused: whatever a class changes.

A class of layers may have any method of its base as its own. Here each of them is replaced by one
that gives twice as much, and no form may go on with what the base would have computed.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax.traverse_util import unflatten_dict

from dual_precision import Modes, modes
from dual_precision.deploy import Predictor, load_packed, save_packed, to_integer
from dual_precision.deploy.export.onnx.file import EngineNetwork, save_onnx
from dual_precision.deploy.export.onnx.floats import save_float_onnx
from dual_precision.deploy.export.stablehlo import Programs, save_programs
from dual_precision.deploy.planes.bit_layers import to_bit_layers
from dual_precision.deploy.planes.mode_layers import XlaModeLayer, to_plane_layers
from dual_precision.layers import Conv, Dense, Embed, Recurrence, SwitchableBatchNorm
from dual_precision.models import MODELS
from dual_precision.structure import structure_of

DUAL = modes(low="w2a8", high="w8a8")
# What makes the grid that is packed: all forms refuse a class that has one of these of its own.
GRIDS = (
    "grid_of_weights",
    "grid_of_inputs",
    "weights_on",
    "inputs_on",
    "_calibrated",
    "_kernel",
    "_multiplied",
    "_output",
)
OTHERS = ("product", "__call__")


class One(nn.Module):
    """A layer of numbers, or of images, of which it gives the mean."""

    modes: Modes
    layer: Any = Dense

    @nn.compact
    def __call__(self, x, *, precision, train=False):
        y = self.layer(4, modes=self.modes, signed=True, name="only")(x, precision=precision)
        return y if y.ndim == 2 else jnp.mean(y, axis=(1, 2))


class Text(nn.Module):
    """A table, whose rows are gates of a recurrence."""

    modes: Modes
    embed: Any = Embed
    layer: Any = Recurrence

    @nn.compact
    def __call__(self, x, *, precision, train=False):
        gates = self.embed(16, modes=self.modes.pin(8, None), name="embed")(x, precision=precision)
        zeros = jnp.zeros((x.shape[0], 4), jnp.float32)
        layer = self.layer(4, modes=self.modes, name="only")
        return layer(gates, (zeros, zeros), precision=precision)[0]


class Normed(nn.Module):
    """A layer, and a normalisation of what it gives."""

    modes: Modes
    layer: Any = Dense
    norm: Any = SwitchableBatchNorm

    @nn.compact
    def __call__(self, x, *, precision, train=False):
        x = self.layer(4, modes=self.modes, signed=True, name="only")(x, precision=precision)
        return self.norm(modes=self.modes, name="norm")(x, precision=precision, train=train)


def rng():
    return np.random.default_rng(0)


NUMBERS = rng().normal(size=(3, 12)).astype(np.float32)
IMAGES = rng().normal(size=(3, 4, 4, 3)).astype(np.float32)
BYTES = rng().integers(0, 256, (3, 5)).astype(np.uint8)
# Base -> its network, the attribute that names its class, and inputs.
NETWORKS = {
    Dense: (One, "layer", NUMBERS),
    Conv: (One, "layer", IMAGES),
    Recurrence: (Text, "layer", BYTES),
    Embed: (Text, "embed", BYTES),
    SwitchableBatchNorm: (Normed, "norm", NUMBERS),
}


def doubled(base: type, name: str) -> type:
    """The class whose `name` gives twice what that of its base does."""
    before = getattr(base, name)

    def method(self: Any, *args: Any, **options: Any) -> Any:
        found = before(self, *args, **options)
        return jax.tree.map(lambda leaf: 2 * leaf, found)

    return type(f"Own{base.__name__}", (base,), {name: method, "__module__": __name__})


def network(base, cls, monkeypatch):
    """The model with a class in the place of `base`, variables, an example, inputs."""
    made, attribute, x = NETWORKS[base]
    monkeypatch.setitem(MODELS, "own", partial(made, **{attribute: cls}))
    model = MODELS["own"](DUAL)
    example = jax.ShapeDtypeStruct(x.shape[1:], x.dtype)
    drawn, leaves = rng(), {}
    for path, leaf in structure_of(model, example).shapes.items():
        array = drawn.normal(size=leaf.shape)
        if {"step", "input_step"} & set(path):
            array = np.full(leaf.shape, 2.0**-6 if "step" in path else 2.0**-5)
        array = np.abs(array) + 0.5 if "var" in path else array
        leaves[path] = jnp.asarray(array, jnp.float32)
    return model, unflatten_dict(leaves), example, x


def packed(folder, model, variables, example):
    path = folder / "net"
    save_packed(path, model, variables, {"name": "own", **DUAL.to_json()}, example)
    return path


def file(folder, model, variables, example):
    again, loaded = load_packed(packed(folder, model, variables, example))
    return lambda x, mode: jax.jit(partial(again.apply, precision=mode))(loaded, x)


def predictor(folder, *network):
    return Predictor(packed(folder, *network), batch_sizes=(4,)).predict


def integer(_, *network):
    model, integers = to_integer(*network)
    return lambda x, mode: jax.jit(partial(model.apply, precision=mode))(integers, x)


def plane_layers(_, *network):
    model, planes = to_plane_layers(*network, form=XlaModeLayer)
    return lambda x, mode: jax.jit(partial(model.apply, precision=mode))(planes, x)


def bit_layers(_, *network):
    made = {mode: to_bit_layers(*network, mode=mode, read=(8,)) for mode in ("low", "high")}

    def predict(x, mode):
        model, planes = made[mode]
        return jax.jit(partial(model.apply, precision="w8a32"))(planes, x)

    return predict


def programs(folder, *network):
    save_programs(folder / "programs", packed(folder, *network))
    return Programs(folder / "programs").predict


def onnx(folder, *network):
    save_onnx(folder / "onnx", packed(folder, *network))
    return EngineNetwork(folder / "onnx").predict


def float_onnx(folder, *network):
    save_float_onnx(folder / "onnx", *network)
    return EngineNetwork(folder / "onnx").predict


ALL = tuple(base for base in NETWORKS if base is not SwitchableBatchNorm)
# Form -> how far it may be from the network, as a share of its largest number, and what has it.
FORMS = {
    file: (0, ALL),
    predictor: (1e-6, ALL),  # what has no integer form runs as it is
    integer: (1e-6, (Dense, Conv)),
    plane_layers: (1e-6, ALL),  # a convolution and a table stay as they are
    bit_layers: (0.25, (Dense, Recurrence, Embed)),  # their activations have other grids
    programs: (1e-6, ALL),
    onnx: (0.02, ALL),  # a code on the other side of its edge
    float_onnx: (1e-5, (Dense, Conv)),
}
ENGINES = {onnx: "onnxruntime", float_onnx: "onnxruntime", programs: "flatbuffers"}


def holds(form, folder, model, variables, example, x) -> bool:
    """Whether a form is there, which then has to be right."""
    try:
        found = form(folder, model, variables, example)
    except ValueError:
        return False
    for mode in ["float"] if form is float_onnx else ["low", "high"]:
        wanted = np.asarray(jax.jit(partial(model.apply, precision=mode))(variables, x))
        apart = np.abs(np.asarray(found(x, mode)) - wanted).max()
        assert apart <= FORMS[form][0] * np.abs(wanted).max(), (form.__name__, mode)
    return True


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__name__)
@pytest.mark.parametrize("base", ALL, ids=lambda base: base.__name__)
def test_what_the_network_gives_or_an_error(base, form, tmp_path, monkeypatch):
    if form in ENGINES:
        pytest.importorskip(ENGINES[form])
    same = type(f"Own{base.__name__}", (base,), {"__module__": __name__})
    assert holds(form, tmp_path, *network(base, same, monkeypatch)) == (base in FORMS[form][1])
    kept = form is plane_layers and base in (Conv, Embed)  # what has no form there stays
    there = {
        name: holds(form, tmp_path, *network(base, doubled(base, name), monkeypatch))
        for name in (("weights_on", "__call__") if kept else (*GRIDS, *OTHERS))
    }
    if form is not float_onnx and not kept:
        assert not [name for name in GRIDS if there[name]]


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__name__)
def test_a_normalisation_with_a_call_of_its_own(form, tmp_path, monkeypatch):
    if form in ENGINES:
        pytest.importorskip(ENGINES[form])
    for cls in (SwitchableBatchNorm, doubled(SwitchableBatchNorm, "__call__")):
        there = holds(form, tmp_path, *network(SwitchableBatchNorm, cls, monkeypatch))
        assert there or cls is not SwitchableBatchNorm
