"""Where the CPU kernel cannot be had, one log line says why, and nothing is raised."""

import dataclasses
import logging
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from dual_precision.primitives.native import build, convolution, decoder, planes, recurrence


def available() -> bool:
    """Without the answer of this process, which stays as it is."""
    return build._why_not.__wrapped__(planes.KERNEL) is None


# Parts of a shell script that stands for a compiler; it finds no other command.
VERSION = '[ "$1" = --version ] && { echo 1.0; exit; }'
LAST = "for last; do :; done"  # the last argument is the file to write


@pytest.fixture
def lines(caplog, monkeypatch):
    """What is logged, whatever other tests did to the logger."""
    monkeypatch.setattr(build._LOG, "propagate", True)
    monkeypatch.delenv(build.SWITCH, raising=False)
    caplog.set_level(logging.INFO, "dual_precision")
    return lambda: [record.getMessage() for record in caplog.records]


@pytest.fixture
def fit_cpu(monkeypatch, tmp_path):
    """This CPU passes for one that has all that is needed."""
    (tmp_path / "cpuinfo").write_text(f"flags : {' '.join(planes.KERNEL.needed)}\n")
    monkeypatch.setattr(build, "_CPU", tmp_path / "cpuinfo")


@pytest.fixture
def compiler(monkeypatch, tmp_path, fit_cpu):
    """Puts a shell script in the place of every compiler; its cache is empty."""

    def place(script: str) -> Path:
        folder = tmp_path / "bin"
        folder.mkdir()
        (folder / "c++").write_text(f"#!/bin/sh\n{script}\n")
        (folder / "c++").chmod(0o755)
        monkeypatch.setenv("PATH", str(folder))
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        return tmp_path / "cache" / "dual_precision"

    return place


def left_out(line: str) -> str:
    start = "bit planes run without the compiled CPU kernel: "
    assert line.startswith(start)
    assert "\n" not in line
    return line.removeprefix(start)


def test_switched_off(lines, monkeypatch):
    monkeypatch.setenv(build.SWITCH, "0")
    monkeypatch.setattr(build, "built", lambda kernel: pytest.fail("it was built"))
    assert available() is False
    (line,) = lines()
    assert left_out(line) == "DUAL_PRECISION_NATIVE=0 was set"


@pytest.mark.usefixtures("fit_cpu")
def test_no_compiler(lines, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert available() is False
    (line,) = lines()
    assert left_out(line) == "no C++ compiler was found"


def test_a_compiler_that_does_not_start(lines, compiler):
    compiler("exit 3")
    assert available() is False
    (line,) = lines()
    assert left_out(line).endswith("bin/c++ ended with status 3:")


def test_a_compiler_that_refuses_the_source(lines, compiler):
    cache = compiler(f"{VERSION}\nprintf 'immintrin.h:\\n  no such file \\377\\n' >&2\nexit 1")
    assert available() is False
    building, line = lines()
    assert building.startswith("building the CPU kernel for bit planes, once: ")
    assert "bin/c++ ended with status 1: immintrin.h: no such file" in left_out(line)
    assert list(cache.iterdir()) == [], "nothing half done is left"


def test_a_library_that_is_none(lines, compiler):
    compiler(
        '[ "$1" = --version ] && { echo 1.0; exit; }\nfor last; do :; done\necho text > "$last"'
    )
    assert available() is False
    assert ".so: " in left_out(lines()[-1])


def test_a_cache_that_cannot_be_written(lines, compiler, monkeypatch, tmp_path):
    """A file in the place of the folder: permissions do not stop the root user."""
    compiler("echo 1.0")
    (tmp_path / "taken").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "taken"))
    assert available() is False
    assert "Not a directory" in left_out(lines()[-1])


def test_no_home(lines, compiler, monkeypatch):
    compiler("echo 1.0")
    monkeypatch.delenv("XDG_CACHE_HOME")

    def no_home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", no_home)
    assert available() is False
    assert left_out(lines()[-1]) == "Could not determine home directory."


@pytest.mark.usefixtures("fit_cpu")
def test_another_cpu(lines, monkeypatch):
    class Library:
        @staticmethod
        def dual_precision_supported():
            return 0

    monkeypatch.setattr(build, "built", lambda kernel: "library.so")
    monkeypatch.setattr(build.ctypes, "CDLL", lambda path: Library)
    assert available() is False
    (line,) = lines()
    assert left_out(line) == "this CPU has no AVX512-VNNI and GFNI"


def test_another_cpu_builds_nothing(lines, monkeypatch, tmp_path):
    (tmp_path / "cpuinfo").write_text("flags : avx2 avx512bw avx512vl\n")
    monkeypatch.setattr(build, "_CPU", tmp_path / "cpuinfo")
    monkeypatch.setattr(build, "built", lambda kernel: pytest.fail("it was built"))
    assert available() is False
    assert left_out(lines()[0]) == "this CPU has no AVX512-VNNI and GFNI"


