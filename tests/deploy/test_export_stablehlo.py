"""StableHLO programs: the bits of the integer network, for any batch; altered files refused."""

from functools import partial

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from safetensors.numpy import load_file

from dual_precision.deploy import load_packed, save_packed, to_integer
from dual_precision.models import build_from
from dual_precision.precision import modes
from dual_precision.tasks.classification import Classification
from dual_precision.training.state import initial_variables

pytest.importorskip("flatbuffers")

from dual_precision.deploy.export.stablehlo import Programs, save_programs

pytestmark = pytest.mark.slow

EXAMPLE = Classification((8, 8, 3)).example
NETWORK = {
    "name": "resnet8", "num_classes": 3, "widths": [4, 8], "stage_sizes": [1, 1],
    "mean": [0.5] * 3, "std": [0.25] * 3, **modes(low="w2a2", high="w8a8").to_json(),
}  # fmt: skip
IMAGES = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), np.uint8)


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    path = tmp_path_factory.mktemp("export") / "net"
    model = build_from(NETWORK)
    save_packed(path, model, initial_variables(model, EXAMPLE, 0), NETWORK, EXAMPLE)
    return path


@pytest.fixture(scope="module")
def programs(packed):
    path = packed.with_name("net.programs")
    save_programs(path, packed, platforms=["cpu"])
    return path


def test_the_programs_give_the_bits_of_the_integer_network(packed, programs):
    loaded = Programs(programs)
    assert loaded.precisions == ("low", "high")
    model, variables = to_integer(*load_packed(packed), EXAMPLE)
    for mode in loaded.precisions:
        expected = jax.jit(partial(model.apply, precision=mode))(variables, IMAGES)
        np.testing.assert_array_equal(loaded.predict(IMAGES, mode), expected)
        assert loaded.predict(IMAGES[:2], mode).shape == (2, 3)
        none = loaded.predict(IMAGES[:0], mode)
        assert (none.shape, none.dtype) == ((0, 3), np.float32)


def test_the_weights_are_there_once(packed, programs):
    """As the integer network has them, and beside them a program for each mode."""
    _, variables = to_integer(*load_packed(packed), EXAMPLE)
    values = {"/".join(path): leaf for path, leaf in flatten_dict(variables).items()}
    stored = load_file(programs)
    assert stored.keys() == {*values, "programs/low", "programs/high"}
    for name, leaf in values.items():
        np.testing.assert_array_equal(stored[name], leaf)
    path = packed.with_name("low.programs")
    save_programs(path, packed, ["low"], platforms=["cpu"])
    assert Programs(path).precisions == ("low",)
    assert not [name for name in load_file(path) if name.split("/")[-1] == "high"]


def test_an_altered_file_is_refused(programs):
    """One bit of a program can load and give wrong numbers: nothing is believed before its sum."""
    content, path = programs.read_bytes(), programs.with_name("changed")
    for at in np.linspace(200, len(content) - 1, 40).astype(int):
        path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        with pytest.raises(ValueError, match=r"no file of programs|format|its sha256 is another"):
            Programs(path)
    for end in (0, 7, 100, len(content) - 1):
        path.write_bytes(content[:end])
        with pytest.raises(ValueError, match=r"no file of programs|format"):
            Programs(path)


def test_what_is_refused(packed, programs):
    loaded = Programs(programs)
    with pytest.raises(ValueError, match=r"precision 'float': expected one of \['low', 'high'\]"):
        loaded.predict(IMAGES, "float")
    with pytest.raises(ValueError, match="inputs float64"):
        loaded.predict(IMAGES / 255, "low")
    with pytest.raises(ValueError, match=r"precisions \['float'\]: expected some of"):
        save_programs(programs, packed, ["float"])
    with pytest.raises(ValueError, match="format 'dual_precision packed 1': expected"):
        Programs(packed)
    with pytest.raises(FileNotFoundError, match="there is no such file"):
        Programs(packed.with_name("gone"))
    for none in ("cpu", ["tpux"], []):
        with pytest.raises(ValueError, match=r"platforms=.*: expected a list of one or more of"):
            save_programs(programs, packed, platforms=none)
    other = packed.with_name("cuda.programs")
    save_programs(other, packed, ["low"], platforms=["cuda"])
    if jax.default_backend() == "cpu":
        with pytest.raises(ValueError, match=r"written for \['cuda'\], and this process ru"):
            Programs(other)
