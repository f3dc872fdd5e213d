"""First bytes → the one decoder that may see the file, and what its header says.

Pillow's own `open` tries one plug-in after the other, loads all of them, and lets some (EPS) start programs. Here the first bytes choose
among seven classes, and no other is ever reached.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

from PIL import Image, ImageFile

from mtv_core.data.imaging.base import BadImageError

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
_UNKNOWN = ("unknown pixel mode", "unknown data organization", "Unsupported BMP")  # what Pillow says of whole files that it cannot read
_ORIENTATION = 0x0112  # EXIF tag; 1 is upright, 5 … 8 lie on their side


@dataclass(frozen=True)
class Header:
    """An image file of which nothing was decoded. `image` is open and lazy."""

    data: bytes
    format: str
    image: ImageFile.ImageFile
    orientation: int  # 1 … 8, as EXIF has it

    @property
    def upright_size(self) -> tuple[int, int]:
        """Width and height of the picture once it is turned, in px."""
        width, height = self.image.size
        return (height, width) if self.orientation >= 5 else (width, height)

    @property
    def profile(self) -> bytes | None:
        """The ICC profile, if any."""
        profile = self.image.info.get("icc_profile")
        return profile if isinstance(profile, bytes) and profile else None


def read_header(data: bytes) -> Header:
    """Open an image file by its first bytes; its name says nothing.

    Raises:
        BadImageError: EmptyImage, UnsupportedImage, BrokenImage; or TooManyPixels, where a decoder takes memory for the picture on opening.
    """
    if not data:
        raise BadImageError("EmptyImage", "the image file is empty")
    kind = sniff(data)
    if kind is None:
        raise BadImageError("UnsupportedImage", f"not an image of a supported format ({', '.join(FORMATS)})")
    with careful("its header cannot be read"):
        image = _decoder(kind)(io.BytesIO(data))
        return Header(data, kind, image, _orientation(image, kind))


def sniff(data: bytes) -> str | None:
    """The format by its magic bytes, None if it is not one of ours."""
    if data.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return "WEBP"
    if data.startswith((b"GIF87a", b"GIF89a")):
        return "GIF"
    if data.startswith(b"BM"):
        return "BMP"
    if data.startswith((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")):
        return "TIFF"
    if data[4:8] == b"ftyp" and _brands(data) & {b"avif", b"avis"}:
        return "AVIF"
    return None


def _brands(data: bytes) -> set[bytes]:
    """Major and compatible brands of an ISO media file; other files of the family (HEIC, MP4) have others."""
    size = min(int.from_bytes(data[:4]), 256)
    return {data[8:12], *(data[start : start + 4] for start in range(16, size, 4))}


@cache
def _decoder(kind: str) -> Callable[[io.BytesIO], ImageFile.ImageFile]:
    if kind == "JPEG":
        from PIL.JpegImagePlugin import JpegImageFile

        return JpegImageFile
    if kind == "PNG":
        from PIL.PngImagePlugin import PngImageFile

        return PngImageFile
    if kind == "WEBP":
        from PIL.WebPImagePlugin import WebPImageFile

        return WebPImageFile
    if kind == "GIF":
        from PIL.GifImagePlugin import GifImageFile

        return GifImageFile
    if kind == "BMP":
        from PIL.BmpImagePlugin import BmpImageFile

        return BmpImageFile
    if kind == "TIFF":
        from PIL.TiffImagePlugin import TiffImageFile

        return TiffImageFile
    from PIL.AvifImagePlugin import AvifImageFile

    return AvifImageFile


def _orientation(image: ImageFile.ImageFile, kind: str) -> int:
    received = image.info.get("exif")
    if not received or kind == "TIFF":  # Pillow turns TIFFs itself, and says their upright size
        return 1
    exif = Image.Exif()
    try:
        exif.load(received)
        found: Any = exif.get(_ORIENTATION, 1)
    except Exception:  # damaged EXIF says nothing of the picture: it raises SyntaxError, struct.error, ValueError, …
        return 1
    return found if isinstance(found, int) and 1 <= found <= 8 else 1


@contextmanager
def careful(what: str) -> Iterator[None]:
    """Run a decoder: quietly, strictly, and with its many exceptions as one.

    A library that sets `LOAD_TRUNCATED_IMAGES` for itself does not make cut pictures pass here.
    """
    lenient = ImageFile.LOAD_TRUNCATED_IMAGES
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about EXIF and palettes, of every second web image
            yield
    except (BadImageError, MemoryError):
        raise
    except Image.DecompressionBombError as error:
        raise BadImageError("TooManyPixels", str(error)) from None
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error, IndexError, …
        if str(error).startswith(_UNKNOWN):
            raise BadImageError("UnsupportedImage", f"the image is of a kind that is not read: {error}") from None
        raise BadImageError("BrokenImage", f"the image is cut or damaged, {what}: {str(error) or type(error).__name__}") from None
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = lenient
