"""What a client sends, as images: nothing is decoded before its size is known and bounded."""

import io
import math
from collections.abc import Mapping

import numpy as np
from PIL import Image

from dual_precision.data.provision.png import decode_png, other_picture

_PNG, _JPEG, _NPY = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"\x93NUMPY"
_PICTURES = ((1,), (3,))  # channels that a PNG or JPEG has here
_LONGEST_HEADER = 10_000  # bytes that NumPy reads of a header


class Refused(Exception):
    """A request that gets no answer.

    Attributes:
      status: of HTTP.
      headers: that the answer has beside it.
    """

    def __init__(self, status: int, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.headers = dict(headers or {})


def decode_upload(body: bytes, shape: tuple[int, ...], most: int) -> np.ndarray:
    """uint8 [N, H, W, C], N from 1 to `most`: of a PNG or JPEG image, or of an .npy array.

    Args:
      body: as it was sent.
      shape: [H, W, C] that the network takes.
      most: rows.

    Raises:
      Refused: 413 where there are more rows; 415 for another format, and for a PNG or JPEG where
        the network takes neither 1 nor 3 channels; 400 for anything else.
    """
    if body.startswith(_NPY):
        return _array(body, shape, most)
    if body.startswith((_PNG, _JPEG)) and shape[2:] not in _PICTURES:
        raise Refused(
            415,
            f"a PNG or JPEG, which has 1 or 3 channels; the network takes {list(shape)}: expected"
            " an .npy of uint8",
        )
    try:
        if body.startswith(_PNG):
            height, width, channels = shape
            return decode_png(body, (height, width, channels))[None]
        if body.startswith(_JPEG):
            return _jpeg(body, shape)[None]
    except ValueError as error:
        raise Refused(400, str(error)) from None
    raise Refused(
        415, f"a body that begins with {body[:8]!r}: expected a PNG, a JPEG or an .npy of uint8"
    )


def _jpeg(body: bytes, shape: tuple[int, ...]) -> np.ndarray:
    height, width, channels = shape
    wanted = ((width, height), {1: "L", 3: "RGB"}[channels])
    try:
        with Image.open(io.BytesIO(body), formats=["JPEG"]) as image:
            found = (image.size, image.mode)  # from its header; no pixel is decoded yet
            if found == wanted:
                return np.asarray(image).reshape(shape)
    except Exception as error:  # Pillow raises whatever its readers raise
        raise ValueError(f"a JPEG that cannot be read ({error}): expected a sound one") from error
    (own_width, own_height), mode = found
    kind = {"L": "grey"}.get(mode, mode)
    raise ValueError(other_picture("JPEG", (own_height, own_width), kind, shape))


def _array(body: bytes, shape: tuple[int, ...], most: int) -> np.ndarray:
    """The header is read first, so that no room is made for what it merely claims."""
    file = io.BytesIO(body)
    try:
        version = np.lib.format.read_magic(file)
        read = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }[version]
        own, fortran, dtype = read(file, max_header_size=_LONGEST_HEADER)
    except Exception as error:  # NumPy raises whatever its parser raises
        raise Refused(400, f"an .npy whose header cannot be read ({str(error)[:200]})") from None
    rows = (1, *own) if own == shape else own
    whole = all(type(count) is int for count in own)  # NumPy lets True through, which equals 1
    if not whole or dtype != np.uint8 or fortran or rows[1:] != shape or not rows[:1] > (0,):
        raise Refused(
            400,
            f"an array {dtype} {list(own)[:9]}: expected uint8 [N, {', '.join(map(str, shape))}]",
        )
    if rows[0] > most:
        raise Refused(413, f"{rows[0]} images: expected at most {most} in a request")
    pixels = body[file.tell() :]
    if len(pixels) != math.prod(rows):
        raise Refused(400, f"{len(pixels)} bytes of pixels: expected {math.prod(rows)}")
    return np.frombuffer(pixels, np.uint8).reshape(rows)
