"""Images as received → JPEGs as stored: RGB, sRGB, upright, not too large, whole. What fits already passes through byte for byte.

The slow truth, which the modules in `imaging` make fast: open the file with the one decoder that its first bytes name; refuse it by its
header if it is too large, too small or too long; decode it to its end; scale it down; put it on white; bring it to sRGB; turn it upright;
encode it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mtv_core.data.imaging.base import BadImageError, ImageLimits, StoredImage, Subsampling

if TYPE_CHECKING:
    from PIL import Image

    from mtv_core.data.imaging.formats import Header

__all__ = ["BadImageError", "ImageLimits", "OpenedImage", "StoredImage", "Subsampling", "open_image", "phash", "store"]


def store(data: bytes, limits: ImageLimits) -> StoredImage:
    """Decode an image to its end, and encode it anew only if it is not an upright sRGB JPEG of at most `max_side` px.

    Raises:
        BadImageError: its `reason` is EmptyImage, UnsupportedImage, BrokenImage, TooManyPixels, TooSmall or TooElongated.
    """
    return open_image(data, limits).store()


def open_image(data: bytes, limits: ImageLimits) -> OpenedImage:
    """Read the header, decode nothing, and refuse what need not be decoded.

    Raises:
        BadImageError: as `store`.
    """
    from mtv_core.data.imaging import formats

    opened = OpenedImage(formats.read_header(data), limits)
    width, height = opened.width, opened.height
    if width * height > limits.max_pixels:
        message = f"{width} × {height} px; at most {limits.max_pixels} pixels are decoded (ingest.max_pixels)"
        raise BadImageError("TooManyPixels", message)
    if min(width, height) < limits.min_side:
        raise BadImageError("TooSmall", f"{width} × {height} px; no side may have less than {limits.min_side} px (ingest.min_side)")
    if max(width, height) > limits.max_aspect * min(width, height):
        message = f"{width} × {height} px; the long side may be {limits.max_aspect:g} times the short one (ingest.max_aspect)"
        raise BadImageError("TooElongated", message)
    return opened


class OpenedImage:
    """An image of which the header was read and found fit."""

    def __init__(self, header: Header, limits: ImageLimits) -> None:
        self._header, self._limits = header, limits
        self.width, self.height = header.upright_size  # px, as received
        self.format = header.format  # 'JPEG', 'PNG', 'WEBP', 'GIF', 'BMP', 'TIFF' or 'AVIF'

    def store(self) -> StoredImage:
        """Decode and encode.

        Raises:
            BadImageError: it is cut or damaged, or has no colours that a JPEG could hold.
        """
        from mtv_core.data.imaging import jpeg, raster

        make = jpeg.store if self.format == "JPEG" else raster.store
        return make(self._header, self._limits)


def phash(image: Image.Image) -> int:
    """64-bit perceptual hash of a picture. Two are alike when few bits differ, whatever their sizes."""
    from mtv_core.data.imaging import hashing

    return hashing.phash(hashing.grey_of_image(image))
