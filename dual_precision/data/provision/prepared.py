"""A prepared TFDS directory: open, write, read, verify. TFDS is imported only when called."""

import contextlib
import io
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from dual_precision.data.arrays import Images, canonical, digests
from dual_precision.data.catalog import Spec
from dual_precision.data.errors import DamagedData
from dual_precision.data.provision.archives import Raw
from dual_precision.data.provision.png import decode_png, encode_png

SPLITS = ("train", "test")
MANIFEST = "sha256.json"
_READ = 1000  # examples a batch


def open_builder(spec: Spec, data_dir: Path | None) -> Any:
    """TFDS's builder of a data set, over what is in `data_dir` (None: TFDS's own default).

    Raises:
      DamagedData: there is a directory for it that TFDS cannot open.
    """
    import tensorflow_datasets as tfds

    # A relative path would be taken apart differently by TFDS and by us.
    where = None if data_dir is None else str(data_dir.absolute())
    try:
        if spec.layout == "sklearn":
            from dual_precision.data.provision.digits import Digits

            return Digits(data_dir=where)
        return tfds.builder(spec.name, data_dir=where)
    except Exception as error:  # TFDS raises whatever its JSON and proto readers raise
        root = "TFDS's default directory" if where is None else where
        raise DamagedData(
            f"the {spec.name} under {root} cannot be opened ({_brief(error)}); delete that "
            "directory and start again, or name another as data_dir"
        ) from error


def write(spec: Spec, builder: Any, fetch: Callable[[Any], Raw] | None, *, downloads: Path) -> None:
    """Prepares a data set with TFDS's own builder, from arrays of ours.

    TFDS's own generators need TensorFlow, to read files and to encode arrays; ready PNGs do not.

    Args:
      spec: the data set.
      builder: of a data set that is not prepared.
      fetch: TFDS download manager -> arrays; None where the builder's generators are ours.
      downloads: where TFDS keeps what it downloads.
    """

    def split_generators(dl_manager: Any) -> dict[str, Any]:
        assert fetch is not None
        raw = fetch(dl_manager)
        features = builder.info.features
        if names := raw.class_names or spec.class_names:
            features["label"].names = list(names)
        if raw.coarse_names:
            features["coarse_label"].names = list(raw.coarse_names)
        return {split: _examples(raw, split, "id" in features) for split in SPLITS}

    if fetch is not None:
        builder._split_generators = split_generators
    builder.download_and_prepare(download_dir=downloads, file_format="array_record")


def _examples(raw: Raw, split: str, with_id: bool) -> Iterator[tuple[int, dict[str, Any]]]:
    examples: Images = getattr(raw, split)
    for i, (image, label) in enumerate(zip(examples.images, examples.labels, strict=True)):
        example: dict[str, Any] = {"image": encode_png(image), "label": int(label)}
        if with_id:
            example["id"] = f"{split}_{i:05d}"
        if raw.coarse is not None:
            example["coarse_label"] = int(raw.coarse[split][i])
        yield i, example


def read_prepared(spec: Spec, builder: Any, *, progress: bool) -> dict[str, Images]:
    """Reads both splits of a prepared data set into memory, in canonical order, and verifies them.

    Returns:
      {"train": ..., "test": ...}

    Raises:
      DamagedData: it cannot be read, or is not what was prepared; names the array and directory.
    """
    folder = Path(builder.data_path)
    try:
        splits = {split: _read_split(spec, builder, split, progress) for split in SPLITS}
    except NotImplementedError as error:
        raise DamagedData(
            f"the {spec.name} in {folder} is stored as {builder.info.file_format.value}, which "
            "only TensorFlow reads; expected array_record: name another directory as data_dir"
        ) from error
    except Exception as error:  # TFDS, array_record, protobuf and PIL each raise their own
        raise _damaged(spec, folder, f"cannot be read ({_brief(error)})") from error
    _verify(spec, folder, splits)
    return splits


def _read_split(spec: Spec, builder: Any, split: str, progress: bool) -> Images:
    import tensorflow_datasets as tfds

    # TFDS's own decoding of an image takes longer, and asks for OpenCV.
    as_stored = {"image": tfds.decode.SkipDecoding()}
    source = builder.as_data_source(split, decoders=as_stored)
    count = len(source)
    images = np.empty((count, *spec.image_shape), np.uint8)
    labels = np.empty(count, np.int32)
    ids = np.empty(count, object) if "id" in builder.info.features else None
    with tqdm(total=count, desc=f"read {spec.name} {split}", disable=not progress) as bar:
        for start in range(0, count, _READ):
            batch = range(start, min(start + _READ, count))
            for i, example in zip(batch, source.__getitems__(list(batch)), strict=True):
                images[i] = decode_png(example["image"], spec.image_shape)
                labels[i] = example["label"]
                if ids is not None:
                    ids[i] = example["id"]
            bar.update(len(batch))
    return canonical(Images(images, labels), None if ids is None else ids.astype(bytes))


def write_manifest(folder: Path, splits: dict[str, Images]) -> None:
    """Records beside a prepared set what it holds, so that damage is seen later."""
    record = {split: digests(examples) for split, examples in splits.items()}
    (folder / MANIFEST).write_text(json.dumps(record, indent=1) + "\n")


def _verify(spec: Spec, folder: Path, splits: dict[str, Images]) -> None:
    """Against the published digests, else against the manifest, else (not ours) not at all."""
    if spec.sha256:
        expected: Mapping[str, Any] = spec.sha256
    elif (folder / MANIFEST).exists():
        expected = _read_manifest(spec, folder)
    else:
        return
    for split, examples in splits.items():
        for what, got, want in _compare(examples, expected[split]):
            raise _damaged(spec, folder, f"has {split} {what} of sha256 {got}, expected {want}")


def _read_manifest(spec: Spec, folder: Path) -> dict[str, tuple[str, str]]:
    try:
        record = json.loads((folder / MANIFEST).read_text())
        return {split: (record[split][0], record[split][1]) for split in SPLITS}
    except (ValueError, TypeError, LookupError, OSError):
        raise _damaged(spec, folder, f"has an unreadable {MANIFEST}") from None


def _compare(examples: Images, known: tuple[str, str]) -> Iterator[tuple[str, str, str]]:
    """Yields (what, got, expected) for each array that differs."""
    for what, got, want in zip(("images", "labels"), digests(examples), known, strict=True):
        if got != want:
            yield what, got, want


def check_raw(spec: Spec, raw: Raw) -> None:
    """Refuses arrays that differ from the published ones; ValueError, before any is written."""
    for split, known in spec.sha256.items():
        for what, got, want in _compare(getattr(raw, split), known):
            raise ValueError(f"{split} {what} have sha256 {got}, expected {want}")


def _damaged(spec: Spec, folder: Path, how: str) -> DamagedData:
    return DamagedData(
        f"the {spec.name} in {folder} {how}; delete that directory and start again, or name "
        "another as data_dir"
    )


def _brief(error: Exception) -> str:
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return text if len(text) < 200 else f"{text[:200]} ..."


@contextlib.contextmanager
def quiet(progress: bool) -> Iterator[None]:
    """TFDS without its banners on stdout and its info log, and with bars only if wanted."""
    import tensorflow_datasets as tfds
    from absl import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    tfds.display_progress_bar(progress)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        tfds.display_progress_bar(True)  # its default; TFDS does not tell what it was
        logging.set_verbosity(verbosity)
