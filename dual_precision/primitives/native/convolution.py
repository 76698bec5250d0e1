"""Convolutions on CPUs by oneDNN, which comes with the extra [cpu]; else XLA computes them.

oneDNN runs float32 on every x86 CPU, bfloat16 and integers where the CPU has units for them. What
it can do here is found by asking it: every kind of operand is tried once on a small problem whose
answer is known, and left out where the answer is another, or none.

Integer products of codes: CPUs with VNNI sum products of bytes in int32. Older ones (AVX2) add
them in pairs as int16 first, which holds at most 32767: exact for small codes alone.
"""

import functools
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from dual_precision.primitives.native import build, chains

ConvPart = Literal["forward", "input gradient", "weight gradient"]
_PARTS: tuple[ConvPart, ...] = ("forward", "input gradient", "weight gradient")
_Value = TypeVar("_Value")
_PURPOSE = "convolutions"
LARGEST_PAIR = 2**15 - 1
_SMALL = 15  # codes of 4 bits
BFLOAT16 = {"avx512_bf16", "amx_bf16"}

_PACKAGES = ("onednn-cpu-gomp", "onednn-devel-cpu-gomp")


def convolve(
    part: ConvPart,
    a: jax.Array,
    b: jax.Array,
    shape: tuple[int, ...],
    dtype: jnp.dtype,
    stride: int,
) -> jax.Array:
    """One of the three sums of `convolution.conv2d`; on a CPU.

    Args:
      part: "forward" of x and kernel; "input gradient" of the gradient of y, and kernel; "weight
        gradient" of x and the gradient of y.
      a, b: those two, [N, H, W, channels] or [k, k, in, out]; N is 1 or more.
      shape, dtype: of the result.
      stride: of the convolution.
    """
    call = jax.ffi.ffi_call(
        chains.FLOATS, jax.ShapeDtypeStruct(shape, dtype), vmap_method="sequential"
    )
    return call(a, b, part=np.int64(_PARTS.index(part)), stride=np.int64(stride))


def operands_of(part: ConvPart, x: _Value, kernel: _Value, y: _Value) -> tuple[_Value, _Value]:
    """The two of these that a part is a sum of; y is the gradient in the gradients."""
    return {_PARTS[0]: (x, kernel), _PARTS[1]: (y, kernel), _PARTS[2]: (x, y)}[part]


@functools.cache
def floats(dtype: str) -> bool:
    """Whether "float32", or "bfloat16", convolutions and their gradients can be had here."""
    return _why_not() is None and _is_right(dtype, "float32", _PARTS, 3, 3)


