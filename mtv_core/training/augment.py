"""Geometry and colour: crops of a picture, and labels that move with the pixels.

A crop is a rectangle of whole pixels of the stored picture, so that pictures, boxes and depth are cut at the same place exactly.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as tvf

from mtv_core.training.config import ViewsConfig

Floats = NDArray[np.float32]
_GRAY = (0.299, 0.587, 0.114)  # ITU-R BT.601
_YIQ = torch.tensor([[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])


def generator(seed: int, epoch: int, uid: str) -> np.random.Generator:
    """Everything random about one sample in one epoch: of neither its place in a batch nor the rank it goes to."""
    return np.random.default_rng([seed, epoch, int(uid, 16)])


@dataclass(frozen=True)
class Crop:
    """Columns left … right − 1 and rows top … bottom − 1 of a picture, mirrored afterwards or not."""

    left: int
    top: int
    right: int
    bottom: int
    flip: bool = False


def clean_crop(rng: np.random.Generator, width: int, height: int, views: ViewsConfig) -> Crop:
    """The clean view's rectangle: of the picture's own shape, which is then squashed to a square as in every evaluation."""
    share, x, y, mirror = rng.random(4).tolist()
    side = math.sqrt(views.clean_scale[0] + share * (views.clean_scale[1] - views.clean_scale[0]))
    return _place(width, height, side * width, side * height, x, y, mirror < views.clean_flip)


def random_crop(rng: np.random.Generator, width: int, height: int, scale: tuple[float, float], views: ViewsConfig) -> Crop:
    """A share of the area drawn evenly from `scale`, of a shape drawn from 1/aspect … aspect as far as the picture has room for it."""
    share, shape, x, y, mirror = rng.random(5).tolist()
    share = scale[0] + share * (scale[1] - scale[0])
    # The crop fits if share · W/H ≤ w/h ≤ W/H / share; no drawing again, so that every sample draws the same number of numbers.
    narrowest, widest = share * width / height, width / height / share
    low, high = (min(max(ratio, narrowest), widest) for ratio in (1 / views.aspect, views.aspect))
    ratio = math.exp(math.log(low) + shape * (math.log(high) - math.log(low)))
    area = share * width * height
    return _place(width, height, math.sqrt(area * ratio), math.sqrt(area / ratio), x, y, mirror < views.flip)


def _place(width: int, height: int, w: float, h: float, x: float, y: float, flip: bool) -> Crop:
    columns, rows = min(width, max(1, round(w))), min(height, max(1, round(h)))
    left, top = int(x * (width - columns + 1)), int(y * (height - rows + 1))
    return Crop(left, top, left + columns, top + rows, flip)


def crop_picture(image: torch.Tensor, crop: Crop, size: int) -> torch.Tensor:
    """uint8 [3, H, W] → uint8 [3, size, size], bilinear with antialiasing: torchvision's `resize` less its overhead."""
    part = image[:, crop.top : crop.bottom, crop.left : crop.right]
    part = F.interpolate(part[None], (size, size), mode="bilinear", antialias=True)[0]
    return part.flip(-1) if crop.flip else part


def clean_picture(image: torch.Tensor, crop: Crop, size: int) -> torch.Tensor:
    """uint8 [3, H, W] → uint8 [3, size, size], as `model.preprocess` resizes."""
    part = image[:, crop.top : crop.bottom, crop.left : crop.right]
    part = tvf.resize(part, [size, size], interpolation=InterpolationMode.BICUBIC, antialias=True)
    return part.flip(-1) if crop.flip else part


def move_boxes(boxes: Floats, crop: Crop, width: int, height: int, min_kept: float) -> tuple[Floats, NDArray[np.bool_]]:
    """Boxes of the crop.

    Args:
        boxes: [K, 4] xyxy, 0 … 1 of the picture.
        crop: what is left of it.
        width: of the picture, px.
        height: of the picture, px.
        min_kept: share of its area that must be inside the crop for a box to stay.

    Returns:
        [K, 4] xyxy, 0 … 1 of the crop, cut at its border; bool [K], which of them stay.
    """
    scale = np.array([crop.right - crop.left, crop.bottom - crop.top] * 2, np.float64)
    moved = (boxes.astype(np.float64) * [width, height, width, height] - [crop.left, crop.top] * 2) / scale
    if crop.flip:
        moved = np.stack([1 - moved[:, 2], moved[:, 1], 1 - moved[:, 0], moved[:, 3]], axis=1)
    inside = moved.clip(0, 1)
    area, kept = _area(moved), _area(inside)
    return inside.astype(np.float32), (kept > 0) & (kept >= min_kept * area)


