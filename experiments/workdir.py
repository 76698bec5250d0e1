"""The folder of a run: its config, and whether it may be used."""

import contextlib
import fcntl
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dual_precision.deploy.file.writer import write_parts
from dual_precision.training.checkpoint import Checkpoints
from experiments.recipes.config import PRESETS, Config, config_from
from experiments.recipes.names import run_folder
from experiments.recipes.settings import read_widths

CONFIG = "config.json"
LARGEST_JSON = 64 << 20  # bytes
DEEPEST_JSON = 32  # lists and objects in each other
RESULTS = "results.json"  # that it is there says that the run is finished
_LOCK = ".lock"


def in_use(workdir: Path) -> bool:
    """Whether a process holds `workdir`."""
    if not (workdir / _LOCK).exists():
        return False
    with (workdir / _LOCK).open("a") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


@contextlib.contextmanager
def only_user(workdir: Path) -> Iterator[None]:
    """Holds `workdir` for this process; the kernel lets go of it when the process ends, however.

    Raises:
      ValueError: another process holds it.
      OSError: it cannot be written.
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        handle = (workdir / _LOCK).open("a")
    except OSError as error:
        raise OSError(
            f"workdir {workdir} cannot be written ({error.strerror}): choose another --workdir"
        ) from error
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(
                f"workdir {workdir} is in use by another process: wait for its end,"
                " or choose another --workdir"
            ) from None
        yield


def default_workdir(config: Config, preset: str) -> Path:
    """runs/cifar10-two_phase-joint-w2a2-w8a8-quick-seed0"""
    return run_folder([config.dataset], config, preset, PRESETS[preset])


def write_whole(path: Path, text: str) -> None:
    """Writes a file that is there as a whole or not at all, whenever the process is killed.

    Raises:
      ValueError, OSError: as `write_parts`.
    """
    write_parts(path, [text.encode()])


def has_begun(workdir: Path) -> bool:
    """Whether a run has checkpoints there."""
    return bool(Checkpoints(workdir).steps())


def open_workdir(workdir: Path, description: dict[str, Any], resume: bool) -> None:
    """Claims `workdir` for a run, writing its config.json, and says whether it goes on.

    Raises:
      ValueError: it holds another run's config, or checkpoints that `resume` forbids to use.
    """
    path, begun = workdir / CONFIG, has_begun(workdir)
    if begun and not resume:
        raise ValueError(
            f"workdir {workdir} has checkpoints and --resume=false was given:"
            " choose another --workdir, or delete this one"
        )
    if path.exists():
        _check_same(path, description)
    else:
        write_whole(path, json.dumps(description, indent=2) + "\n")
    if begun:
        print(f"going on with the run in {workdir} (--resume=false refuses to)")


def _check_same(path: Path, description: Mapping[str, Any]) -> None:
    changed = [
        f"{name} (there {found!r}, now {wanted!r})"
        for name, (found, wanted) in differences(path, description["experiment"]).items()
    ]
    if changed:
        raise ValueError(
            f"workdir {path.parent} holds a run with another config: {', '.join(changed)};"
            " choose another --workdir, or give the same settings"
        )


def differences(path: Path, wanted: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Field -> (in the config.json at `path`, wanted), where they differ.

    Raises:
      ValueError: the file is not a run's config.
    """
    found = read_description(path.parent)["experiment"]
    return {
        name: (found.get(name), value)
        for name, value in sorted(wanted.items())
        if found.get(name) != value
    }


def read_description(workdir: Path) -> dict[str, Any]:
    """What config.json of a run holds: preset, experiment and network.

    Raises:
      ValueError: `workdir` is not the folder of a run.
    """
    if not (workdir / CONFIG).exists():
        _check_folder(workdir)
        raise ValueError(
            f"{workdir} has no {CONFIG}: expected the folder of a run of a command, such as `python"
            " -m experiments.cifar`; what `fit` alone leaves is read by dual_precision.load, and"
            " packed by dual_precision.deploy.save_packed"
        )
    try:
        found = read_json(workdir / CONFIG)
        if not isinstance(found, dict):
            raise ValueError(f"{type(found).__name__}, no fields")
        found = {"preset": "", "network": {}, **found}
        for part, kind in (("experiment", dict), ("network", dict), ("preset", str)):
            if not isinstance(found.get(part), kind):
                raise ValueError(f"{part!r} is {str(found.get(part))[:80]}")
    except ValueError as error:
        raise ValueError(
            f"{workdir / CONFIG} is not a run's config ({error}): use another --workdir"
        ) from None
    return found


