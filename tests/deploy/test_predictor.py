"""The predictor: the bits of `model.apply`, no second copy of the weights, no late compilation."""

import concurrent.futures
import dataclasses
import itertools
import logging
import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest

from dual_precision import modes
from dual_precision.deploy import Cascade, Predictor, amend_metadata, load_packed, save_packed
from dual_precision.deploy.batching import batches
from dual_precision.deploy.file.packed import PackedFile
from dual_precision.deploy.predictor import BLOCK, _network
from dual_precision.models import MLP, build_from
from dual_precision.tasks.classification import Classification
from dual_precision.training.state import initial_variables

ROOT = Path(__file__).parents[2]
DESCRIPTION = {
    "name": "mlp",
    "num_classes": 4,
    "modes": {"low": "w2a2", "high": "w8a8"},
    "hidden": [16, 16],
}
SHAPE = (8, 8, 1)
EXAMPLE = Classification(SHAPE).example
CASCADE = Cascade("low", "high", threshold=0.15, mirror=True, blend=1.0)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("packed") / "net.safetensors"
    model = build_from(DESCRIPTION)
    save_packed(path, model, initial_variables(model, EXAMPLE, seed=0), DESCRIPTION, EXAMPLE)
    return path


@pytest.fixture(scope="module")
def predictor(path):
    return Predictor(path, batch_sizes=(1, 4), cascade=CASCADE)


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (10, *SHAPE), np.uint8)


@pytest.fixture(scope="module")
def wanted(path, images):
    """The logits of the packed network, in both modes."""
    model, variables = load_packed(path)
    return {
        precision: jax.jit(partial(model.apply, precision=precision))(variables, images)
        for precision in ("low", "high")
    }


def test_the_page_says_what_a_second_mode_takes():
    """docs/serving.md, of the published network."""
    page = (ROOT / "docs/serving.md").read_text()
    sizes = []
    for names in (("low", "high"), ("high",)):
        with PackedFile(ROOT / "notebooks/networks/cifar10-w2a2-w8a8.safetensors") as file:
            _, variables = _network(file, names, on_codes=True)
        sizes.append(sum(leaf.nbytes for leaf in jax.tree.leaves(variables)))
    both, high = sizes
    more = f"{both:,} bytes of arrays on the device, {100 * (both / high - 1):.1f} % more than high"
    assert more in " ".join(page.split())


def test_a_mode_that_was_not_trained_is_said(path, tmp_path, caplog):
    twin = tmp_path / "twin.safetensors"
    twin.write_bytes(path.read_bytes())
    amend_metadata(twin, {"trained": ["high"]})
    with caplog.at_level(logging.WARNING):
        own = Predictor(twin, batch_sizes=(1,))
    assert own.cascade is None, "of trained modes alone, unless somebody gives another"
    (line,) = caplog.messages
    assert line == "mode 'low' of the file was not trained: its answers mean little"


