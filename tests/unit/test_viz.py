"""Pictures of labels."""

from __future__ import annotations

import io

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from mtv_core import viz
from mtv_core.data.depth import encode

GREY = (120, 120, 120)


def changed(picture: Image.Image) -> np.ndarray:
    return (np.asarray(picture) != GREY).any(-1)


def test_a_box_is_drawn_on_its_own_edges_and_nowhere_else() -> None:
    picture = viz.overlay(Image.new("RGB", (400, 300), GREY), boxes=[[0.25, 0.5, 0.75, 0.9]])
    rows, columns = np.nonzero(changed(picture))
    assert (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1) == (100, 150, 300, 270)
    assert not changed(picture)[155:265, 105:295].any()


def test_phrases_of_one_name_share_a_colour() -> None:
    boxes = [[0.0, 0.3, 0.2, 0.9], [0.3, 0.3, 0.5, 0.9], [0.6, 0.3, 0.8, 0.9]]
    picture = viz.overlay(Image.new("RGB", (400, 300), GREY), None, boxes, ["cat", "dog", "cat"], [0.5, 0.25, 1.0])
    edges = [picture.getpixel((round(400 * left) + 1, 200)) for left, *_ in boxes]
    assert edges[0] == edges[2] != edges[1]
    plain = viz.overlay(Image.new("RGB", (400, 300), GREY), None, boxes, ["cat", "dog", "cat"])
    assert changed(picture).sum() > changed(plain).sum() > 0  # scores are written too


def test_words_at_the_border_stay_inside() -> None:
    for box in ([0.0, 0.0, 0.1, 0.1], [0.9, 0.0, 1.0, 1.0]):
        picture = viz.overlay(Image.new("RGB", (300, 300), GREY), None, [box], ["a large phrase"], [0.5])
        assert picture.size == (300, 300)
        assert (np.asarray(picture).max(-1) < 80).sum() > 50  # the letters, black on orange


def test_near_is_bright_and_no_value_is_grey() -> None:
    depth = np.tile(np.linspace(0, 3, 64, dtype=np.float32), (8, 1))
    depth[0, 0] = np.nan
    colours = np.asarray(viz.colour_depth(depth)).astype(int)
    assert tuple(colours[0, 0]) == (128, 128, 128)
    luminance = colours[4] @ [299, 587, 114]
    assert (np.diff(luminance) >= -1000).all()
    assert luminance[-1] > 4 * luminance[0]
    assert np.asarray(viz.colour_depth(np.full((4, 4), np.nan))).shape == (4, 4, 3)
    assert np.asarray(viz.colour_depth(np.ones((4, 4)))).std() >= 0


def row(size: tuple[int, int], **labels: object) -> dict[str, object]:
    buffer = io.BytesIO()
    Image.new("RGB", size, GREY).save(buffer, "JPEG")
    return {"image": buffer.getvalue(), "caption": "a caption of some length " * 9, **labels}


def test_gallery_shows_rows_with_and_without_labels() -> None:
    depth = encode(np.ones((10, 20), np.float32))
    rows = [
        row((96, 96), depth=depth, boxes=[[0.1, 0.1, 0.5, 0.5]], phrases=["cat"], scores=[0.9]),
        row((96, 40), depth=None, boxes=None, phrases=None, scores=None),
        row((300, 500), depth=depth, boxes=[], phrases=[], scores=[]),
    ]
    wide, tall = viz.gallery(pa.Table.from_pylist(rows), columns=3), viz.gallery(pa.Table.from_pylist(rows), columns=1)
    assert 2 * tall.width < wide.width <= 3 * tall.width
    assert tall.height > 2 * wide.height
    assert viz.gallery(pa.Table.from_pylist([row((64, 64))])).height >= viz.TILE
    with pytest.raises(ValueError, match="no rows"):
        viz.gallery(pa.table({"image": pa.array([], pa.binary())}))