@functools.cache
def fast_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 by units of its own; oneDNN emulates them elsewhere."""
    return bool(BFLOAT16 & (build.cpu_words() or set())) and floats("bfloat16")


@functools.cache
def exact_bytes(largest_input: int, largest_weight: int) -> bool:
    """Whether sums of uint8 times int8 are exact here for codes of at most these magnitudes."""
    if _why_not() is not None or not chains.runs_here():
        return False
    most = largest_input * largest_weight
    long_fit = most <= _SMALL * _SMALL or _keeps_long_sums()
    return _sums_bytes() and long_fit and (2 * most <= LARGEST_PAIR or _sums_bytes_in_full())


@functools.cache
def _sums_bytes() -> bool:
    return _is_right("uint8", "int32", _PARTS[:1], _SMALL, _SMALL)


@functools.cache
def _sums_bytes_in_full() -> bool:
    return _is_right("uint8", "int32", _PARTS[:1], 255, 128)


@functools.cache
def _keeps_long_sums() -> bool:
    """Whether sums above 2^24 come out to the last bit, which a program that passes them through
    float32 would round. Codes of `_SMALL` reach them in windows of 74,000 products alone."""
    rng = np.random.default_rng(0)
    x = rng.integers(100, 128, (1, 5, 6, 192))  # pairs of such products fit into 16 bits
    kernel = rng.integers(100, 128, (3, 3, 192, 16))
    wanted, *_ = _sums(x, kernel, np.zeros((1, 5, 6, 16), np.int64), 1)
    found = _tried(_PARTS[0], (x, "uint8"), (kernel, "int8"), wanted.shape, "int32", 1)
    return found is not None and np.array_equal(found, wanted)


@functools.cache
def _why_not() -> str | None:
    if jax.default_backend() != "cpu":
        return "the backend is no CPU"  # where nobody waits for it: no log line
    return build.left_out(_PURPOSE, _prepare)


def _prepare() -> None:
    if jax.local_device_count() > 1:  # they would wait for each other in one pool of threads
        raise OSError("it is for a process with one CPU device")
    kernel = _kernel()
    build.register(kernel, build.loaded(kernel))


def _kernel() -> build.Kernel:
    """With the place where this environment has oneDNN.

    Raises:
      OSError: it has not.
    """
    try:
        library, headers = map(metadata.distribution, _PACKAGES)
    except metadata.PackageNotFoundError:
        raise OSError(
            'oneDNN is not installed: pip install "dual_precision[cpu]" brings it'
        ) from None
    folder = _folder_of(library, "libdnnl.so.3")
    here = Path(__file__).parent
    header = ("-isystem", str(_folder_of(headers, "dnnl.hpp")))
    link = (f"-L{folder}", "-l:libdnnl.so.3", f"-Wl,-rpath,{folder}")
    sources = ("convolution.cc", "chain.h", "tiles.h", "onednn.h", "parts.h")
    return build.Kernel(
        "convolution",
        _PURPOSE,
        tuple(here / name for name in sources),
        targets=(chains.FLOATS, chains.TARGET),
        flags=(*header, *link),
    )


def _folder_of(package: metadata.Distribution, name: str) -> Path:
    for file in package.files or ():
        if file.name == name and file.parent.name != "dnnl":
            return Path(str(package.locate_file(file))).resolve().parent
    raise OSError(f"package {package.metadata['Name']} has no {name}: install it again")


def _is_right(
    operand: str, result: str, parts: tuple[ConvPart, ...], top: int, largest: int
) -> bool:
    """Whether sums of integers come out exact, up to the largest that these operands make."""
    rng = np.random.default_rng(0)
    signed = operand != "uint8"
    x = rng.integers(-top if signed else 0, top + 1, (3, 5, 6, 16))
    positive = min(largest, 127)  # of an int8
    kernel = rng.integers(-largest, positive + 1, (3, 3, 16, 16))
    x[0], kernel[..., 0], kernel[..., 1] = top, positive, -largest
    second = operand if signed else "int8"
    for stride in (1, 2):
        y = rng.integers(-top, top + 1, (3, -(-5 // stride), -(-6 // stride), 16))
        wanted = dict(zip(_PARTS, _sums(x, kernel, y, stride), strict=True))
        for part in parts:
            a, b = operands_of(part, x, kernel, y)
            found = _tried(part, (a, operand), (b, second), wanted[part].shape, result, stride)
            if found is None or not np.array_equal(found, wanted[part]):
                return False
    return True


def _tried(
    part: ConvPart, a: Any, b: Any, shape: tuple[int, ...], result: str, stride: int
) -> np.ndarray | None:
    """What oneDNN answers, also while another program is traced; None: it has no such program."""
    try:
        with jax.ensure_compile_time_eval():
            a, b = (jnp.asarray(values, kind) for values, kind in (a, b))
            return np.asarray(convolve(part, a, b, shape, jnp.dtype(result), stride))
    except jax.errors.JaxRuntimeError:
        return None


def _sums(x: np.ndarray, kernel: np.ndarray, y: np.ndarray, stride: int) -> tuple[np.ndarray, ...]:
    """The three sums, written out over the places of the kernel; exact integers."""
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    forward = np.zeros(y.shape, np.int64)
    to_padded = np.zeros(padded.shape, np.int64)
    to_kernel = np.zeros(kernel.shape, np.int64)
    for i, j in np.ndindex(3, 3):
        rows = slice(i, i + (y.shape[1] - 1) * stride + 1, stride)
        columns = slice(j, j + (y.shape[2] - 1) * stride + 1, stride)
        forward += padded[:, rows, columns] @ kernel[i, j]
        to_padded[:, rows, columns] += y @ kernel[i, j].T
        to_kernel[i, j] = np.einsum("nhwi,nhwo->io", padded[:, rows, columns], y)
    return forward, to_padded[:, 1:-1, 1:-1], to_kernel
