"""Modes of a packed file as NNP, the format of Neural Network Libraries, through its own converter.

    save_nnp("high.nnp", "net.safetensors", "high", python="nnabla/bin/python")
    NnpNetwork("high.nnp", python="nnabla/bin/python").predict(images)

nnabla 1.39 runs in Python 3.10 and less, and this package in 3.11 and more: so its converter and
its runtime are asked in a process of another Python, in which `pip install nnabla nnabla-converter`
was done. The converter reads the form "plain" of ONNX. It is not believed: what it does not know it
may leave out without a word, so that a file is worth what its answers are.
"""

import os
import subprocess
import tempfile
from pathlib import Path

import numpy as np

from dual_precision.deploy.export.onnx.file import save_onnx
from dual_precision.deploy.export.onnx.layers import PLAIN
from dual_precision.deploy.file.packed import Source
from dual_precision.deploy.file.writer import write_parts

_SECONDS = 600
_NEEDED = (
    "expected the python of an environment with it, as of `python3.10 -m venv nnabla` and"
    " `nnabla/bin/pip install nnabla nnabla-converter`"
)
_CONVERT = "import sys; from nnabla.utils.cli.cli import main; sys.exit(main())"
# A row at a time: the converter writes the sizes of one row into the network.
_RUN = """
import sys, numpy
from nnabla.utils.nnp_graph import NnpLoader
file = NnpLoader(sys.argv[1])
network = file.get_network(file.get_network_names()[0], batch_size=1)
given, made = network.inputs[sys.argv[4]], list(network.outputs.values())[0]
found = []
for row in numpy.load(sys.argv[2]):
    given.d = row[None]
    made.forward()
    found.append(made.d.copy())
numpy.save(sys.argv[3], numpy.concatenate(found))
"""


def save_nnp(
    path: str | os.PathLike, source: Source, precision: str, python: str | os.PathLike
) -> None:
    """Writes a mode of a packed file.

    Args:
      python: of an environment that has nnabla and nnabla-converter.

    Raises:
      ValueError: no nnabla there; the converter refuses, and why; see `save_onnx`.
      PackedError, OSError: as `load_packed`.
    """
    with tempfile.TemporaryDirectory() as folder:
        graph, out = Path(folder) / "net.onnx", Path(folder) / "net.nnp"
        save_onnx(graph, source, [precision], PLAIN)
        said = _asked(python, _CONVERT, "convert", "-b", "1", graph, out)
        if not out.exists():
            raise ValueError(f"the converter of nnabla does not take the network: {_last(said)}")
        write_parts(path, [out.read_bytes()])


class NnpNetwork:
    """A file of `save_nnp` in nnabla, of a process of its own.

    Args:
      python: as of `save_nnp`.
    """

    def __init__(self, path: str | os.PathLike, python: str | os.PathLike) -> None:
        self._path, self._python = os.fspath(path), python

    def predict(self, images: np.ndarray) -> np.ndarray:
        """Logits float32 [N, ...] of images [N, ...], one after the other.

        Raises:
          ValueError: no nnabla; no file that it loads, or images that it does not take.
        """
        with tempfile.TemporaryDirectory() as folder:
            given, made = Path(folder) / "given.npy", Path(folder) / "made.npy"
            np.save(given, images)
            named = Path(folder) / "net.nnp"  # nnabla asks the name of a file what it is
            named.symlink_to(Path(self._path).resolve())
            said = _asked(self._python, _RUN, named, given, made, "images")
            if not made.exists():
                raise ValueError(f"{self._path}: nnabla does not run it: {_last(said)}")
            found: np.ndarray = np.load(made)
            return found


def _asked(python: str | os.PathLike, program: str, *words: str | os.PathLike) -> str:
    """What a program says in another Python."""
    command = [os.fspath(python), "-c", program, *(os.fspath(word) for word in words)]
    # Nothing of this environment is a package of that one.
    own = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=_SECONDS, env=own
        )
    except OSError as error:
        raise ValueError(f"{python} does not start ({error.strerror}): {_NEEDED}") from None
    except subprocess.TimeoutExpired:
        raise ValueError(f"nnabla took more than {_SECONDS} s: expected less") from None
    said = done.stdout + done.stderr
    if "No module named 'nnabla" in said:
        raise ValueError(f"{python} has no nnabla: {_NEEDED}")
    return said


def _last(said: str) -> str:
    lines = [line.strip() for line in said.splitlines() if "Error" in line or "Failed" in line]
    return "; ".join(lines[-2:]) or said[-300:]
