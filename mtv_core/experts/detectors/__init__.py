"""Detectors by the `model_type` of their configuration. An architecture is one module here and one line in `_DETECTORS`."""

from __future__ import annotations

from typing import Any

import torch

from mtv_core.experts.base import load_pretrained
from mtv_core.experts.config import DetectionExpertConfig
from mtv_core.experts.detectors.base import Candidates, Detector
from mtv_core.experts.detectors.grounding_dino import GroundingDinoDetector
from mtv_core.experts.detectors.owlv2 import Owlv2Detector
from mtv_core.experts.source import Source

__all__ = ["Candidates", "Detector", "load"]

_DETECTORS: dict[str, Any] = {"owlv2": Owlv2Detector, "grounding-dino": GroundingDinoDetector}


def load(config: DetectionExpertConfig, weights: Source, device: torch.device, dtype: torch.dtype) -> Detector:
    """The detector that fits a model's configuration.

    Raises:
        FileNotFoundError: files of it are missing.
        ValueError: it is no architecture known here, or settings do not fit it.
    """
    from transformers import AutoConfig

    kind = load_pretrained(AutoConfig, weights).model_type
    if kind not in _DETECTORS:
        raise ValueError(
            f"{config.model} is a {kind!r}, which is no detector that is known here ({', '.join(sorted(_DETECTORS))}); set "
            "label.detection.model to one of those"
        )
    detector: Detector = _DETECTORS[kind](config, weights, device, dtype)
    return detector
