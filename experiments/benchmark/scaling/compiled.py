"""The program of a child of `scale`: compiles a train step for all devices, and runs nothing.

    python -m experiments.benchmark.scaling.compiled resnet20 128

Prints what it found as one line of JSON. How many devices there are must be said before JAX starts,
by JAX_NUM_CPU_DEVICES: hence a process for each number.
"""

import dataclasses
import json
import sys
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from dual_precision.models import build, build_from
from dual_precision.precision import FLOAT_NAME, modes
from dual_precision.structure import structure_of
from dual_precision.tasks.classification import Classification
from dual_precision.tasks.task import Network
from dual_precision.training.compilation import RUNS_ONCE, compiler_options
from dual_precision.training.phases import Phase, stages_of
from dual_precision.training.sharding import batch_mesh, place_batches, replicate
from dual_precision.training.state import TrainState
from dual_precision.training.step import compile_steps
from experiments.benchmark.scaling.collectives import collectives_in
from experiments.lm.training import language_task
from experiments.recipes.language_config import LanguageConfig
from experiments.recipes.two_phase import TwoPhase

IMAGES, TEXT = 50_000, 1 << 20  # of the training split, whole on every device
TRANSFORMER = "transformer"
Abstract: Any = jax.ShapeDtypeStruct  # it goes where arrays go


def network_and_data(name: str) -> tuple[Network, Phase, Any]:
    """The network, the phase that trains both its modes, and the shapes of its training split."""
    if name == TRANSFORMER:
        config = LanguageConfig()
        network = Network(build_from(config.network()), language_task(config))
        return network, config.recipe.phases()[-1], {"text": Abstract((TEXT,), jnp.uint8)}
    model = build(name, num_classes=10, modes=modes(low="w2a2", high="w8a8"))
    images, labels = Abstract((IMAGES, 32, 32, 3), jnp.uint8), Abstract((IMAGES,), jnp.int32)
    data = {"images": images, "labels": labels}
    return Network(model, Classification((32, 32, 3))), TwoPhase().phases()[-1], data


def compile_abstract(network: Network, phase: Phase, data: Any, rows: int) -> tuple[Any, int]:
    """The compiled step, with `rows` examples on each device, and the bytes of the parameters."""
    model, example = network.model, network.task.example
    (stage,) = stages_of([phase], structure_of(model, example), 1)
    batch = rows * jax.device_count()
    inputs = Abstract((1, *example.shape), example.dtype)
    variables = jax.eval_shape(partial(model.init, precision=FLOAT_NAME), jax.random.key(0), inputs)
    params = variables["params"]
    state = TrainState(
        Abstract((), jnp.int32),
        params,
        variables.get("batch_stats", {}),
        dict.fromkeys(phase.precisions, ()),
        jax.eval_shape(stage.optimizer.init, params),
    )
    mesh = batch_mesh(batch)
    order = place_batches(Abstract((1, batch), jnp.int32), mesh)
    step = compile_steps(network, stage, jax.random.key(0), mesh)
    lowered = step.lower(replicate(state, mesh), replicate(data, mesh), order)  # type: ignore[attr-defined]
    # Machine code that nobody runs needs no care; what is sent and kept is the same.
    compiled = lowered.compile(compiler_options=compiler_options() | RUNS_ONCE)
    return compiled, sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(params))


def describe_step(network: Network, phase: Phase, data: Any, rows: int) -> dict[str, Any]:
    """What a compiled step sends, computes and keeps, on each device."""
    compiled, parameters = compile_abstract(network, phase, data, rows)
    memory = compiled.memory_analysis()
    return {
        "devices": jax.device_count(),
        "rows": rows,
        "parameters": parameters,
        "operations": compiled.cost_analysis()["flops"],
        "state": memory.alias_size_in_bytes,  # given away by the step, and taken again
        "data": memory.argument_size_in_bytes - memory.alias_size_in_bytes,
        "temporary": memory.temp_size_in_bytes,
        "collectives": [dataclasses.astuple(c) for c in collectives_in(compiled.as_text())],
    }


def main(name: str, batch_size: str) -> None:
    """Prints `describe_step` of a network by name; the transformer has its own batch."""
    network, phase, data = network_and_data(name)
    rows = LanguageConfig().batch_size if name == TRANSFORMER else int(batch_size)
    print(json.dumps({"model": name, **describe_step(network, phase, data, rows)}))


if __name__ == "__main__":
    main(*sys.argv[1:])
