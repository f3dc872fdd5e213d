"""What an expert answers, looked at before it becomes labels: what is stored is read for years, and by others."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from PIL import Image

from mtv_core.data.schema import LABELS


class BadAnswerError(ValueError):
    """An expert answered what can be no label."""


def check(name: str, answer: pa.RecordBatch, images: Sequence[Image.Image], phrases: Sequence[Sequence[str]] | None) -> None:
    """See that an answer has a label for every picture. Takes microseconds a picture: depth maps are not decoded.

    Args:
        name: of the expert: which columns it has to give.
        answer: what it gave.
        images: what it was asked for.
        phrases: those of each picture, where the user names them.

    Raises:
        BadAnswerError: other columns or another number of rows; null; boxes or scores that are not finite, outside 0 … 1, or without a
            counterpart; a phrase that was not asked for; bytes that are no depth map of the picture's shape.
    """
    if not answer.schema.equals(LABELS[name]):
        raise BadAnswerError(f"the {name} expert gave the columns {_said(answer.schema)}, not {_said(LABELS[name])}")
    if answer.num_rows != len(images):
        raise BadAnswerError(f"the {name} expert gave {answer.num_rows} labels of {len(images)} pictures")
    if any(column.null_count for column in answer.columns):
        raise BadAnswerError(f"the {name} expert gave a null; what it cannot label it has to raise an error for")
    if name == "depth":
        _check_depth(answer, images)
    else:
        _check_detection(answer, phrases)


def _check_depth(answer: pa.RecordBatch, images: Sequence[Image.Image]) -> None:
    from mtv_core.data.depth import size_of, stored_size

    for label, image in zip(answer.column("depth"), images, strict=True):
        try:
            width, height = size_of(memoryview(label.as_buffer()))
        except ValueError as error:
            raise BadAnswerError(f"the depth expert gave no depth map: {error}") from error
        wanted = stored_size(*image.size, max(width, height))
        if max(abs(width - wanted[0]), abs(height - wanted[1])) > 1:  # px, for those who round differently
            raise BadAnswerError(f"the depth expert gave a map of {width}×{height} for a picture of {image.width}×{image.height}")


def _check_detection(answer: pa.RecordBatch, phrases: Sequence[Sequence[str]] | None) -> None:
    boxes, names, scores = answer.columns
    ends = [column.offsets.to_numpy() - column.offsets[0].as_py() for column in (boxes, names, scores)]
    if not all(np.array_equal(ends[0], other) for other in ends[1:]):
        raise BadAnswerError("the detection expert gave different numbers of boxes, phrases and scores")
    found = [column.flatten() for column in (boxes, names, scores)]
    corners = found[0].flatten()
    if any(values.null_count for values in (*found, corners)):
        raise BadAnswerError("the detection expert gave a null within a label")
    corners_N4, scores_N = corners.to_numpy().reshape(-1, 4), found[2].to_numpy()
    for values, what in ((corners_N4, "a box"), (scores_N[:, None], "a score")):
        right = (values >= 0) & (values <= 1)  # NaN is neither
        if not right.all():
            wrong = values[right.all(axis=1).argmin()].tolist()
            raise BadAnswerError(f"the detection expert gave {what} outside 0 … 1: {', '.join(f'{value:.4g}' for value in wrong)}")
    if not (corners_N4[:, :2] <= corners_N4[:, 2:]).all():
        raise BadAnswerError("the detection expert gave a box whose second corner lies before its first")
    if phrases is not None:
        for given, asked in zip(names.to_pylist(), phrases, strict=True):
            if not_asked := set(given).difference(asked):
                raise BadAnswerError(f"the detection expert gave the phrase {min(not_asked)!r}, which was not asked for")


def _said(schema: pa.Schema) -> str:
    return ", ".join(f"{field.name}: {field.type}" for field in schema)
