"""The index of evaluation sets, what leaks, and the pairs that are shown."""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tars
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mtv_core.data import decontaminate
from mtv_core.data.decontaminate import EvaluationIndex, compare, leaks_in_table
from mtv_core.data.dedup import DETAILS, KNOWN, Nothing
from mtv_core.data.hamming import usable
from mtv_core.data.images import ImageLimits, store
from mtv_core.data.pairs import PairPictures, pairs_gallery
from mtv_core.data.sources import SourceConfig
from mtv_core.data.sources.config import Columns

LIMITS = ImageLimits(max_side=512, quality=90, max_pixels=10**7, min_side=64, max_aspect=2)
CENTRE = 0x0F1E2D3C4B5A6978


def picture(seed: int, size: tuple[int, int] = (96, 72)) -> Image.Image:
    """Smooth and coloured, another for every seed."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


def encoded(image: Image.Image, form: str = "JPEG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def test_an_index_of_a_set(tmp_path: Path) -> None:
    """Captions are missing, sides are too small for training, one image is broken: all that can be seen is indexed, the rest is told."""
    first = {f"{n:03}": encoded(picture(n, (40, 30))) for n in range(3)}
    tars.tar(tmp_path / "eval/00000.tar", [*((f"{key}.jpg", data) for key, data in first.items()), ("bad.jpg", first["000"][:500])])
    tars.tar(tmp_path / "eval/00001.tar", [("long.png", encoded(picture(9, (300, 20)), "PNG"))])
    sets = [SourceConfig(uri=str(tmp_path / "eval"), name="flickr")]
    todo = decontaminate.jobs(sets, str(tmp_path / "table"), LIMITS, 10**6)
    index = decontaminate.build(todo)
    assert index.ids.to_pylist() == ["flickr/000", "flickr/001", "flickr/002", "flickr/long"]
    assert index.sha256.to_pylist()[:3] == [hashlib.sha256(data).hexdigest() for data in first.values()]
    assert index.phash.tolist()[:3] == [store(data, ImageLimits(512, 90, 10**7)).phash for data in first.values()]
    assert index.new
    assert [problem.partition(":")[0] for problem in index.problems] == ["flickr/bad"]
    thumbs = index.thumbnails([3, 0])
    assert Image.open(io.BytesIO(thumbs[3])).size == (160, 11)
    assert np.abs(np.asarray(Image.open(io.BytesIO(thumbs[0])), float) - np.asarray(picture(0, (40, 30)), float)).mean() < 10

    again = decontaminate.build(todo)
    assert not again.new
    assert again.ids.equals(index.ids)
    assert again.problems == index.problems

    tars.tar(tmp_path / "eval/00001.tar", [("other.png", encoded(picture(10), "PNG"))])  # the set changes
    changed = decontaminate.build(decontaminate.jobs(sets, str(tmp_path / "table"), LIMITS, 10**6))
    assert changed.new
    assert changed.ids.to_pylist() == ["flickr/000", "flickr/001", "flickr/002", "flickr/other"]


def test_sets_without_captions(tmp_path: Path) -> None:
    """In every format; COCO's too, whose other files list the same images."""
    data = {f"{n}.jpg": encoded(picture(n)) for n in range(3)}
    table = pa.table({"image": list(data.values()), "label": [1, 2, 3], "id": list(data)})
    for name in ("parquet", "arrow", "folder", "coco/val2017", "tar"):
        (tmp_path / name).mkdir(parents=True)
    pq.write_table(table, tmp_path / "parquet/a.parquet")
    with pa.OSFile(str(tmp_path / "arrow/a.arrow"), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    for name, content in data.items():
        (tmp_path / "folder" / name).write_bytes(content)
        (tmp_path / "coco/val2017" / name).write_bytes(content)
    images = [{"id": n, "file_name": name} for n, name in enumerate(data)]
    instances = {"images": images, "annotations": [{"id": 1, "image_id": 1, "bbox": [1, 2, 3, 4]}, {"id": 2}]}
    (tmp_path / "coco/instances_val2017.json").write_text(json.dumps(instances))
    (tmp_path / "coco/image_info_val2017.json").write_text(json.dumps({"images": images}))
    tars.tar(tmp_path / "tar/a.tar", list(data.items()))
    expected = sorted(hashlib.sha256(content).hexdigest() for content in data.values())
    keyed = Columns(key="id", captions=("none",))
    for source in (
        SourceConfig(uri=str(tmp_path / "parquet")),
        SourceConfig(uri=str(tmp_path / "parquet"), columns=keyed),
        SourceConfig(uri=str(tmp_path / "arrow")),
        SourceConfig(uri=str(tmp_path / "folder")),
        SourceConfig(uri=str(tmp_path / "coco/instances_val2017.json")),
        SourceConfig(uri=str(tmp_path / "coco/image_info_val2017.json")),
        SourceConfig(uri=str(tmp_path / "tar")),
    ):
        index = decontaminate.build(decontaminate.jobs([source], str(tmp_path / "table"), LIMITS, 10**6))
        assert (sorted(index.sha256.to_pylist()), index.problems) == (expected, []), source
        if source.columns.key:
            assert index.ids.to_pylist() == [f"parquet/{name}" for name in data]


def test_what_training_refuses_is_indexed(tmp_path: Path) -> None:
    """A key that comes again, a caption that is none; what cannot be read is told with what follows from it."""
    first, second, third = (encoded(picture(n)) for n in range(3))
    tars.tar(tmp_path / "tar/a.tar", [("a.jpg", first), ("b.jpg", second), ("a.jpg", third), ("a.txt", b"x" * 9000), ("c.jpg", b"no")])
    (tmp_path / "table").mkdir()
    pq.write_table(pa.table({"image": [first, second, third], "caption": [1, 2, 3], "id": ["x", "y", "x"]}), tmp_path / "table/a.parquet")
    sets = [SourceConfig(uri=str(tmp_path / "tar")), SourceConfig(uri=str(tmp_path / "table"), columns=Columns(key="id"))]
    index = decontaminate.build(decontaminate.jobs(sets, str(tmp_path / "t"), LIMITS, 8000))
    assert index.ids.to_pylist() == ["table/x", "table/x#2", "table/y", "tar/a", "tar/a#2", "tar/b"]
    assert [note.partition(":")[0] for note in index.problems] == ["tar/c"]
    assert index.problems[0].endswith("cannot be kept out of training")


def test_a_damaged_set_stops_the_ingest_and_leaves_no_index(tmp_path: Path) -> None:
    data = encoded(picture(0))
    tars.tar(tmp_path / "eval.tar", [(f"{n}.jpg", data) for n in range(5)])
    path = tmp_path / "eval.tar"
    path.write_bytes(path.read_bytes()[:4000])
    todo = decontaminate.jobs([SourceConfig(uri=str(path))], str(tmp_path / "table"), LIMITS, 10**6)
    with pytest.raises(ValueError, match="repair the file, or take the set out"):
        decontaminate.build(todo)
    assert not list((tmp_path / "table").rglob("*.parquet"))


def test_copies_leak_and_others_do_not(tmp_path: Path) -> None:
    tars.tar(tmp_path / "eval.tar", [(f"{n}.jpg", encoded(picture(n), quality=90)) for n in range(5)])
    index = decontaminate.build(decontaminate.jobs([SourceConfig(uri=str(tmp_path / "eval.tar"))], str(tmp_path / "t"), LIMITS, 10**6))
    copies = [
        encoded(picture(0), quality=90),  # the same bytes
        encoded(picture(1).resize((192, 144)), "PNG"),
        encoded(picture(2), quality=40),
        encoded(picture(7)),
    ]
    sha256 = pa.array([hashlib.sha256(data).hexdigest() for data in copies])
    phash = np.array([store(data, LIMITS).phash for data in copies], np.uint64)
    name = index.ids[0].as_py().partition("/")[0]
    assert compare(sha256, phash, index, 6).leaks().to_pylist() == [f"{name}/0", f"{name}/1", f"{name}/2", None]
    assert compare(sha256, phash, index, None).leaks().to_pylist() == [f"{name}/0", None, None, None]


bit = st.integers(0, 63).map(lambda place: 1 << place)
hashes = st.lists(st.one_of(st.lists(bit, max_size=6).map(lambda bits: CENTRE ^ sum(set(bits))), st.just(0)), max_size=12)


def index_of(values: list[int]) -> EvaluationIndex:
    ids, sha256 = (pa.array([f"{prefix}{n:02}" for n in range(len(values))], pa.string()) for prefix in ("set/", "e"))
    return EvaluationIndex(ids, sha256, np.array(values, np.uint64))


def slow_compare(images: list[tuple[str, int]], values: list[int], threshold: int | None, margin: int) -> list[tuple[int, int]]:
    found = []
    for sha256, phash in images:
        same = [(0, n) for n in range(len(values)) if sha256 == f"e{n:02}"]
        near = [((phash ^ value).bit_count(), n) for n, value in enumerate(values) if usable(np.array([phash, value], np.uint64)).all()]
        near = [one for one in near if threshold is not None and one[0] <= threshold + margin]
        distance, place = min(same or near, default=(-1, -1))
        found.append((place, distance))
    return found


@given(hashes, hashes, st.sampled_from([None, 0, 3, 6]), st.integers(0, 3), st.data())
@settings(max_examples=150, deadline=None)
def test_compare_is_looking_at_every_pair(
    candidates: list[int], values: list[int], threshold: int | None, margin: int, data: st.DataObject
) -> None:
    names = data.draw(st.lists(st.sampled_from(["e00", "e03", "other"]), min_size=len(candidates), max_size=len(candidates)))
    found = compare(pa.array(names, pa.string()), np.array(candidates, np.uint64), index_of(values), threshold, margin)
    truth = slow_compare(list(zip(names, candidates, strict=True)), values, threshold, margin)
    assert list(zip(found.nearest.tolist(), found.distance.tolist(), strict=True)) == truth
    limit = threshold or 0
    assert found.leaks().to_pylist() == [f"set/{n:02}" if n >= 0 and distance <= limit else None for n, distance in truth]

    table = Nothing(
        rows=pa.Table.from_pylist([{"sha256": name, "row": row} for row, name in enumerate(names)], schema=KNOWN),
        hashes=np.array(candidates, np.uint64),
        all_details=pa.Table.from_pylist([{"uid": f"u{row}"} for row in range(len(candidates))], schema=DETAILS),
    )
    leaks = leaks_in_table(table, index_of(values), threshold)
    plain = slow_compare(list(zip(names, candidates, strict=True)), values, threshold, 0)
    expected = [(f"u{row}", f"set/{n:02}", distance) for row, (n, distance) in enumerate(plain) if n >= 0]
    assert list(zip(leaks.uids, leaks.ids, leaks.distance, strict=True)) == expected


@given(hashes, hashes, st.integers(0, 12), st.randoms(use_true_random=False))
@settings(max_examples=100, deadline=None)
def test_pairs_show_every_distance_whatever_the_order(candidates: list[int], values: list[int], number: int, random: Any) -> None:
    def shown(order: list[int]) -> list[tuple[str, int, int, bool]]:
        names = pa.array([f"u{n:02}" for n in order], pa.string())
        found = compare(pa.nulls(len(order), pa.string()), np.array([candidates[n] for n in order], np.uint64), index_of(values), 2, 4)
        return [(names[pair.candidate].as_py(), pair.evaluation, pair.distance, pair.leak) for pair in found.pairs(number, names)]

    order = list(range(len(candidates)))
    pairs = shown(order)
    random.shuffle(order)
    assert shown(order) == pairs
    assert len(pairs) <= number
    assert all(leak == (distance <= 2) for _, _, distance, leak in pairs)
    every = {distance for n, distance in slow_compare([("", value) for value in candidates], values, 2, 4) if n >= 0}
    assert {distance for _, _, distance, _ in pairs} == every or len(pairs) == number
    assert [pair[2] for pair in pairs] == sorted(pair[2] for pair in pairs)


def test_beyond_the_threshold_some_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decontaminate, "_LOOKED_AT", 3)
    beyond = [CENTRE ^ (0b111 << place) for place in range(8)]
    near = [CENTRE ^ (1 << place) for place in range(20)]
    found = compare(pa.nulls(28, pa.string()), np.array(beyond + near, np.uint64), index_of([CENTRE]), 2, 2)
    assert found.leaked.tolist() == [False] * 8 + [True] * 20
    assert (found.nearest[:8] >= 0).sum() == 3
    turned = compare(pa.nulls(8, pa.string()), np.array(beyond[::-1], np.uint64), index_of([CENTRE]), 2, 2)
    assert (turned.nearest[::-1] >= 0).tolist() == (found.nearest[:8] >= 0).tolist()


def test_gallery() -> None:
    pairs = [
        PairPictures(encoded(picture(0)), encoded(picture(1, (30, 200)), "PNG"), "a" * 200, "set/1", 3, True),
        PairPictures(encoded(picture(2)), encoded(picture(3)), "b", "set/2", 9, False),
    ]
    sheet = pairs_gallery(pairs, columns=1)
    one = pairs_gallery(pairs[:1])
    assert sheet.size == (one.width, 2 * one.height)
    assert sheet.crop((0, 0, *one.size)).tobytes() == one.tobytes()
    assert sheet.getpixel((3, 3)) != sheet.getpixel((3, one.height + 3))
    with pytest.raises(ValueError, match="no pairs"):
        pairs_gallery([])
