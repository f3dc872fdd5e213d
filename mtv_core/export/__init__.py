"""The trained model in the formats of other libraries, with a card: `check` before training, `run` after it.

Imports nothing heavy, so that configurations can be read without torch.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mtv_core.export.config import ExportConfig
    from mtv_core.export.model_card import ModelFacts
    from mtv_core.export.writer import ExportResult
    from mtv_core.model.config import ModelConfig

__all__ = ["check", "run"]


def check(model: ModelConfig, config: ExportConfig) -> None:
    """Refuse a format that the model has no exact form of, before anything is trained. Allocates no weights.

    Raises:
        ValueError: with the reason and what to do.
    """
    from mtv_core.export import writer

    writer.check(model, config)


def run(model_folder: Path, config: ExportConfig, out: Path, facts: ModelFacts) -> ExportResult:
    """Export a trained model; see `mtv_core.export.writer.run`."""
    from mtv_core.export import writer

    return writer.run(model_folder, config, out, facts)
