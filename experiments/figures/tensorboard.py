"""TensorBoard events through clu, for those who installed the extra [tensorboard]."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any


def listener(workdir: Path) -> Callable[[dict[str, Any]], None]:
    """A function that writes every number of a record as a scalar at its step."""
    try:
        from clu import metric_writers
    except ImportError as error:
        raise ValueError(
            f"--tensorboard needs what is not installed ({error.name}):"
            " pip install -e '.[tensorboard]'"
        ) from error

    @functools.cache
    def writer() -> Any:  # made at the first record: another run may have the folder until then
        return metric_writers.SummaryWriter(str(workdir / "tensorboard"))

    def write(record: dict[str, Any]) -> None:
        scalars = {key: value for key, value in record.items() if isinstance(value, int | float)}
        writer().write_scalars(record["step"], scalars)
        writer().flush()

    return write
