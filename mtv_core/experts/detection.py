"""The detection expert: any OWLv2 (arXiv 2306.09683), asked for the phrases of a picture's caption or for a fixed vocabulary.

Shapes: B pictures of a batch, T tokens of a picture (one box each), Q phrases, D of the text embedding.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torchvision.ops import batched_nms, box_convert

from mtv_core.data.schema import LABELS
from mtv_core.experts import base, phrase_column, source
from mtv_core.experts.config import DetectionExpertConfig
from mtv_core.experts.phrases import extract

CACHED_PHRASES = 100_000  # text embeddings kept; 200 MB for the base model's 512 floats
TEXT_BATCH = 256  # phrases through the text tower at once


@dataclass(frozen=True)
class Detections:
    """What is found in one picture, best first."""

    boxes: NDArray[np.float32]  # [N, 4] xyxy, normalised by the picture's own width and height
    phrases: list[str]
    scores: NDArray[np.float32]  # [N]


class DetectionExpert:
    """Boxes with phrases. A picture in which nothing is found, or whose caption names nothing, has an empty list."""

    name = "detection"
    schema = LABELS["detection"]

    def __init__(self, config: DetectionExpertConfig) -> None:
        from transformers import AutoProcessor, Owlv2ForObjectDetection, Owlv2ImageProcessor

        weights = source.resolve(config)
        self.config = config
        self.revision = source.label_revision(self.name, weights, config.label_parameters())
        self.license = weights.license
        self.device = base.pick_device(config.device)
        self.dtype = getattr(torch, config.dtype)
        self.processor = base.load_pretrained(AutoProcessor, weights)
        images: Any = getattr(self.processor, "image_processor", None)
        if not isinstance(images, Owlv2ImageProcessor) or not images.do_pad:
            raise ValueError(
                f"{config.model} does not have OWLv2's own image processor ({type(images).__name__}), so it is not known how its boxes "
                "lie on a picture; take google/owlv2-* or a folder saved from one"
            )
        self.model = base.load_model(Owlv2ForObjectDetection, weights, self.dtype, self.device)
        self._embeddings: dict[str, Tensor] = {}
        self.counts: Counter[str] = Counter()
        column = config.phrases_column
        self.extra_columns: tuple[str, ...] = () if column is None else (phrase_column.column_of(column)[0],)

    def __call__(
        self, images: Sequence[Image.Image], captions: Sequence[str], phrases: Sequence[Sequence[str] | None] | None = None
    ) -> pa.RecordBatch:
        """Label pictures by the phrases given, else by the vocabulary or what their captions name.

        Raises:
            ValueError: a column of phrases is configured, and none are given.
        """
        if phrases is None and self.extra_columns:
            raise ValueError(f"phrases come from the column {self.config.phrases_column!r}, but it was not read")
        wanted = [self.phrases_of(caption) for caption in captions] if phrases is None else [self._limited(row) for row in phrases]
        found = self.predict(images, wanted)
        columns = (
            pa.array([list(one.boxes) for one in found], self.schema.field("boxes").type),
            pa.array([one.phrases for one in found], self.schema.field("phrases").type),
            pa.array([one.scores for one in found], self.schema.field("scores").type),
        )
        return pa.RecordBatch.from_arrays(list(columns), schema=self.schema)

    def phrases_in(self, rows: pa.RecordBatch) -> list[list[str]] | None:
        """What the user's column asks for in each row, cleaned, each phrase once. Raises as `phrase_column.read`."""
        return None if self.config.phrases_column is None else phrase_column.read(rows, self.config.phrases_column)

    def _limited(self, row: Sequence[str] | None) -> list[str]:
        return list(row or ())[: self.config.max_phrases]

    def phrases_of(self, caption: str) -> list[str]:
        """What is looked for in a picture with this caption."""
        if self.config.vocabulary is not None:
            return list(self.config.vocabulary)
        return extract(caption, self.config.max_phrases)

    def predict(self, images: Sequence[Image.Image], phrases_of: Sequence[Sequence[str]]) -> list[Detections]:
        """Find each picture's own phrases in it. Pictures without a phrase cost nothing."""
        nothing = Detections(np.zeros((0, 4), np.float32), [], np.zeros(0, np.float32))
        found = [nothing] * len(images)
        asked = [i for i, wanted in enumerate(phrases_of) if wanted]
        if not asked:
            return found
        with torch.inference_mode():
            logits_BTQ, boxes_BT4 = self._forward([images[i] for i in asked], [phrases_of[i] for i in asked])
            # The best phrase of a token is its box's phrase.
            score_BT, phrase_BT = (values.cpu() for values in logits_BTQ.float().max(dim=-1))
            score_BT, boxes_BT4 = score_BT.sigmoid(), boxes_BT4.float().cpu()
            if not (score_BT.isfinite().all() and boxes_BT4.isfinite().all()):
                raise ValueError("the detection model gave numbers that are not finite; a wider dtype (float32, bfloat16) may help")
            for row, i in enumerate(asked):
                found[i] = self._select(boxes_BT4[row], score_BT[row], phrase_BT[row], images[i].size, phrases_of[i])
        return found

    def _forward(self, images: list[Image.Image], phrases_of: list[Sequence[str]]) -> tuple[Tensor, Tensor]:
        """Logits [B, T, Q] of each picture's own phrases, the lowest number beyond them, and boxes [B, T, 4] (cxcywh of the padded square).

        Equal to `Owlv2ForObjectDetection.forward` with the texts of all pictures, which would go through the text tower again each time.
        """
        pixels_BCHW = self.processor.image_processor(images=images, return_tensors="pt")["pixel_values"].to(self.device, self.dtype)
        queries_BQD, mask_BQ = self._queries(phrases_of)
        feature_map, _ = self.model.image_embedder(pixels_BCHW)
        tokens_BTD = feature_map.flatten(1, 2)
        logits_BTQ, _ = self.model.class_predictor(tokens_BTD, queries_BQD, mask_BQ)
        return logits_BTQ, self.model.box_predictor(tokens_BTD, feature_map)

    def _queries(self, phrases_of: list[Sequence[str]]) -> tuple[Tensor, Tensor]:
        """Text embeddings [B, Q, D], padded, and which of them are a phrase [B, Q]. A phrase is embedded once in the expert's life."""
        wanted = dict.fromkeys(phrase for row in phrases_of for phrase in row)
        if len(self._embeddings) + len(wanted) > CACHED_PHRASES:
            self._embeddings.clear()
        new = [phrase for phrase in wanted if phrase not in self._embeddings]
        for first in range(0, len(new), TEXT_BATCH):
            part = new[first : first + TEXT_BATCH]
            self._embeddings.update(zip(part, self._embed(part), strict=True))
        longest = max(len(row) for row in phrases_of)
        mask_BQ = torch.tensor([[q < len(row) for q in range(longest)] for row in phrases_of], device=self.device)
        padded = [[*row, *[row[0]] * (longest - len(row))] for row in phrases_of]
        return torch.stack([torch.stack([self._embeddings[phrase] for phrase in row]) for row in padded]), mask_BQ

    def _embed(self, texts: list[str]) -> Tensor:
        """Embeddings [len(texts), D], normalised as the model's own forward does."""
        prompts = [self.config.prompt.format(text) for text in texts]
        length: Any = self.model.config.text_config.max_position_embeddings
        tokens = self.processor.tokenizer(prompts, padding="max_length", truncation=True, max_length=length, return_tensors="pt")
        embeddings = self.model.owlv2.get_text_features(
            input_ids=tokens["input_ids"].to(self.device), attention_mask=tokens["attention_mask"].to(self.device)
        ).pooler_output
        return embeddings / torch.linalg.norm(embeddings, ord=2, dim=-1, keepdim=True)

    def _select(self, boxes_T4: Tensor, score_T: Tensor, phrase_T: Tensor, size: tuple[int, int], wanted: Sequence[str]) -> Detections:
        """Threshold, map back to the picture, thin within a phrase, keep the best."""
        keep = score_T > self.config.threshold
        boxes_N4, scores_N, phrase_N = to_picture(box_convert(boxes_T4[keep], "cxcywh", "xyxy"), size), score_T[keep], phrase_T[keep]
        pixels_N4 = boxes_N4 * boxes_N4.new_tensor([*size, *size])  # a wide picture is thinned like a square one
        seen = (pixels_N4[:, 2:] - pixels_N4[:, :2] >= 1.0).all(dim=-1)  # else it lies in the padding, or is no pixel wide
        boxes_N4, pixels_N4, scores_N, phrase_N = boxes_N4[seen], pixels_N4[seen], scores_N[seen], phrase_N[seen]
        best = batched_nms(pixels_N4, scores_N, phrase_N, self.config.nms)[: self.config.max_boxes]
        return Detections(boxes_N4[best].numpy(), [wanted[q] for q in phrase_N[best].tolist()], scores_N[best].numpy())


def to_picture(boxes_N4: Tensor, size: tuple[int, int]) -> Tensor:
    """Boxes xyxy normalised by OWLv2's square → normalised by the picture of `size` (width, height), clipped to it.

    OWLv2's processor pads a picture at the bottom and the right to a square of its longer side before it resizes.
    """
    width, height = size
    side = max(size)
    return (boxes_N4 * boxes_N4.new_tensor([side / width, side / height, side / width, side / height])).clamp(0.0, 1.0)
