"""The same samples in every format that is read."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from tars import Member, picture, tar

from mtv_core.data.fingerprint import Fingerprint
from mtv_core.data.sources import ShardRef, read


@dataclass(frozen=True)
class Content:
    """What a sample is, whatever holds it."""

    name: str
    image: bytes
    captions: tuple[str, ...]
    synthetic: tuple[str, ...] = ()
    url: str = ""
    license: str = "CC0-1.0"


def contents(number: int, first: int = 0) -> list[Content]:
    """Samples with captions of all scripts, quotes and lines."""
    texts = ["a plain one", 'with "quotes", and, commas', "zwei\nZeilen – ö", "猫の写真 🐈", "a\u2028b 'c'"]
    return [
        Content(
            f"{n:06d}",
            picture(n),
            (f"{texts[n % len(texts)]} {n}",),
            url=f"http://example.org/{n}.jpg",
        )
        for n in range(first, first + number)
    ]


def fingerprint(shard: ShardRef, max_bytes: int = 1 << 20) -> str:
    """Of all samples of a shard."""
    found = Fingerprint()
    for one in read(shard, max_bytes):
        found.add(one)
    return found.value


def _meta(one: Content) -> dict[str, object]:
    return {"url": one.url, "license": one.license, **({"synthetic_caption": list(one.synthetic)} if one.synthetic else {})}


def members(one: Content, prefix: str = "") -> list[Member]:
    """As img2dataset orders them."""
    return [
        (f"{prefix}{one.name}.jpg", one.image),
        (f"{prefix}{one.name}.json", json.dumps({**_meta(one), "caption": one.captions[0]}).encode()),
        (f"{prefix}{one.name}.txt", one.captions[0].encode()),
    ]


def _chunks(many: Sequence[Content], size: int = 7) -> list[list[Content]]:
    return [list(many[start : start + size]) for start in range(0, len(many), size)]


def webdataset(folder: Path, many: Sequence[Content]) -> str:
    """Plain tars."""
    for number, some in enumerate(_chunks(many)):
        tar(folder / f"{number:05d}.tar", [member for one in some for member in members(one)])
    return str(folder)


def img2dataset(folder: Path, many: Sequence[Content]) -> str:
    """Tars, and beside each what img2dataset writes of it."""
    webdataset(folder, many)
    for number, some in enumerate(_chunks(many)):
        table = pa.Table.from_pylist([{"url": one.url, "caption": one.captions[0], "key": one.name, "status": "success"} for one in some])
        pq.write_table(table, folder / f"{number:05d}.parquet")
        (folder / f"{number:05d}_stats.json").write_text(json.dumps({"count": len(some), "successes": len(some)}))
    return str(folder)


def table(many: Sequence[Content], struct: bool = False, several: bool = False) -> pa.Table:
    """Columns image, caption, url, license, number."""
    images: list[object] = [{"bytes": one.image, "path": f"{one.name}.jpg"} if struct else one.image for one in many]
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()}) if struct else pa.binary()
    return pa.table(
        {
            "image": pa.array(images, kind),
            "caption": pa.array([list(one.captions) if several else one.captions[0] for one in many]),
            "synthetic_caption": pa.array([list(one.synthetic) for one in many], pa.list_(pa.string())),
            "url": [one.url for one in many],
            "license": [one.license for one in many],
            "number": list(range(len(many))),
        }
    )


def parquet(folder: Path, many: Sequence[Content], struct: bool = False) -> str:
    """Files with several row groups."""
    folder.mkdir(parents=True)
    for number, some in enumerate(_chunks(many, 11)):
        pq.write_table(table(some, struct), folder / f"part-{number}.parquet", row_group_size=4)
    return str(folder)


def parquet_of_images(folder: Path, many: Sequence[Content]) -> str:
    """With Hugging Face's `Image`."""
    return parquet(folder, many, struct=True)


def _images(folder: Path, many: Sequence[Content], splits: Sequence[str] = ("",)) -> list[tuple[str, Content]]:
    """Files, dealt to splits; their names relative to the folder."""
    named = [(f"{splits[number % len(splits)]}/{one.name}.jpg".lstrip("/"), one) for number, one in enumerate(many)]
    for name, one in named:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(one.image)
    return named


