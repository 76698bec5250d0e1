"""Language models in other engines: each mode answers as the network, of any number of texts."""

from functools import partial

import jax
import numpy as np
import pytest

from dual_precision import modes
from dual_precision.deploy import load_packed, save_packed
from dual_precision.deploy.export.onnx import operations
from dual_precision.models import build_from
from dual_precision.tasks.language import NextByte
from dual_precision.training.state import initial_variables

pytest.importorskip("onnxruntime")
pytest.importorskip("flatbuffers")

from dual_precision.deploy.export.extras import needed
from dual_precision.deploy.export.onnx.file import EngineNetwork, save_onnx
from dual_precision.deploy.export.stablehlo import Programs, save_programs

pytestmark = pytest.mark.slow

EXAMPLE = NextByte(6).example
NETWORKS = {
    "transformer": {"features": 16, "depth": 1, "heads": 2, "context": 6},
    "lstm": {"features": 16, "depth": 2},
}
TEXTS = np.random.default_rng(0).integers(0, 256, (3, 6), np.uint8)


@pytest.fixture(scope="module", params=NETWORKS)
def packed(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("language") / request.param
    widths = modes(low="w4a8", high="w8a8").to_json()
    network = {"name": request.param, **NETWORKS[request.param], **widths}
    model = build_from(network)
    save_packed(path, model, initial_variables(model, EXAMPLE, 0), network, EXAMPLE)
    model, variables = load_packed(path)
    expected = {
        mode: np.asarray(jax.jit(partial(model.apply, precision=mode))(variables, TEXTS))
        for mode in ("low", "high")
    }
    return path, expected


def test_programs_share_the_codes(packed):
    path, expected = packed
    out = path.with_suffix(".programs")
    save_programs(out, path, platforms=["cpu"])
    programs = Programs(out)
    for mode, own in expected.items():
        np.testing.assert_array_equal(programs.predict(TEXTS, mode), own)
        np.testing.assert_allclose(programs.predict(TEXTS[:1], mode), own[:1], atol=1e-4)


@pytest.mark.parametrize("form", ["exact", "plain"])
def test_onnx_runtime_answers_as_the_network(packed, form):
    path, expected = packed
    out = path.with_suffix(f".{form}")
    save_onnx(out, path, form=form)
    engine = EngineNetwork(out, threads=1)
    for mode, own in expected.items():
        # A code may fall on the other side where rounding differs: of these texts none does.
        np.testing.assert_allclose(engine.predict(TEXTS, mode), own, atol=1e-4)
        np.testing.assert_allclose(engine.predict(TEXTS[:1], mode), own[:1], atol=1e-4)
    onnx = needed("onnx", "a test")
    kinds = {tensor.data_type for tensor in onnx.load(out).graph.initializer}
    narrow = {onnx.TensorProto.INT8, onnx.TensorProto.INT16}
    assert bool(narrow & kinds) == (form == "exact")


def test_products_in_halves_of_codes(packed, monkeypatch):
    """Both modes have the initializers of the top halves, once in a file."""
    path, expected = packed
    monkeypatch.setattr(operations, "LEAST", 1)
    save_onnx(out := path.with_suffix(".nibbles"), path, form="nibbles")
    engine = EngineNetwork(out, threads=1)
    for mode, own in expected.items():
        found = engine.predict(TEXTS, mode)
        assert np.abs(found - own).max() < 0.15 * np.abs(own).max(), mode
    nodes = needed("onnx", "a test").load(out).graph.node
    given = [node.input[1] for node in nodes if node.op_type == "MatMulNBits"]
    assert len(given) > len(set(given)), "no initializer of two products"


def test_what_is_no_form_of_them(packed):
    path, _ = packed
    with pytest.raises(ValueError, match="form 'integer' of a network whose layers have calls"):
        save_onnx(path.with_suffix(".none"), path, form="integer", calibration=TEXTS)
    with pytest.raises(ValueError, match=r"form 'nibbles' has no effect on .*: expected one with"):
        save_onnx(path.with_suffix(".none"), path, form="nibbles")
