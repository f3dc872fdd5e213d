"""Pictures → what a model sees, as the image processors of Depth Anything (DPT's) and OWLv2 make it, without what theirs takes.

The slow truth is `processor(images=[image], return_tensors="pt")["pixel_values"]` of each picture alone. Here the pictures of a batch are
copied once, stay bytes as long as they can (a quarter of what goes to a GPU), and are scaled and normalised together, there. Every number
is rounded where the processor rounds it, so on a CPU the results are the same bit for bit, but for OWLv2's blur of pictures larger than
the model's input: it is one pass an axis, and differs by less than 1e-5. `tests/unit/test_preprocess.py` holds both to the processors.

Shapes: B pictures, H × W.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as vision

_INTERPOLATIONS = {
    Image.Resampling.BILINEAR: InterpolationMode.BILINEAR,
    Image.Resampling.BICUBIC: InterpolationMode.BICUBIC,
}


@dataclass(frozen=True)
class Resizing:
    """DPT's processor: bytes are resized with antialiasing and rounded, then normalised."""

    interpolation: InterpolationMode
    mean: tuple[float, ...]  # of the values 0 … 1
    std: tuple[float, ...]
    scale: float  # of a byte to those values

    @classmethod
    def of(cls, processor: Any) -> Resizing | None:
        """What a processor does, or None if it is another one, or does something else too: then it has to be asked itself."""
        from transformers import DPTImageProcessor

        if type(processor) is not DPTImageProcessor or not _plain(processor):
            return None
        if processor.do_pad or processor.do_center_crop or processor.resample not in _INTERPOLATIONS:
            return None
        interpolation = _INTERPOLATIONS[Image.Resampling(processor.resample)]
        return cls(interpolation, tuple(processor.image_mean), tuple(processor.image_std), processor.rescale_factor)

    def __call__(self, images: Sequence[Image.Image], size: tuple[int, int], device: torch.device) -> Tensor:
        """Pixels [B, 3, H, W], float32, on the device, of RGB pictures of any sizes, all brought to `size` (width, height)."""
        resized: list[Tensor | None] = [None] * len(images)
        for indices in _groups([image.size for image in images]):
            bytes_BCHW = _stack([images[i] for i in indices])
            bytes_BCHW = vision.resize(bytes_BCHW, [size[1], size[0]], self.interpolation, antialias=True)
            if len(indices) == len(images):
                return self._normalise(bytes_BCHW, device)
            for row, i in enumerate(indices):
                resized[i] = bytes_BCHW[row]
        return self._normalise(torch.stack([one for one in resized if one is not None]), device)

    def _normalise(self, bytes_BCHW: Tensor, device: torch.device) -> Tensor:
        pixels_BCHW = _to(bytes_BCHW.contiguous(memory_format=torch.channels_last), device).float()
        mean, std = (torch.tensor(values) * (1.0 / self.scale) for values in (self.mean, self.std))  # as the processor fuses them
        return pixels_BCHW.sub_(_column(mean, device)).div_(_column(std, device))


@dataclass(frozen=True)
class Squaring:
    """OWLv2's processor: padded with black at the bottom and the right to a square, blurred if that is too large, resized, normalised."""

    size: tuple[int, int]  # height and width the model sees, px
    mean: tuple[float, ...]
    std: tuple[float, ...]
    scale: float

    @classmethod
    def of(cls, processor: Any) -> Squaring | None:
        """As `Resizing.of`."""
        from transformers import Owlv2ImageProcessor

        if type(processor) is not Owlv2ImageProcessor or not _plain(processor):
            return None
        if not processor.do_pad or processor.do_center_crop or processor.resample != Image.Resampling.BILINEAR:
            return None
        size = (processor.size["height"], processor.size["width"])
        return cls(size, tuple(processor.image_mean), tuple(processor.image_std), processor.rescale_factor)

    def __call__(self, images: Sequence[Image.Image], device: torch.device) -> Tensor:
        """Pixels [B, 3, H, W], float32, on the device, of RGB pictures of any sizes."""
        pixels_BCHW = torch.empty((len(images), 3, *self.size), device=device)
        for indices in _groups([max(image.size) for image in images]):
            side = max(images[indices[0]].size)
            squares_BCHW = torch.zeros((len(indices), 3, side, side), device=device)
            first = 0
            for (width, height), same in itertools.groupby([images[i] for i in indices], key=lambda image: image.size):
                bytes_BCHW = _to(_stack(list(same)), device)
                end = first + len(bytes_BCHW)
                torch.mul(bytes_BCHW, self.scale, out=squares_BCHW[first:end, :, :height, :width])
                first = end
            if (side, side) != self.size:
                squares_BCHW = vision.resize(self._blur(squares_BCHW), list(self.size), InterpolationMode.BILINEAR, antialias=False)
            if len(indices) == len(images):
                pixels_BCHW = squares_BCHW
            else:
                pixels_BCHW[indices] = squares_BCHW
        return pixels_BCHW.sub_(_column(torch.tensor(self.mean), device)).div_(_column(torch.tensor(self.std), device))

    def _blur(self, squares_BCHW: Tensor) -> Tensor:
        """Gaussian, deviation (shrinking − 1) / 2 px, cut at three deviations, mirrored at the edges; of what grows, nothing."""
        side = squares_BCHW.shape[-1]
        sigmas = [max(0.0, (side / wanted - 1) / 2) for wanted in self.size]
        if 0.0 in sigmas:
            return squares_BCHW
        # One axis after the other: k + k products a pixel, where the processor's one pass has k².
        for axis, sigma in enumerate(sigmas):
            radius = math.ceil(3 * sigma)
            kernel = torch.exp(-0.5 * (torch.arange(-radius, radius + 1, device=squares_BCHW.device) / sigma) ** 2)
            shape = [1, 1, 1, 1]
            shape[2 + axis] = len(kernel)
            padding = [0, 0, radius, radius] if axis == 0 else [radius, radius, 0, 0]
            padded = torch.nn.functional.pad(squares_BCHW, padding, mode="reflect")
            batch, channels, height, width = padded.shape
            flat = padded.reshape(batch * channels, 1, height, width)
            squares_BCHW = torch.nn.functional.conv2d(flat, (kernel / kernel.sum()).view(shape)).view(batch, channels, side, side)
        return squares_BCHW


def _plain(processor: Any) -> bool:
    return bool(processor.do_resize and processor.do_rescale and processor.do_normalize)


def _groups(keys: Sequence[Any]) -> list[list[int]]:
    """Indices of equal keys."""
    found: dict[Any, list[int]] = defaultdict(list)
    for index, key in enumerate(keys):
        found[key].append(index)
    return list(found.values())


def _stack(images: Sequence[Image.Image]) -> Tensor:
    """Bytes [B, 3, H, W] of RGB pictures of one size, in the memory's order as Pillow has them: B, H, W, 3."""
    return torch.from_numpy(np.stack([np.asarray(image) for image in images])).permute(0, 3, 1, 2)


def _to(tensor: Tensor, device: torch.device) -> Tensor:
    """On the device; the caller does not wait for the copy."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def _column(values: Tensor, device: torch.device) -> Tensor:
    return values.to(device).view(-1, 1, 1)
