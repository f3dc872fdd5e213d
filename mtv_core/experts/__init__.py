"""The experts that label pictures: a registry that imports torch only when one is loaded."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from mtv_core.experts import source
from mtv_core.experts.config import ExpertConfig

if TYPE_CHECKING:
    from mtv_core.experts.base import Expert


def _depth(config: Any) -> Expert:
    from mtv_core.experts.depth import DepthExpert

    return DepthExpert(config)


def _detection(config: Any) -> Expert:
    from mtv_core.experts.detection import DetectionExpert

    return DetectionExpert(config)


_LOADERS: dict[str, Callable[[Any], Expert]] = {"depth": _depth, "detection": _detection}
NAMES = tuple(_LOADERS)


def load(name: str, config: ExpertConfig) -> Expert:
    """Load an expert's weights.

    Raises:
        FileNotFoundError: the weights are not there.
        ValueError: they are not what the expert needs, or the configuration does not fit them.
    """
    return _LOADERS[name](config)


def revision(name: str, config: ExpertConfig) -> str:
    """The revision of an expert's labels, without loading it. Raises as `source.resolve`."""
    return source.label_revision(name, source.resolve(config), config.label_parameters())
