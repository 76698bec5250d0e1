"""A file that is replaced as a whole."""

import os
import secrets
from collections.abc import Iterable
from pathlib import Path


def replace_file(path: Path, parts: Iterable[bytes]) -> None:
    """Writes a file that is either there as a whole or not at all.

    Every writer prepares a file of its own beside it, with the rights that `open` gives: of several
    at once, that of the last one stands there. A writer that is killed may leave
    `NAME.16HEXDIGITS.part`, which nobody reads and which may be deleted.

    Raises:
      OSError: it cannot be written; what stood under `path` is as it was.
    """
    part = path.with_name(f"{path.name}.{secrets.token_hex(8)}.part")
    try:
        with part.open("xb") as file:
            file.writelines(parts)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the new name, too, survives a loss of power
    finally:
        os.close(folder)
