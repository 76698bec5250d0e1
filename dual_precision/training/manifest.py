"""Digests and sizes that tell whether what is read is what was written."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.tree_util import keystr, tree_flatten_with_path

from dual_precision.tasks.task import Tree

LARGEST_FILE = 64 << 20  # bytes, of what is read whole: the JSON and the index of a checkpoint
_ARRAYS = "d"  # Orbax keeps arrays in folders of this name, and reads of them what its index says


def manifest(tree: Tree) -> dict[str, str]:
    """Leaf path -> sha256 of its dtype, shape and bytes."""
    return {keystr(path): _digest(leaf) for path, leaf in tree_flatten_with_path(tree)[0]}


def _digest(leaf: Any) -> str:
    array = np.ascontiguousarray(jax.device_get(leaf))
    digest = hashlib.sha256(f"{array.dtype}{array.shape}".encode())
    digest.update(array.tobytes())
    return digest.hexdigest()


def seal_of(about: Mapping[str, Any]) -> str:
    """sha256 of JSON."""
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()


def check_sizes(folder: Path) -> None:
    """Raises ValueError where a file that is read whole is larger than any that was written."""
    for path in folder.rglob("*"):
        if path.parent.name != _ARRAYS and path.is_file() and path.stat().st_size > LARGEST_FILE:
            raise ValueError(
                f"{path.name} has {path.stat().st_size} bytes: expected at most {LARGEST_FILE}"
            )