def test_a_switch_without_meaning(monkeypatch):
    monkeypatch.setenv(build.SWITCH, "false")
    with pytest.raises(ValueError, match=r"NATIVE=false: expected 0, .* or 1"):
        available()


def test_a_library_that_others_can_write(lines, compiler):
    """Nobody but the user may put code there that this process loads."""
    cache = compiler(f'{VERSION}\n{LAST}\n: > "$last"')
    build.built(planes.KERNEL)
    (library,) = cache.iterdir()
    library.chmod(0o722)
    assert available() is False
    assert "is not this user's alone to write" in left_out(lines()[-1])


def test_a_library_that_cannot_be_loaded_is_built_again(lines, monkeypatch, tmp_path):
    """An empty one, as a loss of power may leave it, was in the way for good."""
    library, tried = tmp_path / "planes.so", []
    library.touch()
    monkeypatch.setattr(build, "built", lambda kernel: library)

    def load(path):
        tried.append(library.exists())
        if len(tried) == 1:
            raise OSError("file too short")
        return path

    monkeypatch.setattr(build.ctypes, "CDLL", load)
    assert build.loaded(planes.KERNEL) == str(library)
    assert tried == [True, False]
    assert "building it again, as it cannot be loaded: file too short" in lines()


def test_a_folder_whose_name_is_no_text(compiler):
    cache = compiler(f'{VERSION}\n{LAST}\n: > "$last"')
    flags = (f"-L{os.fsdecode(bytes([0x2F, 0xE9]))}",)
    build.built(dataclasses.replace(planes.KERNEL, flags=flags))
    assert len([*cache.iterdir()]) == 1


def test_sums_that_pass_through_float32_are_no_exact_ones(monkeypatch):
    """Above 2^24 every second integer is lost there."""
    if not convolution.exact_bytes(127, 127):
        pytest.skip("no sums of bytes here: this CPU, or no oneDNN")
    tried = convolution._tried
    monkeypatch.setattr(
        convolution, "_tried", lambda *given: tried(*given).astype(np.float32).astype(np.int64)
    )
    for cached in ("exact_bytes", "_sums_bytes", "_keeps_long_sums", "_sums_bytes_in_full"):
        monkeypatch.setattr(convolution, cached, getattr(convolution, cached).__wrapped__)
    assert convolution.exact_bytes(15, 15)
    assert not convolution.exact_bytes(127, 127)
    assert not convolution.exact_bytes(255, 128)


def test_a_relative_cache_is_none(monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "here")
    assert build._folder() == Path.home() / ".cache" / "dual_precision"


@pytest.mark.parametrize("kernel", [planes, recurrence, decoder])
def test_where_it_can_be_built_it_is(kernel):
    """Else a mistake in its source would pass as a machine without a compiler."""
    if os.environ.get(build.SWITCH) == "0" or not shutil.which("c++"):
        pytest.skip("no compiler here")
    try:
        build.check_cpu(kernel.KERNEL)
    except OSError as error:
        pytest.skip(str(error))
    assert kernel.available()
    strict = ("c++", "-std=c++17", "-fsyntax-only", "-Wall", "-Wextra", "-Werror")
    done = subprocess.run(
        [*strict, *build.include(), kernel.KERNEL.sources[0]], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_it_is_built_once(compiler, monkeypatch, tmp_path):
    """The library that is there is taken; its name holds the source and the compiler."""
    cache = compiler(f'echo "$@" >> {tmp_path}/calls\n{VERSION}\n{LAST}\n: > "$last"')
    first = build.built(planes.KERNEL)
    assert first.parent == cache
    assert build.built(planes.KERNEL) == first
    calls = (tmp_path / "calls").read_text().splitlines()
    assert [call == "--version" for call in calls] == [True, False, True]
    other = tmp_path / "other.cc"
    other.write_text("another source")
    changed = dataclasses.replace(planes.KERNEL, sources=(other,))
    assert build.built(changed) != first
    assert len(list(cache.iterdir())) == 2


def test_without_the_library_for_convolutions(lines, compiler, monkeypatch):
    """XLA convolves then; the line says what to install."""
    compiler("exit 3")
    monkeypatch.setattr(convolution, "_PACKAGES", ("no-such-package", "nor-this"))
    assert convolution._why_not.__wrapped__() is not None
    (line,) = lines()
    assert line.startswith("convolutions run without the compiled CPU kernel: oneDNN is not")
    assert 'pip install "dual_precision[cpu]"' in line


def test_where_convolutions_can_be_built_they_are():
    """Else a mistake in the source would pass as a machine without oneDNN."""
    if os.environ.get(build.SWITCH) == "0" or not shutil.which("c++"):
        pytest.skip("no compiler here")
    try:
        kernel = convolution._kernel()
    except OSError as error:
        pytest.skip(str(error))
    assert convolution.floats("float32")
    strict = ("c++", "-std=c++17", "-fsyntax-only", "-Wall", "-Wextra", "-Werror")
    flags = [flag for flag in kernel.flags if not flag.startswith(("-L", "-l", "-W"))]
    done = subprocess.run(
        [*strict, *build.include(), *flags, kernel.sources[0]], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
