"""With jax_enable_x64, where numbers without a dtype have 64 bits, all is as it is without."""

import os
import subprocess
import sys
from pathlib import Path

_CHILD = """
import sys
import jax, jax.numpy as jnp, numpy as np

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
assert jnp.zeros(1).dtype == jnp.float64

from dual_precision import Widths, data, load, modes
from dual_precision.deploy import Cascade, Predictor, load_packed, save_packed, to_integer
from dual_precision.deploy.planes.bit_layers import to_bit_layers
from dual_precision.models import build_from
from dual_precision.primitives.bitserial import pack_words, plane_dot, plane_dot_pallas
from dual_precision.tasks.classification import Classification
from dual_precision.training.fit import fit
from dual_precision.training.options import FitOptions
from experiments.recipes.config import make_config

folder = sys.argv[1]
generator = np.random.default_rng(0)
images = generator.integers(0, 256, (32, 4, 4, 1)).astype(np.uint8)
labels = generator.integers(0, 3, 32).astype(np.int32)
split = data.Images(images, labels)
own = modes(low="w2a2", high="w8a8g8")
network = {"name": "mlp", "num_classes": 3, "hidden": [8, 8], **own.to_json()}
model, task = build_from(network), Classification((4, 4, 1), label_smoothing=0.1)
settings = {"mode": "joint", "split": False, "passes": 2.0}
phases = make_config("digits", settings).recipe.phases()
state = fit(
    model, task, phases, split, split, FitOptions(batch_size=16), folder, {"network": network}
)
assert int(state.step) == 2
kinds = {leaf.dtype.name for leaf in jax.tree.leaves(state)}
assert kinds <= {"float32", "int32"}, kinds

model, variables = load(folder)
file = folder + "/net.safetensors"
save_packed(file, model, variables, network, task.example)
again, loaded = load_packed(file)
predict = jax.jit(lambda model, variables, precision: model.apply(
    variables, images, precision=precision), static_argnums=(0, 2))
for mode in ("low", "high"):
    logits = predict(model, variables, mode)
    assert logits.dtype == jnp.float32
    np.testing.assert_array_equal(predict(again, loaded, mode), logits)
traced = Widths("high", weights=jnp.asarray(3), activations=jnp.asarray(4))
assert model.apply(variables, images, precision=traced).dtype == jnp.float32
predictor = Predictor(file, (8,), cascade=Cascade("low", "high", 1.0))
assert predictor.predict(images, "auto").dtype == np.float32
integer, integers = to_integer(model, variables, task.example)
assert integer.apply(integers, images, precision="low").dtype == jnp.float32
layered, planes = to_bit_layers(model, variables, task.example)
assert layered.apply(planes, images, precision="w4a16").dtype == jnp.float32

words = pack_words(jnp.asarray(generator.integers(-128, 128, (40, 3)), jnp.int32), 8)
x = jnp.asarray(generator.integers(-128, 128, (2, 40)), jnp.int8)
dots = plane_dot(x, words, 5), plane_dot_pallas(x, words, 5, interpret=True)
assert dots[0].dtype == jnp.int32
np.testing.assert_array_equal(*dots)
print("done")
"""


def test_a_network_is_trained_packed_and_loaded(tmp_path):
    """In a process of its own: the setting holds for all of one."""
    done = subprocess.run(
        [sys.executable, "-c", _CHILD, str(tmp_path / "run")],
        cwd=Path(__file__).parents[1],
        env={**os.environ, "JAX_ENABLE_X64": "1", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.splitlines()[-1] == "done"
