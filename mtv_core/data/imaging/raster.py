"""Images of any format through Pillow, and the end that all share: scale, colours, orientation, encode."""

from __future__ import annotations

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

from mtv_core.data.imaging import colours, hashing, png
from mtv_core.data.imaging.base import BadImageError, ImageLimits, StoredImage
from mtv_core.data.imaging.formats import Header, careful

_BITS_PER_SAMPLE, _PHOTOMETRIC, _PLANAR_CONFIGURATION = 258, 262, 284  # TIFF tags
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def store(header: Header, limits: ImageLimits) -> StoredImage:
    """Decode the first picture of the file. It takes at most 16 bytes a pixel.

    Raises:
        BadImageError: BrokenImage, UnsupportedImage.
    """
    with careful("it cannot be decoded"):
        bits = _bits_per_sample(header)
        tags = header.image.tag_v2 if header.format == "TIFF" else {}  # type: ignore[attr-defined]
        if bits > 8 and tags.get(_PLANAR_CONFIGURATION) == 2 and len(header.image.getbands()) > 1:
            raise BadImageError("UnsupportedImage", "it has more than 8 bits a sample, in planes, which Pillow misreads")
        header.image.load()
        if header.format == "PNG":
            png.check_rows(header.data, header.image)
        image: Image.Image = header.image
        if image.mode.startswith("I;16") and tags.get(_PHOTOMETRIC) == 0:  # white is 0, which Pillow knows of 8 bits only
            image = Image.fromarray(np.invert(np.asarray(image)))
        image = colours.unpacked(image, bits)
    return encode(finish(image, header, limits), limits)


def finish(image: Image.Image, header: Header, limits: ImageLimits) -> NDArray[np.uint8]:
    """A decoded picture without palette → [height, width, 3] in sRGB, upright, at most `max_side` px long."""
    size = fitting(image.size, limits.max_side)
    if size != image.size:  # first of all: then the rest is cheap. Pillow weighs colours by their alpha.
        image = image.resize(size, Image.Resampling.BICUBIC, reducing_gap=3.0)
    image = colours.to_rgb(image, header.profile)
    turn = _UPRIGHT.get(header.orientation)
    return np.asarray(image if turn is None else image.transpose(turn))


def encode(pixels: NDArray[np.uint8], limits: ImageLimits) -> StoredImage:
    """Encode [height, width, 3] and hash it."""
    data = simplejpeg.encode_jpeg(pixels, limits.quality, "RGB", limits.subsampling.replace(":", ""))
    grey = hashing.grey_of_rgb(pixels)
    return StoredImage(data, pixels.shape[1], pixels.shape[0], hashing.phash(grey), grey, passthrough=False)


def fitting(size: tuple[int, int], max_side: int) -> tuple[int, int]:
    """The size in proportion with a long side of at most `max_side` px; no side is less than 1 px."""
    longest = max(size)
    if longest <= max_side:
        return size
    return max(1, round(size[0] * max_side / longest)), max(1, round(size[1] * max_side / longest))


def _bits_per_sample(header: Header) -> int:
    """Of a header that is not decoded yet: 8, or 12 or 16 where Pillow was told so."""
    if header.format == "TIFF":
        found = header.image.tag_v2.get(_BITS_PER_SAMPLE, (8,))  # type: ignore[attr-defined]
        return int(max(found))
    return 16 if any(";16" in str(tile.args) for tile in header.image.tile) else 8
