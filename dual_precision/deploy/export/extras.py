"""Packages that only exports need, and a clear word where one is missing."""

import importlib
from types import ModuleType


def needed(package: str, purpose: str) -> ModuleType:
    """The imported package.

    Raises:
      ValueError: it is not installed; the message says how to install it.
    """
    try:
        return importlib.import_module(package)
    except ImportError:
        raise ValueError(
            f"{purpose} needs the package {package.split('.')[0]!r}, which is not installed:"
            " pip install 'dual_precision[engines]', or pip install -e '.[engines]' in a clone"
        ) from None
