"""Preparing what is stored in a directory of its own, by one process at a time, for one rename."""

import contextlib
import errno
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

# What a rename onto a directory that holds something gives; which of them, the system decides.
_NOT_EMPTY = {errno.ENOTEMPTY, errno.EEXIST}


@contextlib.contextmanager
def staging_below(root: Path, name: str) -> Iterator[Path]:
    """A directory to prepare in, on the target's disk. Call it with the lock held.

    It is removed at the end; one that a killed process left is removed at the start.
    """
    prefix = f".preparing-{name}-"
    for left in root.glob(f"{prefix}*"):
        shutil.rmtree(left, ignore_errors=True)
    staging = Path(tempfile.mkdtemp(prefix=prefix, dir=root))
    try:
        yield staging
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def move_into_place(staged: Path, target: Path) -> None:
    """One rename, so that no half of a data set is ever in place.

    Raises:
      OSError: it cannot be moved, and not because the target is there.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        staged.rename(target)
    except OSError as error:
        # Where locks do not work another process can have been first, with the same data.
        if error.errno not in _NOT_EMPTY:
            raise


@contextlib.contextmanager
def lock_preparing(root: Path, name: str) -> Iterator[None]:
    """Lets one process at a time prepare; ends with the process, however that ends."""
    try:
        import fcntl
    except ImportError:  # Windows: the rename at the end still keeps the result whole
        yield
        return
    with open(root / f".preparing-{name}.lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"waiting for another process that prepares {name} in {root}", file=sys.stderr)
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError:  # a file system without locks
            pass
        yield
