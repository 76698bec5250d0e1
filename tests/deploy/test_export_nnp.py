"""NNP: nnabla answers as the network, where a Python with it is; clear words where none is."""

import os
import sys

import numpy as np
import pytest

from dual_precision import modes
from dual_precision.deploy import load_packed, save_packed
from dual_precision.models import build_from
from dual_precision.tasks.classification import Classification
from dual_precision.training.state import initial_variables

pytest.importorskip("onnx")

from dual_precision.deploy.export.nnp import NnpNetwork, save_nnp

pytestmark = pytest.mark.slow

NNABLA = os.environ.get("NNABLA_PYTHON")  # of an environment that has nnabla
NETWORK = {
    "name": "resnet8", "num_classes": 3, "widths": [4, 8], "stage_sizes": [1, 1],
    "mean": [0.5] * 3, "std": [0.25] * 3, **modes(low="w2a2", high="w8a8").to_json(),
}  # fmt: skip
IMAGES = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), np.uint8)


@pytest.fixture
def packed(tmp_path):
    model, example = build_from(NETWORK), Classification((8, 8, 3)).example
    path = tmp_path / "net"
    save_packed(path, model, initial_variables(model, example, 0), NETWORK, example)
    return path


@pytest.mark.skipif(NNABLA is None, reason="NNABLA_PYTHON names no Python that has nnabla")
def test_each_mode_answers_as_the_network(packed):
    model, variables = load_packed(packed)
    for mode in ("low", "high"):
        out = packed.with_name(f"{mode}.nnp")
        save_nnp(out, packed, mode, NNABLA)
        expected = model.apply(variables, IMAGES, precision=mode)
        # nnabla rounds halves away from zero: of these images there is none.
        np.testing.assert_allclose(NnpNetwork(out, NNABLA).predict(IMAGES), expected, atol=1e-4)
    (packed.with_name("text.nnp")).write_text("no network")
    with pytest.raises(ValueError, match="nnabla does not run it"):
        NnpNetwork(packed.with_name("text.nnp"), NNABLA).predict(IMAGES)


def test_a_python_without_nnabla(packed):
    out = packed.with_name("low.nnp")
    for python, why in ((sys.executable, "has no nnabla"), ("no-such-python", "does not start")):
        with pytest.raises(ValueError, match=f"{why}.*expected the python of an environment"):
            save_nnp(out, packed, "low", python)
        with pytest.raises(ValueError, match=why):
            NnpNetwork(out, python).predict(IMAGES)
    assert not out.exists()
