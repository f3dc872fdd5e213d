"""Writes the exported folder, proves that it is equal to the trained model, and only then puts it into its place."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers.utils import logging as transformers_logging

from mtv_core.export import convert, siglip, timm
from mtv_core.export.config import ExportConfig, Format
from mtv_core.export.model_card import ModelFacts, render
from mtv_core.model.config import ModelConfig
from mtv_core.model.mtv import MTV, load_model
from mtv_core.runs import write_atomic

CARD = "README.md"


@dataclass(frozen=True)
class ExportResult:
    """What was exported."""

    folder: Path  # SiglipModel's files lie in it directly, timm's in its sub-folder timm
    formats: tuple[Format, ...]
    max_error: float  # largest difference from the trained model, over all formats


def check(model: ModelConfig, config: ExportConfig) -> None:
    """Raise ValueError, with the reason, if the siglip export is asked of a backbone that has no exact counterpart."""
    if "siglip" not in config.formats:
        return
    with torch.device("meta"):
        backbone = MTV(model, vocab_size=8).backbone
    reason = convert.refusal(backbone)
    if reason is not None:
        raise ValueError(
            f"{model.backbone} cannot be exported as a SiglipModel: {reason}. "
            "Set train.model.backbone to a timm `vit_*_siglip_*`, or leave 'siglip' out of export.formats."
        )


def run(model_folder: Path, config: ExportConfig, out: Path, facts: ModelFacts) -> ExportResult:
    """Export a trained model.

    Everything is written and checked beside `out`, then renamed to it. A kill before that leaves the earlier export, if there was one, and
    a hidden folder that the next run clears; between the two renames it leaves the earlier one hidden and nothing at `out`.

    Args:
        model_folder: what `save_model` wrote.
        config: which formats.
        out: the folder to make; an earlier export there is replaced.
        facts: for the model card.

    Raises:
        FileNotFoundError: there is no model in `model_folder`.
        ValueError: the backbone has no form in one of the formats, or `out` holds something else than an export.
        RuntimeError: an exported model differs from the trained one by more than 1e-5; nothing is left at `out`.
    """
    out = Path(out)
    if out.exists() and not (out.is_dir() and ((out / CARD).is_file() or not any(out.iterdir()))):
        raise ValueError(f"{out} holds something else than an exported model; choose another folder, or delete it")
    model, tokenizer = load_model(model_folder)
    partial, old = out.with_name(f".{out.name}.partial"), out.with_name(f".{out.name}.old")
    for left in (partial, old):
        shutil.rmtree(left, ignore_errors=True)
    partial.mkdir(parents=True)
    errors: dict[str, float] = {}
    with _quiet():
        for format_name in config.formats:
            if format_name == "siglip":
                siglip.write(model, tokenizer, partial)
                errors[format_name] = siglip.max_error(model, tokenizer, partial)
            else:
                timm.write(model, partial / "timm")
                errors[format_name] = timm.max_error(model, partial / "timm")
            if not errors[format_name] <= siglip.TOLERANCE:  # a NaN is no equality
                shutil.rmtree(partial)
                raise RuntimeError(
                    f"the {format_name} export differs from the trained model by {errors[format_name]:.1e}, "
                    f"more than {siglip.TOLERANCE:.0e}; nothing was exported. "
                    "Look whether the losses of the training are finite; if they are, this is a bug of MTV: please report it."
                )
    write_atomic(partial / CARD, render(facts, config.name, config.formats, errors))
    if out.exists():
        out.replace(old)
    partial.replace(out)
    shutil.rmtree(old, ignore_errors=True)
    return ExportResult(out, tuple(config.formats), max(errors.values()))


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars, and no warnings of transformers about the class defaults that we then replace."""
    level, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()