def _check_folder(workdir: Path) -> None:
    if not workdir.is_dir():
        raise ValueError(
            f"there is no folder {workdir}: expected that of a run; check the path, or start the"
            " run first"
        )


def read_rows(workdir: Path) -> list[dict[str, Any]]:
    """The rows of results.json: a mode and its accuracies in percent, or its bits per byte of a
    text, each a finite number.

    Raises:
      ValueError: the run there is not finished, or the file is something else.
    """
    if not (workdir / RESULTS).exists():
        _check_folder(workdir)
        raise ValueError(
            f"{workdir} has no {RESULTS}: expected a finished run; start its command again, it goes"
            " on"
        )
    found = read_json(workdir / RESULTS)
    rows = checked_rows(found.get("rows") if isinstance(found, dict) else None, workdir / RESULTS)
    if not rows:
        raise ValueError(f"{workdir / RESULTS} has no rows: start the command of that run again")
    return rows


def checked_rows(rows: Any, where: Any) -> list[dict[str, Any]]:
    """The rows of a run, if they are such; of a file that says it has some.

    Raises:
      ValueError: they are something else.
    """
    if not isinstance(rows, list) or not all(map(_is_row, rows)):
        raise ValueError(
            f"{where}: expected rows of a mode, its bits and its accuracies; start the command of"
            " that run again"
        )
    return rows


def _is_row(row: Any) -> bool:
    if not isinstance(row, dict):
        return False
    texts = row.get("mode"), row.get("bits", "")
    finite = sys.float_info.max
    most = {"validation": 100, "test": 100, "validation_bits": finite, "test_bits": finite}
    right = all(
        type(row[name]) in (int, float) and 0 <= row[name] <= most[name]
        for name in most.keys() & row.keys()
    )
    return right and all(isinstance(text, str) for text in texts)


def read_json(path: Path, expected: str = "of a run") -> Any:
    """What a JSON file holds.

    Args:
      expected: what it should hold, as errors say it.

    Raises:
      ValueError: it is larger than LARGEST_JSON, no JSON, or nested deeper than DEEPEST_JSON.
      OSError: it cannot be read.
    """
    with path.open("rb") as file:
        raw = file.read(LARGEST_JSON + 1)  # so much of a device, too, which has no size
    if len(raw) > LARGEST_JSON:
        raise ValueError(f"{path}: over {LARGEST_JSON >> 20} MiB: expected JSON {expected}")
    try:
        found = json.loads(raw, parse_constant=_refuse_constant)
        _check_depth(found)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON ({error}): expected JSON {expected}") from None
    return found


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")


def _check_depth(value: Any) -> None:
    """What is nested is compared and printed by functions that call themselves."""
    level = [value] if isinstance(value, dict | list) else []
    for _ in range(DEEPEST_JSON):
        parts = (part.values() if isinstance(part, dict) else part for part in level)
        level = [inner for part in parts for inner in part if isinstance(inner, dict | list)]
        if not level:
            return
    raise ValueError(f"nested deeper than {DEEPEST_JSON} lists and fields")


def config_of_run(workdir: Path) -> Config:
    """The Config of a run on images.

    Raises:
      ValueError: not the folder of such a run, or one of a recipe that this version does not have.
    """
    found = read_description(workdir)["experiment"]
    try:
        return config_from({**found, "widths": read_widths(found.get("widths"))})
    except ValueError as error:
        raise ValueError(
            f"{workdir / CONFIG}: {error}; expected the folder of a run of experiments.cifar"
        ) from None