def _rows(folder: Path, many: Sequence[Content]) -> list[dict[str, object]]:
    return [
        {"file_name": name, "text": one.captions[0], **_meta(one), "number": number}
        for number, (name, one) in enumerate(_images(folder, many))
    ]


def folder_jsonl(folder: Path, many: Sequence[Content]) -> str:
    """metadata.jsonl in each of two splits."""
    for split in ("train", "validation"):
        some = [one for number, one in enumerate(many) if (number % 3 == 0) == (split == "validation")]
        rows = _rows(folder / split, some)
        (folder / split / "metadata.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return str(folder)


def folder_csv(folder: Path, many: Sequence[Content]) -> str:
    """metadata.csv for files in subfolders."""
    named = _images(folder, many, ("a", "b/c"))
    with (folder / "metadata.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file_name", "text", "url", "license"])
        writer.writerows([name, one.captions[0], one.url, one.license] for name, one in reversed(named))
    return str(folder)


def folder_parquet(folder: Path, many: Sequence[Content]) -> str:
    """metadata.parquet."""
    pq.write_table(pa.Table.from_pylist(_rows(folder, many)), folder / "metadata.parquet", row_group_size=5)
    return str(folder)


def folder_texts(folder: Path, many: Sequence[Content]) -> str:
    """A text beside each image."""
    for name, one in _images(folder, many, ("", "more")):
        (folder / name).with_suffix(".txt").write_bytes(one.captions[0].encode())
        (folder / name).with_suffix(".json").write_text(json.dumps(_meta(one)))
    return str(folder)


def coco(folder: Path, many: Sequence[Content]) -> str:
    """As the download lies: annotations/captions_train2017.json and train2017/."""
    _images(folder / "train2017", many)
    (folder / "annotations").mkdir()
    document = {
        "info": {"year": 2017},
        "licenses": [{"id": 4, "name": "CC0-1.0", "url": "http://example.org/cc0"}],
        "images": [
            {"id": 1000 - n, "file_name": f"{one.name}.jpg", "license": 4, "coco_url": one.url, "width": 24, "height": 16}
            for n, one in enumerate(many)
        ],
        "annotations": [
            {"id": 10 * n + rank, "image_id": 1000 - n, "caption": text}
            for n, one in enumerate(many)
            for rank, text in reversed(list(enumerate(one.captions)))
        ],
    }
    (folder / "annotations" / "captions_train2017.json").write_text(json.dumps(document))
    return str(folder / "annotations" / "captions_train2017.json")


def _dataset(many: Sequence[Content]) -> object:
    import datasets

    features = datasets.Features({"image": datasets.Image(), "text": datasets.Value("string"), "url": datasets.Value("string")})
    rows = {
        "image": [{"bytes": one.image, "path": None} for one in many],
        "text": [one.captions[0] for one in many],
        "url": [one.url for one in many],
    }
    return datasets.Dataset.from_dict(rows, features=features)


def saved_dataset(folder: Path, many: Sequence[Content]) -> str:
    """A Dataset, by the library itself."""
    _dataset(many).save_to_disk(str(folder), num_shards=3)  # type: ignore[attr-defined]
    return str(folder)


def saved_dataset_dict(folder: Path, many: Sequence[Content]) -> str:
    """A DatasetDict, by the library itself."""
    import datasets

    half = len(many) // 2
    both = {"train": _dataset(many[:half]), "test": _dataset(many[half:])}
    datasets.DatasetDict(both).save_to_disk(str(folder))
    return str(folder)


WRITERS: dict[str, tuple[str, Callable[[Path, Sequence[Content]], str]]] = {
    "webdataset": ("webdataset", webdataset),
    "img2dataset": ("webdataset", img2dataset),
    "parquet": ("parquet", parquet),
    "parquet_of_images": ("parquet", parquet_of_images),
    "folder_jsonl": ("imagefolder", folder_jsonl),
    "folder_csv": ("imagefolder", folder_csv),
    "folder_parquet": ("imagefolder", folder_parquet),
    "folder_texts": ("imagefolder", folder_texts),
    "coco": ("coco", coco),
    "saved_dataset": ("arrow", saved_dataset),
    "saved_dataset_dict": ("arrow", saved_dataset_dict),
}  # name → (format that it is recognised as, how to write it: returns the URI of the source)
