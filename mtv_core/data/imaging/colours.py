"""Any mode that Pillow decodes → RGB on white, in sRGB."""

from __future__ import annotations

import io
from functools import lru_cache

import numpy as np
from PIL import Image, ImageCms

from mtv_core.data.imaging.base import BadImageError

_SPACES = {"RGB": "RGB", "L": "GRAY", "CMYK": "CMYK"}  # Pillow's mode → ICC's name
_LARGEST_PROFILE = 4 << 20  # bytes; real ones have 0.5 KB … 2 MB
_SAME = 2  # of 255: what two libraries' roundings of the same colours differ by


def to_rgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """Colours of a picture without palette (`unpacked`), put on white and brought to sRGB."""
    if image.mode in ("LA", "RGBA"):
        on_white = Image.new("RGB", image.size, "white")
        on_white.paste(to_rgb(image.convert(image.mode[:-1]), profile), mask=image.getchannel("A"))
        return on_white
    if image.mode == "LAB":
        lab = ImageCms.createProfile("LAB")
        return _converted(image, ImageCms.buildTransform(lab, _srgb(), "LAB", "RGB"))
    transform = None if profile is None else to_srgb(profile, image.mode)
    return image.convert("RGB") if transform is None else _converted(image, transform)


def unpacked(image: Image.Image, bits: int) -> Image.Image:
    """A decoded picture in a mode that can be scaled: L, RGB, CMYK, LAB, or LA or RGBA if there is anything transparent.

    Grey stays grey, since a grey profile is for grey alone. A palette is colours, and a grey profile of one is ignored: the PNG
    specification wants RGB there, and browsers hold files to it.

    Args:
        image: decoded.
        bits: of a sample, where Pillow keeps more than eight.

    Raises:
        BadImageError: samples without a white that everybody knows (32-bit whole or floating numbers).
    """
    transparent = image.info.get("transparency")
    if image.mode.startswith("I;16"):
        values = np.asarray(image)
        grey = Image.fromarray((values >> (bits - 8)).astype(np.uint8))  # scaled: Pillow's own conversion would clip it
        if not isinstance(transparent, int):
            return grey
        return Image.merge("LA", (grey, Image.fromarray(np.where(values == transparent, 0, 255).astype(np.uint8))))
    if image.mode in ("I", "F"):
        raise BadImageError("UnsupportedImage", "its pixels are 32-bit numbers, and nothing says which of them is white")
    if bits == 16 and isinstance(transparent, tuple):  # Pillow keeps the upper byte of each sample, but the colour as it was
        image.info["transparency"] = tuple(value >> 8 for value in transparent)
    if image.has_transparency_data:
        return image.convert("LA" if image.mode in ("1", "L", "LA") else "RGBA")
    if image.mode == "1":
        return image.convert("L")
    return image if image.mode in ("L", "RGB", "CMYK", "LAB") else image.convert("RGB")


@lru_cache(maxsize=32)
def to_srgb(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """Transform of a picture with this profile to sRGB; None if there is nothing to do.

    A profile that is broken, or for other channels than the picture has, is ignored as browsers do: the picture was seen without it by
    everyone who chose or captioned it. One that is sRGB under another name is found by what it does to colours, once.
    """
    if len(profile) > _LARGEST_PROFILE:
        return None
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if source.profile.xcolor_space.strip() != _SPACES.get(mode):
            return None
        transform = ImageCms.buildTransform(source, _srgb(), mode, "RGB")
        probe = _probe(mode)
        moved = np.abs(np.asarray(_converted(probe, transform), np.int16) - np.asarray(probe.convert("RGB"), np.int16)).max()
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return None
    return None if mode != "CMYK" and moved <= _SAME else transform


@lru_cache(maxsize=1)
def _srgb() -> ImageCms.ImageCmsProfile:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))


def _probe(mode: str) -> Image.Image:
    """Every 17th value of every channel."""
    steps = np.arange(0, 256, 17, dtype=np.uint8)
    grid = np.stack(np.meshgrid(*[steps] * len(Image.getmodebands(mode) * "x"), indexing="ij"), axis=-1)
    flat = grid.reshape(1, -1, grid.shape[-1])
    return Image.fromarray(flat[..., 0] if mode == "L" else flat, mode)


def _converted(image: Image.Image, transform: ImageCms.ImageCmsTransform) -> Image.Image:
    result = ImageCms.applyTransform(image, transform)
    assert result is not None
    return result
