"""Small images as PNG, quickly."""

import io
import struct
import zlib

import numpy as np
from PIL import Image

_COLOUR = {1: 0, 3: 2}  # channels -> PNG's colour type


def encode_png(pixels: np.ndarray) -> bytes:
    """A PNG of stored (not deflated) rows.

    ArrayRecord compresses its records itself. Beside Pillow's default, at 32 x 32 x 3, a stored PNG
    is written in a tenth of the time and read in half of it.

    Args:
      pixels: uint8 [H, W, C], C = 1 or 3.
    """
    height, width, channels = pixels.shape
    rows = np.zeros((height, 1 + width * channels), np.uint8)  # each row opens with its filter: 0
    rows[:, 1:] = pixels.reshape(height, -1)
    header = struct.pack(">IIBBBBB", width, height, 8, _COLOUR[channels], 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows.tobytes(), 0)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(tag, data) for tag, data in chunks)


def _chunk(tag: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + tag + data + struct.pack(">I", zlib.crc32(tag + data))


def decode_png(png: bytes, shape: tuple[int, int, int]) -> np.ndarray:
    """uint8 [H, W, C] from a PNG of any writer; ValueError if it has another shape."""
    return np.asarray(Image.open(io.BytesIO(png), formats=["PNG"])).reshape(shape)
