"""OWLv2 (arXiv 2306.09683): a box for every image token, scored against text embeddings, so a phrase is embedded once for all pictures.

Shapes: B pictures of a batch, T tokens of a picture (one box each), Q phrases, D of the text embedding, P prompts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torchvision.ops import box_convert

from mtv_core.experts import base
from mtv_core.experts.config import DetectionExpertConfig
from mtv_core.experts.detectors.base import Candidates
from mtv_core.experts.embeddings import PhraseEmbeddings
from mtv_core.experts.preprocess import Squaring
from mtv_core.experts.source import Source

TEXT_BATCH = 256  # texts through the text tower at once


class Owlv2Detector:
    """Any `Owlv2ForObjectDetection` with its own image processor."""

    def __init__(self, config: DetectionExpertConfig, weights: Source, device: torch.device, dtype: torch.dtype) -> None:
        from transformers import AutoProcessor, Owlv2ForObjectDetection, Owlv2ImageProcessor

        self.prompts = config.prompts
        self.device, self.dtype = device, dtype
        self.processor = base.load_pretrained(AutoProcessor, weights)
        images: Any = getattr(self.processor, "image_processor", None)
        if not isinstance(images, Owlv2ImageProcessor) or not images.do_pad:
            raise ValueError(
                f"{config.model} does not have OWLv2's own image processor ({type(images).__name__}), so it is not known how its boxes "
                "lie on a picture; take google/owlv2-* or a folder saved from one"
            )
        if "text_threshold" in config.label_parameters():  # it is only there if it was changed
            raise ValueError(f"text_threshold is Grounding DINO's, and {config.model} is an OWLv2; leave it out and set threshold")
        self._squaring = Squaring.of(images)
        self.model = base.load_model(Owlv2ForObjectDetection, weights, dtype, device)
        self.embeddings = PhraseEmbeddings(self._embed)

    def __call__(self, images: Sequence[Image.Image], phrases_of: Sequence[Sequence[str]]) -> list[Candidates]:
        """The box of every token. Those that lie in the padding have no area in the picture."""
        logits_BTQ, boxes_BT4 = self._forward(images, phrases_of)
        score_BT, phrase_BT = logits_BTQ.max(dim=-1)  # the best phrase of a token is its box's phrase
        score_BT, phrase_BT, boxes_BT4 = score_BT.sigmoid().cpu(), phrase_BT.cpu(), box_convert(boxes_BT4.float(), "cxcywh", "xyxy").cpu()
        return [
            Candidates(to_picture(boxes_T4, image.size), score_T, phrase_T)
            for image, boxes_T4, score_T, phrase_T in zip(images, boxes_BT4, score_BT, phrase_BT, strict=True)
        ]

    def _forward(self, images: Sequence[Image.Image], phrases_of: Sequence[Sequence[str]]) -> tuple[Tensor, Tensor]:
        """Logits [B, T, Q] of each picture's own phrases, float32, -inf beyond them, and boxes [B, T, 4] (cxcywh of the padded square).

        Equal to `Owlv2ForObjectDetection.forward` with the texts of all pictures, which would go through the text tower again each time.
        """
        if self._squaring is not None:
            pixels_BCHW = self._squaring(images, self.device)
        else:
            pixels_BCHW = self.processor.image_processor(images=list(images), return_tensors="pt")["pixel_values"]
        with base.launching(self.device):
            queries_BQD, mask_BQ = self._queries(phrases_of)
            feature_map, _ = self.model.image_embedder(pixels_BCHW.to(self.device, self.dtype))
            tokens_BTD = feature_map.flatten(1, 2)
            logits_BTQ, _ = self.model.class_predictor(tokens_BTD, queries_BQD, mask_BQ)
            # The model itself masks with the lowest number of its dtype, which in float16 a real phrase can fall below.
            return logits_BTQ.float().masked_fill(~mask_BQ[:, None], -torch.inf), self.model.box_predictor(tokens_BTD, feature_map)

    def _queries(self, phrases_of: Sequence[Sequence[str]]) -> tuple[Tensor, Tensor]:
        """Text embeddings [B, Q, D], padded, and which of them are a phrase [B, Q]."""
        wanted = list(dict.fromkeys(phrase for row in phrases_of for phrase in row))
        number = {phrase: index for index, phrase in enumerate(wanted)}
        longest = max(len(row) for row in phrases_of)
        index_BQ = torch.tensor([[*(number[phrase] for phrase in row), *[-1] * (longest - len(row))] for row in phrases_of])
        mask_BQ = index_BQ >= 0
        queries_BQD = self.embeddings(wanted)[index_BQ.clamp(min=0).to(self.device)]
        return queries_BQD, mask_BQ.to(self.device)

    def _embed(self, phrases: Sequence[str]) -> Tensor:
        """Embeddings [len(phrases), D], normalised as the model's own forward does; of several prompts their mean, normalised again."""
        prompts = [prompt.format(phrase) for phrase in phrases for prompt in self.prompts]
        length: Any = self.model.config.text_config.max_position_embeddings
        parts: list[Tensor] = []
        for first in range(0, len(prompts), TEXT_BATCH):
            texts = prompts[first : first + TEXT_BATCH]
            tokens = self.processor.tokenizer(texts, padding="max_length", truncation=True, max_length=length, return_tensors="pt")
            embeddings = self.model.owlv2.get_text_features(
                input_ids=tokens["input_ids"].to(self.device), attention_mask=tokens["attention_mask"].to(self.device)
            ).pooler_output
            parts.append(embeddings / torch.linalg.norm(embeddings, ord=2, dim=-1, keepdim=True))
        if len(self.prompts) == 1:
            return torch.cat(parts)
        means = torch.cat(parts).unflatten(0, (len(phrases), len(self.prompts))).mean(dim=1)  # over P, as CLIP's prompt ensembles
        return means / torch.linalg.norm(means, ord=2, dim=-1, keepdim=True)


def to_picture(boxes_N4: Tensor, size: tuple[int, int]) -> Tensor:
    """Boxes xyxy normalised by OWLv2's square → normalised by the picture of `size` (width, height), clipped to it.

    OWLv2's processor pads a picture at the bottom and the right to a square of its longer side before it resizes.
    """
    width, height = size
    side = max(size)
    return (boxes_N4 * boxes_N4.new_tensor([side / width, side / height, side / width, side / height])).clamp(0.0, 1.0)