@pytest.mark.parametrize("precision", ["low", "high"])
@pytest.mark.parametrize("count", [0, 1, 3, 4, 10])
def test_logits_are_those_of_the_model(predictor, wanted, images, precision, count):
    got = predictor.predict(images[:count], precision)
    assert got.dtype == np.float32
    assert got.shape == (count, 4)
    assert got.flags.writeable  # an array of the caller
    np.testing.assert_allclose(got, wanted[precision][:count], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("late", [False, True])
def test_who_computes(late):
    """XLA reads the setting when it makes its devices: afterwards a line says it is too late."""
    code = f"""
import jax
from dual_precision.deploy.dispatch import compute_in_calling_thread
{"jax.devices()" if late else ""}
print(compute_in_calling_thread())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(not late)]
    assert ("asked for its devices before" in done.stderr) == late


def test_auto_follows_its_rule(predictor, images):
    answer = predictor.answer(images)
    low, high = (predictor.predict(images, name) for name in ("low", "high"))
    mean = (low + predictor.predict(images[:, :, ::-1], "low")) / 2
    looks = np.where(answer.mirrored[:, None], mean, low)
    wanted = np.where(answer.escalated[:, None], (high + mean) / 2, looks)
    np.testing.assert_allclose(answer.logits, wanted, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(predictor.predict(images, "auto"), answer.logits)
    ways = [set(way.tolist()) for way in (answer.mirrored, answer.escalated)]
    assert ways == [{False, True}] * 2, "images that show every way"
    assert not (answer.escalated & ~answer.mirrored).any()


def test_auto_goes_on_where_a_block_ends(path, monkeypatch):
    """What is kept of the first block's rows must not reach those of the second."""
    small = Predictor(path, batch_sizes=(1, 2), cascade=CASCADE)
    images = np.random.default_rng(1).integers(0, 256, (40, *SHAPE), np.uint8)
    assert len(images) > BLOCK * 2
    got = small.answer(images)
    monkeypatch.setattr("dual_precision.deploy.predictor.BLOCK", len(images))
    whole = small.answer(images)
    for way in ("mirrored", "escalated"):
        np.testing.assert_array_equal(getattr(got, way), getattr(whole, way))
        assert getattr(got, way)[32:].sum() > 0
    assert 0 < got.escalated[:32].sum() < 32
    np.testing.assert_allclose(got.logits, whole.logits, rtol=1e-5, atol=1e-5)


def test_threads_get_the_bits_that_one_gets_and_compile_nothing(predictor, images, caplog):
    requests = list(itertools.product((1, 3, 4, 9), ("low", "high", "auto"))) * 4
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        alone = [predictor.predict(images[:n], mode) for n, mode in requests]
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            together = pool.map(lambda r: predictor.predict(images[: r[0]], r[1]), requests)
            for got, wanted in zip(together, alone, strict=True):
                np.testing.assert_array_equal(got, wanted)
    assert not caplog.records, [record.getMessage() for record in caplog.records]


def test_two_modes_take_the_memory_of_one(predictor, path):
    """A second mode adds floats of its own, and no weights.

    Weights within a program would be copies; the largest constants are those of a channel.
    """
    one = Predictor(path, batch_sizes=(1,), precisions=("high",))
    assert one.precisions == ("high",)
    norms, input_steps, scale = 2 * 3 * 16, 2, 4  # gain, offset, and the scale of the layer
    assert predictor.bytes - one.bytes == 4 * (norms + input_steps + scale)
    assert one.bytes > 64 * 16 + 16 * 16 + 16 * 4
    for program in predictor._programs.values():
        shapes = re.findall(r"\[([\d,]*)\]\S* constant\(", program.compiled.as_text())
        assert shapes
        assert all(np.prod([int(n) for n in s.split(",") if n]) <= 16 for s in shapes)


def test_three_modes_and_a_layer_of_float_weights(images, tmp_path):
    """Not a network of codes alone: the training forward runs, with modes of any name."""
    names = ("narrow", "middle", "wide")
    layers = {"dense2": dict.fromkeys(names, "w32a32")}
    widths = dict(zip(names, ("w2a2", "w4a4", "w8a8"), strict=True))
    model = MLP(num_classes=4, modes=modes(layers, **widths), hidden=(16, 16))
    variables = initial_variables(model, EXAMPLE, seed=0)
    description = {**DESCRIPTION, **model.modes.to_json()}
    save_packed(tmp_path / "net", model, variables, description, EXAMPLE)
    cascade = Cascade("narrow", "wide", threshold=100.0)  # so that every row goes on
    three = Predictor(tmp_path / "net", batch_sizes=(10,), cascade=cascade)
    assert not three.on_codes
    assert three.precisions == names
    wide = three.predict(images, "wide")
    np.testing.assert_allclose(three.predict(images, "auto"), wide, rtol=1e-5, atol=1e-5)
    other = dataclasses.replace(cascade, then="middle")
    with pytest.raises(ValueError, match="expected one of 'narrow' and 'wide'"):
        three.answer(images, other)


def test_low_alone_reads_its_prefix(path, predictor, images, tmp_path):
    first = tmp_path / "first"
    first.write_bytes(path.read_bytes()[: predictor.info.bytes_read["low"]])
    low = Predictor(first, batch_sizes=(4,), precisions=["low"])
    np.testing.assert_array_equal(
        low.predict(images[:4], "low"), predictor.predict(images[:4], "low")
    )
    with pytest.raises(ValueError, match=r"precision 'high': expected one of \['low'\] "):
        low.predict(images, "high")
    with pytest.raises(ValueError, match="precision 'auto': expected a cascade"):
        low.predict(images, "auto")


@pytest.mark.parametrize("stored", [{"colour": 1}, [1], {"first": ["low"], "expected": None}])
def test_a_cascade_that_this_program_cannot_read_concerns_auto_alone(
    path, images, tmp_path, stored
):
    newer = tmp_path / "net"
    newer.write_bytes(path.read_bytes())
    amend_metadata(newer, {"cascade": stored})
    own = Predictor(newer, batch_sizes=(4,), precisions=["low"])
    assert own.cascade is None
    assert own.predict(images, "low").shape == (10, 4)
    with pytest.raises(ValueError, match=r"'auto': the file holds a cascade of .*again"):
        own.predict(images, "auto")


def test_one_class_has_no_cascade(images, tmp_path):
    description = {**DESCRIPTION, "num_classes": 1}
    model = build_from(description)
    save_packed(
        tmp_path / "net", model, initial_variables(model, EXAMPLE, seed=0), description, EXAMPLE
    )
    one = Predictor(tmp_path / "net", batch_sizes=(4,), precisions=["low"])
    assert one.predict(images, "low").shape == (10, 1)
    amend_metadata(tmp_path / "net", {"cascade": CASCADE.to_json()})
    stored = Predictor(tmp_path / "net", batch_sizes=(4,))
    with pytest.raises(ValueError, match=r"'auto': the file holds a cascade of .* two classes"):
        stored.predict(images, "auto")
    with pytest.raises(ValueError, match=r"gives \[1\] a row: .* at least two classes"):
        Predictor(tmp_path / "net", batch_sizes=(4,), cascade=CASCADE)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_sizes": ()}, "at least one"),
        ({"batch_sizes": (0, 8)}, "each 1 or more"),
        ({"batch_sizes": (1.5,)}, r"batch_sizes \[1.5\]: expected at least one whole number"),
        ({"precisions": ["float"]}, r"expected some of \['low', 'high'\]"),
        ({"precisions": ["low"], "cascade": CASCADE}, r"modes that are loaded, \['low'\]"),
    ],
)
def test_settings_refused(path, arguments, message):
    with pytest.raises(ValueError, match=message):
        Predictor(path, **arguments)


@pytest.mark.parametrize(
    "wrong",
    [
        np.zeros((1, 8, 8), np.uint8),
        np.zeros((1, 8, 8, 3), np.uint8),
        np.zeros((1, 8, 8, 1), np.float32),
        [[0]],
    ],
    ids=["no batch", "channels", "floats", "no array"],
)
@pytest.mark.parametrize("precision", ["low", "auto"])
def test_images_refused(predictor, wrong, precision):
    with pytest.raises(ValueError, match=r"expected uint8 \[N, 8, 8, 1\]"):
        predictor.predict(wrong, precision)


def test_batches_waste_less_than_half():
    sizes = (2, 8, 64)
    for count in range(200):
        chosen = batches(count, sizes)
        assert sum(chosen) >= count
        assert sum(chosen[:-1]) < count or not chosen
        assert sum(chosen) <= max(2 * count, 2 * (count > 0))
