"""Packages that only exports need, and a clear word where one is missing."""

import importlib
from types import ModuleType


def needed(package: str, purpose: str, extra: str = "engines") -> ModuleType:
    """The imported package, which an extra of ours installs.

    Raises:
      ValueError: it is not installed; the message says how to install it.
    """
    try:
        return importlib.import_module(package)
    except ImportError:
        raise ValueError(
            f"{purpose} needs the package {package.split('.')[0]!r}, which is not installed:"
            f" pip install 'dual_precision[{extra}]', or pip install -e '.[{extra}]' in a clone"
        ) from None
