"""The depth expert: any `AutoModelForDepthEstimation`, Depth Anything V2 Small by default (arXiv 2406.09414).

Shapes: B pictures of a batch, H × W as the model sees them.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from mtv_core.experts import base, source
from mtv_core.experts.config import DepthExpertConfig
from mtv_core.experts.preprocess import Resizing

# What `predicted_depth` of an architecture means; Depth Anything's configuration says it itself.
_PREDICTS: dict[str, Literal["disparity", "depth"]] = {"dpt": "disparity", "glpn": "depth"}


class DepthExpert:
    """Inverse depth of pictures, encoded by `mtv_core.data.depth`."""

    name = "depth"
    schema = pa.schema([pa.field("depth", pa.binary())])
    extra_columns: tuple[str, ...] = ()

    def __init__(self, config: DepthExpertConfig) -> None:
        from transformers import AutoImageProcessor, AutoModelForDepthEstimation

        weights = source.resolve(config)
        self.config = config
        self.revision = source.label_revision(self.name, weights, config.label_parameters())
        self.license = weights.license
        self.device = base.pick_device(config.device)
        self.dtype = getattr(torch, config.dtype)
        self.processor = base.load_pretrained(AutoImageProcessor, weights)
        if getattr(self.processor, "do_pad", False) or getattr(self.processor, "do_center_crop", False):
            raise ValueError(
                f"the processor of {config.model} pads or crops pictures, so its maps would not lie on them; "
                "set do_pad and do_center_crop to false in a local copy, or take a model that resizes only"
            )
        self._resizing = Resizing.of(self.processor)
        self.model = base.load_model(AutoModelForDepthEstimation, weights, self.dtype, self.device)
        self.inverted = _predicts(config, self.model.config) == "depth"
        self.counts: Counter[str] = Counter()

    def __call__(
        self, images: Sequence[Image.Image], captions: Sequence[str], phrases: Sequence[Sequence[str] | None] | None = None
    ) -> pa.RecordBatch:
        """Label pictures; captions and phrases are not looked at."""
        from mtv_core.data.depth import encode  # needs blosc2, which a machine that only predicts may lack

        return pa.RecordBatch.from_arrays([pa.array([encode(depth) for depth in self.predict(images)], pa.binary())], schema=self.schema)

    def phrases_in(self, rows: pa.RecordBatch) -> None:
        """None: depth is not asked for by name."""

    def predict(self, images: Sequence[Image.Image]) -> list[NDArray[np.float32]]:
        """Inverse depth of each picture, [H, W] in the picture's own geometry, the longer side at most `depth_size`.

        Pictures that the model sees in the same size go through it together.
        """
        from mtv_core.data.depth import stored_size

        batches: dict[tuple[int, int] | None, list[int]] = defaultdict(list)
        for index, image in enumerate(images):
            batches[self._input_size(image)].append(index)
        maps: dict[int, NDArray[np.float32]] = {}
        for size, indices in batches.items():
            predicted_BHW = self._forward([images[i] for i in indices], size)
            for depth_HW, index in zip(predicted_BHW, indices, strict=True):
                width, height = stored_size(*images[index].size, self.config.depth_size)
                maps[index] = _resample(depth_HW, width, height)
        return [maps[i] for i in range(len(images))]

    def _forward(self, images: list[Image.Image], size: tuple[int, int] | None) -> Tensor:
        with torch.inference_mode():
            if self._resizing is not None and size is not None:
                pixels_BCHW = self._resizing(images, size, self.device)
            else:
                options: dict[str, Any] = (
                    {} if size is None else {"size": {"height": size[1], "width": size[0]}, "keep_aspect_ratio": False}
                )
                pixels_BCHW = self.processor(images=images, return_tensors="pt", **options)["pixel_values"]
            with base.launching(self.device):
                predicted_BHW = self.model(pixel_values=pixels_BCHW.to(self.device, self.dtype)).predicted_depth.float()
        known_BHW = predicted_BHW.isfinite()
        if self.inverted:
            known_BHW &= predicted_BHW > 0
        if not known_BHW.flatten(1).any(dim=1).all():
            wanted, also = ("positive", ", or predicts: disparity if larger is nearer") if self.inverted else ("finite", "")
            raise ValueError(f"the depth model gave no {wanted} number for a picture; a wider dtype (float32, bfloat16) may help{also}")
        if self.inverted:
            predicted_BHW = torch.where(predicted_BHW > 0, 1.0 / predicted_BHW, torch.nan)
        return predicted_BHW.cpu()

    def _input_size(self, image: Image.Image) -> tuple[int, int] | None:
        """Width and height the model sees, by the rule of DPT's processor (Depth Anything's too); None: the processor's own affair.

        Worked out here for two reasons: pictures of equal size can be grouped before anything is computed, and the rule rounds the short
        side of a very long picture to nothing, which fails. Here it is one patch at least.
        """
        step = getattr(self.processor, "ensure_multiple_of", None)
        size = self.config.input_size
        if step is None:
            if size is not None:
                raise ValueError(f"input_size is not supported for {self.config.model}: leave it out, its processor decides")
            return None
        scale_w = (size or self.processor.size["width"]) / image.width
        scale_h = (size or self.processor.size["height"]) / image.height
        if self.processor.keep_aspect_ratio:  # the side that has to change less decides
            scale_w = scale_h = scale_w if abs(1 - scale_w) < abs(1 - scale_h) else scale_h

        def multiple(side: float) -> int:
            return max(step, round(side / step) * step)

        return multiple(scale_w * image.width), multiple(scale_h * image.height)


def _predicts(config: DepthExpertConfig, model_config: Any) -> Literal["disparity", "depth"]:
    if config.predicts != "auto":
        return config.predicts
    if model_config.model_type == "depth_anything":
        return "disparity" if model_config.depth_estimation_type == "relative" else "depth"
    if model_config.model_type in _PREDICTS:
        return _PREDICTS[model_config.model_type]
    raise ValueError(f"it is not known what {config.model} ({model_config.model_type}) predicts; set predicts: disparity or depth")


def _resample(depth_HW: Tensor, width: int, height: int) -> NDArray[np.float32]:
    """A map [H, W] over the whole picture in another size: corners stay corners, averaging where it shrinks. NaN spreads."""
    if depth_HW.shape == (height, width):
        return depth_HW.numpy()
    resized = torch.nn.functional.interpolate(
        depth_HW[None, None], size=(height, width), mode="bilinear", align_corners=False, antialias=True
    )
    return resized[0, 0].numpy()
