"""Grounding DINO (arXiv 2303.05499): a picture and its phrases go through the model together, as one text "red cube. blue cone.".

Its logits are per token of that text. A phrase's score is the mean probability of its own tokens, as in the authors' evaluation on COCO
(`PostProcessCocoGrounding`), so the phrase of a box is exactly one that was asked: transformers' own post-processing puts the tokens above
a threshold together, which gives half phrases and mixtures of two.

Shapes: B texts of a batch, T queries (one box each), L tokens of a text, Q phrases.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torchvision.ops import box_convert

from mtv_core.experts import base
from mtv_core.experts.config import DetectionExpertConfig
from mtv_core.experts.detectors.base import Candidates
from mtv_core.experts.source import Source


@dataclass
class _Text:
    """One text: which picture it is asked of, its tokens, and where in them which phrase is."""

    picture: int
    ids: list[int]
    spans: list[tuple[int, int, int]] = field(default_factory=list)  # (phrase, first token, token after the last)


class GroundingDinoDetector:
    """Any `GroundingDinoForObjectDetection` with its own processor."""

    def __init__(self, config: DetectionExpertConfig, weights: Source, device: torch.device, dtype: torch.dtype) -> None:
        from transformers import AutoProcessor, GroundingDinoForObjectDetection, GroundingDinoImageProcessor
        from transformers.models.grounding_dino.modeling_grounding_dino import SPECIAL_TOKENS

        if config.prompt is not None:
            raise ValueError(
                f"{config.model} is a Grounding DINO, which is asked for the phrases themselves ('red cube. blue cone.'); leave out prompt"
            )
        self.device, self.dtype = device, dtype
        self.text_threshold = config.text_threshold
        self.processor = base.load_pretrained(AutoProcessor, weights)
        images: Any = getattr(self.processor, "image_processor", None)
        if not isinstance(images, GroundingDinoImageProcessor) or getattr(images, "pad_size", None):
            raise ValueError(
                f"{config.model} does not have Grounding DINO's processor ({type(images).__name__}), or that pads to a fixed size, so "
                "it is not known how its boxes lie on a picture; take IDEA-Research/grounding-dino-* or a folder saved from one"
            )
        tokenizer = self.processor.tokenizer
        self.first, self.last, self.stop = ids = tokenizer.convert_tokens_to_ids([tokenizer.cls_token, tokenizer.sep_token, "."])
        if not set(ids) <= set(SPECIAL_TOKENS):
            raise ValueError(
                f"the tokenizer of {config.model} numbers [CLS], [SEP] and '.' {ids}, but Grounding DINO tells phrases apart by BERT's "
                f"{SPECIAL_TOKENS}; take the tokenizer of bert-base-uncased"
            )
        self.model = base.load_model(GroundingDinoForObjectDetection, weights, dtype, device)
        self.max_tokens: int = self.model.config.max_text_len

    def __call__(self, images: Sequence[Image.Image], phrases_of: Sequence[Sequence[str]]) -> list[Candidates]:
        """The boxes of every query. Phrases that do not fit into one text are asked in several, each of which has boxes of its own.

        Only pictures that the processor resizes to the same size go through the model together. Beside a larger one a picture is padded,
        and though a pixel mask says so, the model's group norms see it: its labels would depend on its neighbours.
        """
        pixels_of = [self.processor.image_processor(images=[image], return_tensors="pt")["pixel_values"] for image in images]
        groups: dict[tuple[int, ...], list[_Text]] = defaultdict(list)
        for picture, phrases in enumerate(phrases_of):
            groups[tuple(pixels_of[picture].shape)].extend(self._texts(picture, phrases))
        parts: list[list[Candidates]] = [[] for _ in images]
        # Never more texts at once than there are pictures: the caller chose how many fit into memory.
        for texts in (group[first : first + len(images)] for group in groups.values() for first in range(0, len(group), len(images))):
            for text, found in zip(texts, self._forward([pixels_of[text.picture] for text in texts], texts), strict=True):
                parts[text.picture].append(found)
        return [_joined(part) for part in parts]

    def _texts(self, picture: int, phrases: Sequence[str]) -> list[_Text]:
        """The texts that ask for phrases, at most `max_tokens` long each. A longer phrase is cut; one without a token is left out."""
        # '.' and '?' end a phrase for the model.
        cleaned = [phrase.lower().replace(".", " ").replace("?", " ") for phrase in phrases]
        texts: list[_Text] = []
        for number, ids in enumerate(self.processor.tokenizer(cleaned, add_special_tokens=False)["input_ids"]):
            ids = ids[: self.max_tokens - 3]
            if not ids:
                continue
            if not texts or len(texts[-1].ids) + len(ids) + 2 > self.max_tokens:  # the stop and the end come too
                texts.append(_Text(picture, [self.first]))
            text = texts[-1]
            text.spans.append((number, len(text.ids), len(text.ids) + len(ids)))
            text.ids += [*ids, self.stop]
        for text in texts:
            text.ids.append(self.last)
        return texts

    def _forward(self, pixels: Sequence[Tensor], texts: Sequence[_Text]) -> list[Candidates]:
        """One forward pass of a text each and the picture [1, 3, H, W] it is asked of; pictures are of one size.

        Boxes are normalised by the resized picture, which has its proportions: they need no mapping back, only clipping.
        """
        pixels_BCHW = torch.cat(list(pixels))
        longest = max(len(text.ids) for text in texts)
        padding = self.processor.tokenizer.pad_token_id
        ids_BL = torch.tensor([[*text.ids, *[padding] * (longest - len(text.ids))] for text in texts])
        mask_BL = torch.tensor([[1] * len(text.ids) + [0] * (longest - len(text.ids)) for text in texts])
        with base.launching(self.device):
            outputs = self.model(
                pixel_values=pixels_BCHW.to(self.device, self.dtype),
                input_ids=ids_BL.to(self.device),
                token_type_ids=torch.zeros_like(ids_BL).to(self.device),
                attention_mask=mask_BL.to(self.device),
            )
        chances_BTL, boxes_BT4 = outputs.logits.float().sigmoid(), box_convert(outputs.pred_boxes.float(), "cxcywh", "xyxy").clamp(0.0, 1.0)
        return [
            self._candidates(text, chances_TL, boxes_T4)
            for text, chances_TL, boxes_T4 in zip(texts, chances_BTL.cpu(), boxes_BT4.cpu(), strict=True)
        ]

    def _candidates(self, text: _Text, chances_TL: Tensor, boxes_T4: Tensor) -> Candidates:
        score_TQ = torch.stack([chances_TL[:, first:last].mean(dim=1) for _, first, last in text.spans], dim=1)
        named_TQ = torch.stack([chances_TL[:, first:last].amax(dim=1) > self.text_threshold for _, first, last in text.spans], dim=1)
        # A phrase none of whose tokens is named is none; NaN has to get through to whoever looks for it.
        score_T, best_T = score_TQ.where(named_TQ | score_TQ.isnan(), 0.0).max(dim=1)
        numbers = torch.tensor([number for number, *_ in text.spans])
        return Candidates(boxes_T4, score_T, numbers[best_T])


def _joined(parts: Sequence[Candidates]) -> Candidates:
    if not parts:  # none of the phrases has a letter
        return Candidates(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.long))
    return Candidates(*(torch.cat([getattr(part, name) for part in parts]) for name in ("boxes", "scores", "phrases")))
