"""Digests that tell whether what is read is what was written."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.tree_util import keystr, tree_flatten_with_path

from dual_precision.tasks.task import Tree


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
