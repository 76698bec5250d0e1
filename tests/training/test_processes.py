"""What is set before a process joins others."""

import os
import subprocess
import sys

import pytest

SAY = """
import os
from jax._src.distributed import global_state
from dual_precision.training.processes import _cut_sums_alike
global_state.num_processes = {processes}
_cut_sums_alike()
print(os.environ.get("NPROC"))
"""


@pytest.mark.parametrize(
    ("processes", "environment", "threads"),
    [
        (2, {"JAX_NUM_CPU_DEVICES": "400"}, "800"),  # as one process of 800 devices has
        (1, {"XLA_FLAGS": "--xla_force_host_platform_device_count=800"}, "800"),
        (800, {}, "None"),  # a device each, as on 800 machines: theirs alone
        (2, {"JAX_NUM_CPU_DEVICES": "400", "NPROC": "7"}, "7"),
    ],
)
def test_sums_are_cut_alike_in_all_layouts_of_virtual_devices(processes, environment, threads):
    clean = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    words = [sys.executable, "-c", SAY.format(processes=processes)]
    said = subprocess.run(words, env={**clean, **environment}, capture_output=True, text=True)
    assert said.stdout == f"{threads}\n", said.stderr
