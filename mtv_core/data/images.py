"""Images as received → JPEGs as stored: RGB, upright, not too large, whole. What fits already passes through byte for byte."""

from __future__ import annotations

import io
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
class StoredImage:
    """What goes into the table. Sizes in px."""

    jpeg: bytes
    width: int
    height: int
    phash: int


def store(data: bytes, max_side: int, quality: int, max_pixels: int) -> StoredImage:
    """Decode an image to its end, and encode it anew only if it is not an upright RGB JPEG of at most `max_side` px.

    Raises:
        BadImageError: empty, not an image of a known format, cut or broken, or of more than `max_pixels` pixels.
    """
    image = _decode(data, max_pixels)
    # An MPO is a JPEG with more pictures behind it; it is stored as its first.
    untouched = (
        image.format == "JPEG" and image.mode == "RGB" and max(image.size) <= max_side and image.getexif().get(_ORIENTATION, 1) in (0, 1)
    )
    if untouched:
        return StoredImage(data, image.width, image.height, phash(image))
    upright = _rgb(ImageOps.exif_transpose(image))
    if max(upright.size) > max_side:
        upright.thumbnail((max_side, max_side), Image.Resampling.BICUBIC, reducing_gap=3.0)
    buffer = io.BytesIO()
    # Without chroma subsampling: at training sizes it costs the colour of small objects.
    upright.save(buffer, "JPEG", quality=quality, subsampling=0)
    return StoredImage(buffer.getvalue(), upright.width, upright.height, phash(upright))


def _decode(data: bytes, max_pixels: int) -> Image.Image:
    if not data:
        raise BadImageError("EmptyImage", "the image file is empty")
    known = data.startswith(_MAGIC)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about EXIF and palettes, of every second web image; sizes are checked below
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data), formats=FORMATS)
            if image.width * image.height > max_pixels:
                raise BadImageError(
                    "TooManyPixels", f"{image.width} × {image.height} px; at most {max_pixels} pixels are decoded (ingest.max_pixels)"
                )
            image.load()
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise BadImageError("TooManyPixels", f"{error}; at most {max_pixels} pixels are decoded (ingest.max_pixels)") from None
    except UnidentifiedImageError:
        if known:
            raise BadImageError("BrokenImage", "the image is damaged: its header cannot be read") from None
        raise BadImageError("UnsupportedImage", f"not an image of a supported format ({', '.join(FORMATS)})") from None
    except BadImageError:
        raise
    except MemoryError:
        raise
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error, IndexError, …
        raise BadImageError("BrokenImage", f"the image is cut or damaged: {error}") from None
    return image


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


def phash(image: Image.Image) -> int:
    """64-bit perceptual hash: signs of the low frequencies of the 32 × 32 grey image against their median (Zauner 2010)."""
    side = 4 * _HASH_SIDE
    grey = np.asarray(image.convert("L").resize((side, side), Image.Resampling.LANCZOS, reducing_gap=2.0), dtype=np.float64)
    low = _DCT @ grey @ _DCT.T
    bits = (low > np.median(low)).ravel()
    return int.from_bytes(np.packbits(bits).tobytes())
