"""The detection expert: boxes of the phrases of a picture's caption, of a fixed vocabulary, or of a column of the user's own.

What is asked is decided here, what is kept in `selection`; the model behind it is one of `detectors`.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import torch
from PIL import Image

from mtv_core.data.schema import LABELS
from mtv_core.experts import base, detectors, phrase_column, source
from mtv_core.experts.config import DetectionExpertConfig
from mtv_core.experts.phrase_column import BadPhrases
from mtv_core.experts.phrases import extract
from mtv_core.experts.selection import NOTHING, Detections, select


class _Last(threading.local):
    """What each thread's last call counted."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()


class DetectionExpert:
    """Boxes with phrases. A picture in which nothing is found, or whose caption names nothing, has an empty list."""

    name = "detection"
    schema = LABELS["detection"]

    def __init__(self, config: DetectionExpertConfig) -> None:
        weights = source.resolve(config)
        self.config = config
        self.revision = source.label_revision(self.name, weights, config.label_parameters())
        self.license = weights.license
        self.device = base.pick_device(config.device)
        self.detector = detectors.load(config, weights, self.device, getattr(torch, config.dtype))
        self._last = _Last()
        column = config.phrases_column
        self.extra_columns: tuple[str, ...] = () if column is None else (phrase_column.column_of(column)[0],)

    @property
    def counts(self) -> Counter[str]:
        """What filters dropped in this thread's last call: `detection_filter_<name>` → boxes."""
        return self._last.counts

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
        return _batch(found)

    def phrases_in(self, rows: pa.RecordBatch) -> list[list[str] | BadPhrases] | None:
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
        """Find each picture's own phrases in it, and count what filters drop. Pictures without a phrase cost nothing."""
        found = [NOTHING] * len(images)
        dropped: Counter[str] = Counter()
        asked = [i for i, wanted in enumerate(phrases_of) if wanted]
        if asked:
            with torch.inference_mode():
                proposed = self.detector([images[i] for i in asked], [phrases_of[i] for i in asked])
                if not torch.cat([part.flatten() for one in proposed for part in (one.scores, one.boxes)]).isfinite().all():
                    raise ValueError("the detection model gave numbers that are not finite; a wider dtype (float32, bfloat16) may help")
                chosen = select(proposed, [images[i].size for i in asked], [phrases_of[i] for i in asked], self.config, dropped)
            for i, one in zip(asked, chosen, strict=True):
                found[i] = one
        self._last.counts = Counter({f"detection_filter_{name}": number for name, number in dropped.items()})
        return found


def _batch(found: Sequence[Detections]) -> pa.RecordBatch:
    """One row a picture, from flat arrays."""
    schema = LABELS["detection"]
    offsets = np.zeros(len(found) + 1, np.int32)
    np.cumsum([len(one.scores) for one in found], out=offsets[1:])
    flat = np.concatenate([one.boxes for one in found]) if found else np.zeros((0, 4), np.float32)
    values = (
        pa.FixedSizeListArray.from_arrays(pa.array(flat.ravel(), pa.float32()), type=schema.field("boxes").type.value_type),
        pa.array([phrase for one in found for phrase in one.phrases], pa.string()),
        pa.array(np.concatenate([one.scores for one in found]) if found else [], pa.float32()),
    )
    columns = [pa.ListArray.from_arrays(offsets, value, type=field.type) for field, value in zip(schema, values, strict=True)]
    return pa.RecordBatch.from_arrays(columns, schema=schema)
