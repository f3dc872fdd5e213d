"""JPEGs, which is nearly all there is: through libjpeg-turbo, decoded at the scale of what is stored, and held to be whole.

Measured on 1024 × 768 px at quality 90 → 512 px (benchmarks/ingest.py): reading the coefficients is three quarters of decoding, at any
scale. So a picture is decoded once, for the check, the hash and the pixels together.
"""

from __future__ import annotations

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

from mtv_core.data.imaging import colours, hashing, raster
from mtv_core.data.imaging.base import BadImageError, ImageLimits, StoredImage
from mtv_core.data.imaging.formats import Header, careful

_END, _SCAN = b"\xff\xd9", b"\xff\xda"
_MAX_SCANS = 256  # an encoder writes about ten; each costs a pass over the whole picture
_HARMLESS = ("Warning: unknown JFIF revision", "Unknown Adobe color transform")  # all else libjpeg warns of is damage
_GREY_SIDE = 2 * hashing.SIDE  # px, at least, of what is hashed


def store(header: Header, limits: ImageLimits) -> StoredImage:
    """Pass a JPEG through if it is fit as it is, else decode and encode it.

    Raises:
        BadImageError: BrokenImage: it is cut, damaged, or of a process that libjpeg does not know.
    """
    _check_scans(header)
    if _fits(header, limits):
        grey = hashing.grey_of_luma(_luma(header))
        width, height = header.image.size
        return StoredImage(header.data, width, height, hashing.phash(grey), grey, passthrough=True)
    channels = header.image.mode
    reduced = _reduced(header.image.size, limits.max_side)
    pixels = _decode(header, {"L": "GRAY"}.get(channels, channels), reduced)
    if channels == "RGB" and max(reduced) <= limits.max_side and header.orientation == 1 and header.profile is None:
        return raster.encode(pixels, limits)  # as it nearly always is
    if channels == "CMYK":
        # 0 is full ink, with Adobe's mark and without: so Chromium (SetPixel<JCS_CMYK>), Firefox (cmyk_convert_rgb) and Pillow ("assume
        # adobe conventions") show every such JPEG, and so whoever chose or captioned it saw it. libjpeg gives the samples as stored.
        np.invert(pixels, out=pixels)
    image = Image.frombuffer(channels, reduced, pixels, "raw", channels, 0, 1)
    return raster.encode(raster.finish(image, header, limits), limits)


def _check_scans(header: Header) -> None:
    if header.image.info.get("progressive"):
        scans = header.data.count(_SCAN)
        if scans > _MAX_SCANS:
            raise BadImageError("BrokenImage", f"it is drawn in {scans} scans, which no encoder does; decoding it could take hours")


def _fits(header: Header, limits: ImageLimits) -> bool:
    image = header.image
    return (
        image.mode == "RGB"
        and max(image.size) <= limits.max_side
        and header.orientation == 1
        and "mp" not in image.info  # more pictures behind the first
        and header.data.endswith(_END)  # nor anything else
        and (header.profile is None or colours.to_srgb(header.profile, "RGB") is None)
    )


def _luma(header: Header) -> NDArray[np.uint8]:
    """[height, width] of luma, small: of the check of the whole file, reading the coefficients is the cost, not the pixels."""
    if header.image.info.get("adobe_transform") == 0:  # stored as RGB, which is rare: there is no luma in it
        pixels = _decode(header, "RGB", _reduced(header.image.size, _GREY_SIDE, shortest=True))
        return np.asarray(Image.fromarray(pixels).convert("L"))
    return _decode(header, "GRAY", _reduced(header.image.size, _GREY_SIDE, shortest=True))[..., 0]


def _reduced(size: tuple[int, int], least: int, shortest: bool = False) -> tuple[int, int]:
    """The smallest of 1/8, 1/4, 1/2 and 1 times a size whose longest (or shortest) side has `least` px or more; else the size.

    The decoder makes pictures of these sizes by leaving out coefficients, which is both faster and better than dropping pixels. It knows
    3/8, 5/8 … as well, but those have no vector instructions.
    """
    for divisor in (8, 4, 2):
        reduced = -(-size[0] // divisor), -(-size[1] // divisor)
        if (min(reduced) if shortest else max(reduced)) >= least:
            return reduced
    return size


def _decode(header: Header, colours_: str, size: tuple[int, int]) -> NDArray[np.uint8]:
    """Decode the whole file: [height, width, channels], of one of the sizes of `_reduced`.

    Pillow is told nothing of damage that libjpeg can paint over; here it is an error. What damage leaves of a stream is often one that
    can be read to its end, so not every flipped bit is found.
    """
    try:
        if simplejpeg.decode_jpeg_header(header.data)[1::-1] != header.image.size:
            raise BadImageError("BrokenImage", "the image is damaged: it has two headers that contradict each other")
    except ValueError as error:
        if isinstance(error, BadImageError):
            raise
        return _decode_by_pillow(header, colours_, size)  # subsampling of a kind that only libjpeg's older interface handles
    options = {"colorspace": colours_, "min_width": size[0], "min_height": size[1]}
    try:
        try:
            pixels = simplejpeg.decode_jpeg(header.data, **options)
        except ValueError as error:
            if not str(error).startswith(_HARMLESS):
                raise
            pixels = simplejpeg.decode_jpeg(header.data, strict=False, **options)
    except ValueError as error:
        raise BadImageError("BrokenImage", f"the image is cut or damaged: {error}") from None
    assert pixels.shape[1::-1] == size
    return pixels


def _decode_by_pillow(header: Header, colours_: str, size: tuple[int, int]) -> NDArray[np.uint8]:
    with careful("it cannot be decoded"):
        header.image.load()
    image = header.image.convert("L" if colours_ == "GRAY" else colours_)
    if image.size != size:
        image = image.resize(size, Image.Resampling.BOX)
    pixels = np.array(image)
    if colours_ == "CMYK":
        np.invert(pixels, out=pixels)  # Pillow inverts every CMYK JPEG, marked or not: back to the samples as stored
    return pixels[..., None] if pixels.ndim == 2 else pixels
