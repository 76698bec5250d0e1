"""Accuracy and loss of a mode over a set, with clu.metrics."""

from collections.abc import Callable
from functools import cache

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from clu import metrics as clu_metrics
from flax import linen as nn

from dual_precision.training.compilation import compiler_options
from dual_precision.training.state import Tree


@flax.struct.dataclass
class EvaluationMetrics(clu_metrics.Collection):
    """Top-1 accuracy and mean cross entropy."""

    accuracy: clu_metrics.Accuracy
    loss: clu_metrics.Average.from_output("loss")  # type: ignore[valid-type]


@cache
def _batch_program(model: nn.Module, precision: str) -> Callable[..., EvaluationMetrics]:
    """The jitted evaluation of one batch, one for each model and mode."""

    def batch(variables: Tree, images: jax.Array, labels: jax.Array, mask: jax.Array):
        logits = model.apply(variables, images, precision=precision)
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return EvaluationMetrics.single_from_model_output(
            logits=logits, labels=labels, loss=loss, mask=mask
        )

    return jax.jit(batch, compiler_options=compiler_options())


def evaluate(
    model: nn.Module,
    variables: Tree,
    images: np.ndarray | jax.Array,
    labels: np.ndarray | jax.Array,
    *,
    precision: str,
    batch_size: int = 500,
) -> dict[str, float]:
    """{"accuracy", "loss"} of one mode over a whole set; one trace per precision.

    Args:
      images: uint8 [N, H, W, C]; labels: int [N].
    """
    if len(images) == 0:
        raise ValueError("no images to evaluate on: expected at least one")
    program = _batch_program(model, precision)
    total = EvaluationMetrics.empty()
    for start in range(0, len(images), batch_size):
        part, wanted = images[start : start + batch_size], labels[start : start + batch_size]
        missing = batch_size - len(part)
        mask = jnp.arange(batch_size) < len(part)
        if missing:  # pad the last batch, so that it runs through the same program
            part = np.pad(np.asarray(part), ((0, missing), *[(0, 0)] * (part.ndim - 1)))
            wanted = np.pad(np.asarray(wanted), (0, missing))
        total = total.merge(program(variables, part, wanted, mask))
    with jax.numpy_dtype_promotion("standard"):  # clu divides a float sum by an int count
        return {name: float(value) for name, value in total.compute().items()}
