"""What a mode is worth on a set of examples, with clu.metrics."""

from collections.abc import Callable
from functools import cache
from typing import Any

import jax
from clu import metrics as clu_metrics
from flax import linen as nn
from jax.sharding import Mesh

from dual_precision.precision import Asked, mode_of
from dual_precision.tasks.task import Batch, Network, State, Task, Tree
from dual_precision.training.compilation import compiler_options
from dual_precision.training.sharding import divide, mesh_of

EVALUATION_ROWS = 500  # of a batch, unless the task says `evaluation_rows`


@cache
def _batch_program(network: Network, mode: str | None) -> Callable[..., tuple[Any, State]]:
    """The jitted evaluation of one batch, one for each network and mode; None takes widths."""

    def batch(variables: Tree, carry: Tree, batch: Batch, mask: jax.Array, precision: Any):
        asked = precision if mode is None else mode
        state = {"batch_stats": variables.get("batch_stats", {}), "carry": carry}
        # A GPU would round inputs that are no codes, such as pixels, to 11 bits. ResNet-20 in w2a2
        # had other accuracies then, by up to 0.7 points on an H100, than what is deployed.
        with jax.default_matmul_precision("float32"):
            outputs, state = network(variables["params"], state, batch, precision=asked)
        measured = network.task.measures(outputs, batch)
        sums = {
            name: clu_metrics.Average.from_model_output(value, mask=mask)
            for name, value in measured.items()
        }
        return sums, state["carry"]

    return jax.jit(batch, compiler_options=compiler_options())


def evaluate(
    model: nn.Module,
    variables: Tree,
    split: Any,
    *,
    task: Task,
    precision: Asked,
    batch_size: int | None = None,
) -> dict[str, float]:
    """Name -> mean over a whole split, of what the task measures; one trace per mode.

    Args:
      split: examples of the task, such as `data.Images`.
      precision: a mode, or `Widths`, which are traced: one trace for all of them.
      batch_size: examples at a time, None is what the task says, or 500; a few more where the
        devices that the variables are on, of all processes, would not share them evenly.

    Raises:
      ValueError: a split of no examples.
    """
    own: int = getattr(task, "evaluation_rows", EVALUATION_ROWS)
    rows = own if batch_size is None else batch_size
    network = Network(model, task)
    named = precision if isinstance(precision, str) else None
    program = _batch_program(network, named)
    mesh = mesh_of(variables)
    rows += -rows % (mesh.size if mesh else 1)
    carry = _laid_over(mesh, {mode_of(precision): task.carry(rows)})
    total: dict[str, Any] = {}
    for batch, mask in task.batches(split, rows):
        batch, mask = _laid_over(mesh, (batch, mask))
        sums, carry = program(variables, carry, batch, mask, None if named else precision)
        total = {name: total[name].merge(new) if total else new for name, new in sums.items()}
    if not total:
        raise ValueError("nothing to evaluate on: expected at least one example")
    with jax.numpy_dtype_promotion("standard"):  # clu divides a float sum by an int count
        return {name: float(value.compute()) for name, value in total.items()}


def _laid_over(mesh: Mesh | None, rows: Any) -> Any:
    return rows if mesh is None else divide(rows, mesh)
