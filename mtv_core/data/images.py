"""Images as received → JPEGs as stored: RGB, upright, not too large, whole. What fits already passes through byte for byte."""

from __future__ import annotations

import io
import math
import warnings
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

FORMATS = ("JPEG", "PNG", "WEBP")
_MAGIC = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"RIFF")
_ORIENTATION = 0x0112  # EXIF tag; 1 is upright
_HASH_SIDE = 8


class BadImageError(ValueError):
    """An image that cannot be stored. `reason` groups, the message explains."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True)
class ImageLimits:
    """What is stored, and what is refused. Sizes in px."""

    max_side: int
    quality: int
    max_pixels: int
    min_side: int = 1
    max_aspect: float = math.inf


@dataclass(frozen=True)
class StoredImage:
    """What goes into the table. Sizes in px."""

    jpeg: bytes
    width: int
    height: int
    phash: int
    grey: np.ndarray
    passthrough: bool


class OpenedImage:
    """An image whose header was read. `width` and `height` are those of the upright picture as received, in px."""

    def __init__(self, data: bytes, image: Image.Image, limits: ImageLimits) -> None:
        self._data, self._image, self._limits = data, image, limits
        self.format = str(image.format)
        turned = image.getexif().get(_ORIENTATION, 1) in (5, 6, 7, 8)
        self.width, self.height = image.size[::-1] if turned else image.size

    def store(self) -> StoredImage:
        """Decode the image to its end, and encode it anew only if it is not an upright RGB JPEG of at most `max_side` px."""
        image, limits = self._image, self._limits
        try:
            image.load()
        except MemoryError:
            raise
        except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error, IndexError, …
            raise BadImageError("BrokenImage", f"the image is cut or damaged: {error}") from None
        untouched = (
            image.format == "JPEG"
            and image.mode == "RGB"
            and max(image.size) <= limits.max_side
            and image.getexif().get(_ORIENTATION, 1) in (0, 1)
        )
        if untouched:
            grey = _grey(image)
            return StoredImage(self._data, image.width, image.height, _hash(grey), grey, True)
        upright = _rgb(ImageOps.exif_transpose(image))
        if max(upright.size) > limits.max_side:
            upright.thumbnail((limits.max_side, limits.max_side), Image.Resampling.BICUBIC, reducing_gap=3.0)
        buffer = io.BytesIO()
        upright.save(buffer, "JPEG", quality=limits.quality, subsampling=0)
        grey = _grey(upright)
        return StoredImage(buffer.getvalue(), upright.width, upright.height, _hash(grey), grey, False)


def store(data: bytes, limits: ImageLimits) -> StoredImage:
    """Open and store."""
    return open_image(data, limits).store()


def open_image(data: bytes, limits: ImageLimits) -> OpenedImage:
    """Read the header only."""
    if not data:
        raise BadImageError("EmptyImage", "the image file is empty")
    known = data.startswith(_MAGIC)
    max_pixels = limits.max_pixels
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about EXIF and palettes, of every second web image; sizes are checked below
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data), formats=FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise BadImageError("TooManyPixels", f"{error}; at most {max_pixels} pixels are decoded (ingest.max_pixels)") from None
    except UnidentifiedImageError:
        if known:
            raise BadImageError("BrokenImage", "the image is damaged: its header cannot be read") from None
        raise BadImageError("UnsupportedImage", f"not an image of a supported format ({', '.join(FORMATS)})") from None
    except MemoryError:
        raise
    except Exception as error:
        raise BadImageError("BrokenImage", f"the image is cut or damaged: {error}") from None
    if image.width * image.height > max_pixels:
        raise BadImageError(
            "TooManyPixels", f"{image.width} × {image.height} px; at most {max_pixels} pixels are decoded (ingest.max_pixels)"
        )
    opened = OpenedImage(data, image, limits)
    if min(opened.width, opened.height) < limits.min_side:
        raise BadImageError("TooSmall", f"{opened.width} × {opened.height} px; sides are at least {limits.min_side} px (ingest.min_side)")
    if max(opened.width, opened.height) > limits.max_aspect * min(opened.width, opened.height):
        raise BadImageError(
            "TooElongated", f"{opened.width} × {opened.height} px; the aspect is at most {limits.max_aspect:g} (ingest.max_aspect)"
        )
    return opened


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16") or image.mode == "I":  # 16-bit grey; Pillow's own conversion clips it
        return Image.fromarray((np.asarray(image, dtype=np.float32) / 257).clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")


def _dct_matrix(size: int, rows: int) -> np.ndarray:
    """The first `rows` rows of the type-II discrete cosine transform of `size` points, unnormalised."""
    return np.cos(np.pi * np.arange(rows)[:, None] * (2 * np.arange(size)[None, :] + 1) / (2 * size))


_DCT = _dct_matrix(4 * _HASH_SIDE, _HASH_SIDE)


def _grey(image: Image.Image) -> np.ndarray:
    side = 4 * _HASH_SIDE
    return np.asarray(image.convert("L").resize((side, side), Image.Resampling.LANCZOS, reducing_gap=2.0))


def _hash(grey: np.ndarray) -> int:
    low = _DCT @ grey.astype(np.float64) @ _DCT.T
    bits = (low > np.median(low)).ravel()
    return int.from_bytes(np.packbits(bits).tobytes())


def phash(image: Image.Image) -> int:
    """64-bit perceptual hash: signs of the low frequencies of the 32 × 32 grey image against their median (Zauner 2010)."""
    return _hash(_grey(image))
