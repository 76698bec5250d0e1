"""Small images as PNG, quickly."""

import io
import struct
import zlib

import numpy as np
from PIL import Image

_COLOUR = {1: 0, 3: 2}  # channels -> PNG's colour type
_KINDS = {  # colour type -> what it is called
    0: "grey",
    2: "RGB",
    3: "palette",
    4: "grey with transparency",
    6: "RGB with transparency",
}
_SIGNATURE = b"\x89PNG\r\n\x1a\n"


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
    return _SIGNATURE + b"".join(_chunk(tag, data) for tag, data in chunks)


def _chunk(tag: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + tag + data + struct.pack(">I", zlib.crc32(tag + data))


def decode_png(png: bytes, shape: tuple[int, int, int]) -> np.ndarray:
    """uint8 [H, W, C] from a PNG of any writer.

    The checksums of all chunks are compared here: Pillow leaves out that of the pixels.

    Raises:
      ValueError: damaged; another size, or pixels that are not C numbers of 8 bits.
    """
    header = _checked_header(png)
    if header[:4] != (shape[1], shape[0], 8, _COLOUR[shape[2]]):
        # Before Pillow makes room for the size that it claims.
        width, height, bits, colour = header[:4]
        kind = f"{_KINDS.get(colour, f'colour type {colour}')} of {bits} bits"
        raise ValueError(other_picture("PNG", (height, width), kind, shape))
    try:
        with Image.open(io.BytesIO(png), formats=["PNG"]) as image:
            return np.asarray(image).reshape(shape)
    except Exception as error:  # Pillow raises whatever its readers raise
        raise ValueError(f"a PNG that cannot be read ({error}): expected a sound one") from error


def other_picture(format: str, size: tuple[int, int], kind: str, shape: tuple[int, ...]) -> str:
    """What is said of a sound picture that is not of `shape`, [H, W, C].

    Args:
      size: its height and width.
      kind: its colours.
    """
    wanted, name = {1: ("grey", "L"), 3: ("RGB", "RGB")}[shape[2]]
    return (
        f"a {format} of {size[0]}x{size[1]} pixels (height x width), {kind}: expected"
        f" {shape[0]}x{shape[1]}, {wanted} of 8 bits; resize or convert it, as Pillow's"
        f' image.convert("{name}").resize(({shape[1]}, {shape[0]})) does'
    )


def _checked_header(png: bytes) -> tuple[int, ...]:
    """The numbers of the first chunk, IHDR, if every chunk has its checksum and none is missing."""
    at, tags, header = len(_SIGNATURE), [], b""
    if not png.startswith(_SIGNATURE):
        raise ValueError(f"an image that begins with {png[:8]!r}: expected a PNG")
    while at + 12 <= len(png):
        (size,), tag = struct.unpack(">I", png[at : at + 4]), png[at + 4 : at + 8]
        data, at = png[at + 8 : at + 8 + size], at + 12 + size
        if at > len(png) or png[at - 4 : at] != struct.pack(">I", zlib.crc32(tag + data)):
            raise ValueError(f"a PNG whose chunk {tag!r} does not match its checksum: damaged")
        header = header or data
        tags.append(tag)
    whole = at == len(png) and tags[:1] == [b"IHDR"] and tags[-1] == b"IEND"
    if not whole or tags.count(b"IHDR") > 1 or len(header) != 13:
        raise ValueError(f"a PNG of chunks {tags[:9]}: expected IHDR to IEND, and nothing else")
    return struct.unpack(">IIBBBBB", header)
