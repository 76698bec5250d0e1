"""LiteRT files of the modes: LiteRT answers as the network does."""

import jax.numpy as jnp
import numpy as np
import pytest

from dual_precision import modes
from dual_precision.deploy import load_packed, save_packed
from dual_precision.models import build_from
from dual_precision.tasks.classification import Classification
from dual_precision.training.state import initial_variables

pytest.importorskip("litert_converter")
pytest.importorskip("ai_edge_litert")

from dual_precision.deploy.export.litert import LiteNetwork, save_litert

pytestmark = pytest.mark.slow


def test_each_mode_answers_as_the_network(tmp_path):
    network = {
        "name": "resnet8", "num_classes": 3, "widths": [4, 8], "stage_sizes": [1, 1],
        **modes(low="w2a2", high="w8a8").to_json(),
    }  # fmt: skip
    model, example = build_from(network), Classification((8, 8, 3)).example
    path = tmp_path / "net"
    save_packed(path, model, initial_variables(model, example, 0), network, example)
    model, variables = load_packed(path)
    images = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), np.uint8)
    for mode in ("low", "high"):
        save_litert(tmp_path / mode, path, mode)
        engine = LiteNetwork(tmp_path / mode)
        expected = model.apply(variables, jnp.asarray(images), precision=mode)
        np.testing.assert_allclose(engine.predict(images), expected, atol=1e-4)
        assert engine.predict(images[:0]).shape == (0, expected.shape[1])
    with pytest.raises(ValueError, match=r"inputs uint8\[4, 8, 8, 2\]: expected uint8\[N, 8, 8, 3"):
        engine.predict(images[..., :2])
    with pytest.raises(ValueError, match=r"precision 'float': expected one of \['low', 'high'\]"):
        save_litert(tmp_path / "none", path, "float")
    (tmp_path / "text").write_text("no graph")
    with pytest.raises(ValueError, match="LiteRT does not load it"):
        LiteNetwork(tmp_path / "text")
