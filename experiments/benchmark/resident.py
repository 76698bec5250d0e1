"""Bytes that networks take in the memory of a process; part of the sub-command `engines`.

A fresh process imports ONNX Runtime, loads the files, asks each once for every mode, and says how
much more of it is resident than before it loaded them.
"""

import ctypes
import gc
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dual_precision.deploy.export.onnx.file import EngineNetwork
from experiments.benchmark.machine import process_memory


def resident_bytes(small: Path, files: Sequence[Path]) -> int:
    """What the files take together, in a process of their own.

    Args:
      small: another file, loaded before, so that what any session takes is not counted.

    Raises:
      ValueError: that process failed; with what it wrote.
    """
    words = [sys.executable, "-m", __name__, *map(str, [small, *files])]
    found = subprocess.run(words, capture_output=True, text=True, check=False)
    if found.returncode:
        raise ValueError(f"{words} failed: {found.stderr[-500:]}")
    return int(found.stdout.split()[-1])


def _load(path: str) -> EngineNetwork:
    network = EngineNetwork(path)
    images = np.zeros((1, *network.example.shape), network.example.dtype)
    for mode in network.precisions:
        network.predict(images, mode)
    return network


def _resident() -> int:
    gc.collect()
    if sys.platform == "linux":  # what is free goes back to the system
        ctypes.CDLL(None).malloc_trim(0)
    return process_memory()


def _main(small: str, *files: str) -> None:
    own = [_load(small)]
    before = _resident()
    own += map(_load, files)
    print(_resident() - before)


if __name__ == "__main__":
    _main(*sys.argv[1:])