def _area(boxes: NDArray[np.float64]) -> NDArray[np.float64]:
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


def move_depth(depth: Floats, crop: Crop, width: int, height: int, size: int) -> Floats:
    """[h, w] inverse depth of a picture of width × height px → [size, size] of the crop.

    The value where the middle of each target pixel falls: a mean of depths on both sides of an edge would be the depth of nothing.
    """
    at = (np.arange(size) + 0.5) / size
    rows = ((crop.top + at * (crop.bottom - crop.top)) * (depth.shape[0] / height)).astype(np.int64)
    columns = ((crop.left + (at[::-1] if crop.flip else at) * (crop.right - crop.left)) * (depth.shape[1] / width)).astype(np.int64)
    moved: Floats = depth[np.minimum(rows, depth.shape[0] - 1)[:, None], np.minimum(columns, depth.shape[1] - 1)]
    return moved


def draw_colours(rng: np.random.Generator, crops: int) -> Floats:
    """[crops, 8]: what `recolour` takes, even in 0 … 1."""
    return rng.random((crops, 8), np.float32)


def recolour(pictures: torch.Tensor, drawn: torch.Tensor, views: ViewsConfig) -> torch.Tensor:
    """Change colours and blur, and scale to −1 … 1.

    Brightness, contrast, saturation and hue in this order are one 3×3 matrix and one offset a picture, so they are applied at once; only
    the result is cut to the range of bytes.

    Args:
        pictures: uint8 [n, 3, s, s].
        drawn: [n, 8] of `draw_colours`.
        views: strengths and probabilities.

    Returns:
        float32 [n, 3, s, s].
    """
    u, shape = drawn, pictures.shape
    x = pictures.flatten(2).float()
    jittered = u[:, 0] < views.jitter

    def factor(column: int, strength: float) -> torch.Tensor:
        return torch.where(jittered, 1 + strength * (2 * u[:, column] - 1), 1.0)

    brightness, contrast, saturation = factor(1, views.brightness), factor(2, views.contrast), factor(3, views.saturation)
    saturation = torch.where(u[:, 5] < views.grayscale, 0.0, saturation)
    gray = torch.tensor(_GRAY)
    identity = torch.eye(3)
    saturate = saturation[:, None, None] * identity + (1 - saturation)[:, None, None] * gray.expand(3, 3)
    matrix = _hue(torch.where(jittered, views.hue * (2 * u[:, 4] - 1), 0.0)) @ saturate * (brightness * contrast)[:, None, None]
    # The mean gray that contrast turns about has no colour: saturation and hue leave it alone.
    offset = (1 - contrast) * brightness * (x.mean(dim=2) @ gray)
    x = torch.bmm(matrix, x).add_(offset[:, None, None]).clamp_(0, 255).view(shape)
    if views.blur > 0:
        chosen = torch.nonzero(u[:, 6] < views.blur)[:, 0]
        if len(chosen):
            low, high = (sigma * shape[-1] / 224 for sigma in views.blur_sigma)
            x[chosen] = gaussian_blur(x[chosen], low + u[chosen, 7] * (high - low), radius=max(1, math.ceil(3 * high)))
    return x.mul_(2 / 255).sub_(1)


def _hue(turns: torch.Tensor) -> torch.Tensor:
    """[n] → [n, 3, 3]: rotation of the colour plane of YIQ about its gray axis."""
    angle = 2 * math.pi * turns
    rotation = torch.zeros(len(turns), 3, 3)
    rotation[:, 0, 0] = 1
    rotation[:, 1, 1] = rotation[:, 2, 2] = angle.cos()
    rotation[:, 1, 2], rotation[:, 2, 1] = -angle.sin(), angle.sin()
    return torch.linalg.inv(_YIQ) @ rotation @ _YIQ


def gaussian_blur(pictures: torch.Tensor, sigma: torch.Tensor, radius: int) -> torch.Tensor:
    """float [n, 3, s, s], each with a sigma [n] of its own in px; the kernel reaches `radius` px, borders are repeated."""
    n, channels, height, width = pictures.shape
    radius = min(radius, height - 1, width - 1)
    kernel = torch.exp(-0.5 * (torch.arange(-radius, radius + 1) / sigma[:, None]) ** 2)
    weight = (kernel / kernel.sum(dim=1, keepdim=True)).repeat_interleave(channels, dim=0)[:, None]
    x = F.pad(pictures, [radius] * 4, mode="replicate").view(1, n * channels, height + 2 * radius, width + 2 * radius)
    x = F.conv2d(F.conv2d(x, weight[..., None], groups=n * channels), weight[:, :, None], groups=n * channels)
    return x.view(n, channels, height, width)
