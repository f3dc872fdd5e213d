"""Folders of images: captions in `metadata.jsonl`, `.csv` or `.parquet`, as in Hugging Face's ImageFolder, or in a file beside each image.

Whoever cuts a folder holds names, sizes and times; images and captions are read by whoever reads a part.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

from mtv_core.data.sources import metadata, parts
from mtv_core.data.sources.access import Options, safe_name
from mtv_core.data.sources.base import ShardRef
from mtv_core.data.sources.config import Columns, SourceConfig
from mtv_core.data.sources.format import Format, Samples
from mtv_core.data.sources.listing import FileInfo, Folder, locate
from mtv_core.data.sources.members import Members, UnsafePathError, Wanted
from mtv_core.data.sources.metadata import Row
from mtv_core.data.sources.parts import Member
from mtv_core.data.sources.records import CAPTION_FILES, IMAGE_ENDINGS, fields, meta_of, of_files, text_names, unused

_META = "json"


class ImageFolder(Format):
    """Parts of about a thousand images."""

    name = "imagefolder"
    endings = (".jsonl", ".csv")
    no_columns = {"key": "the name of the file is the key"}  # noqa: RUF012

    def claims(self, folder: Folder, named: bool = False) -> list[FileInfo]:
        """Images, and what describes them."""
        images = [file for file in folder.files if file.base.lower().endswith(IMAGE_ENDINGS)]
        described = [file for file in folder.files if file.base in metadata.NAMES[:2]]
        return images or described

    def shards(self, folder: Folder, claimed: Sequence[FileInfo], source: SourceConfig, name: str) -> Sequence[ShardRef]:
        """All images of the folder and all rows that describe some, whether they find each other or not."""
        described = [file for file in folder.files if file.base in metadata.NAMES and file.kind == "file"]
        if source.columns.image is not None and not described:
            raise ValueError(
                f"the source's `columns.image` names the column of a metadata file that names the image files, and {folder.uri} has no "
                "such file; leave it out"
            )
        if source.images is None:
            return self._cut(folder, folder.uri, folder, described, source, name)
        return self._cut(_images(source.images, folder.storage_options), folder.uri, folder, described, source, name)

    def file_shards(self, file: FileInfo, source: SourceConfig, name: str, storage_options: Options) -> Sequence[ShardRef]:
        """The rows of a metadata file; images that it does not name are left alone."""
        if not file.name.lower().endswith((*self.endings, ".parquet")):
            raise ValueError(f"{file.name} is one file; give the folder with the images and what describes them")
        beside, _, base = file.name.rpartition("/")
        images = _images(source.images or beside, storage_options)
        described = Folder(beside, [file._replace(name=base)], storage_options)
        return self._cut(images, file.name, described, described.files, source, name, only_described=True)

    def _cut(
        self,
        images: Folder,
        uri: str,
        described_in: Folder,
        described: Sequence[FileInfo],
        source: SourceConfig,
        name: str,
        only_described: bool = False,
    ) -> list[ShardRef]:
        rows: dict[str, list[Row]] = defaultdict(list)
        members: list[tuple[Member, str]] = []
        elsewhere = images is not described_in
        where = described_in.uri.rstrip("/") + "/" if elsewhere else ""  # then the places are whole paths
        for file in described:
            prefix = "" if elsewhere else file.name.removesuffix(file.base)
            for row in metadata.scan(described_in.path(file.name), where + file.name, source.columns, images.storage_options):
                if row.file_name is None:
                    place = f"{file.name}:{row.line}"
                    members.append((Member(place, None, problem=("BadRow", f"line {row.line} of {file.name} {row.problem}")), row.digest))
                else:
                    rows[_joined(prefix, row.file_name)].append(row)
        files = {file.name: file for file in images.files}
        beside = _beside(images, source.columns)
        members += _described(rows, files, beside)
        if not only_described:
            members += _rest(images, rows, beside, bool(described))
        members.sort(key=lambda member: member[0].key)
        return parts.cut(members, images.uri, uri, self.name, source, name)

    def read(self, shard: ShardRef, max_bytes: int, storage_options: Options = None) -> Samples:
        """See `Format.read`."""
        members = [Member.decode(line) for line in shard.members]
        yield from parts.samples(shard, members, _said(shard, members, max_bytes, storage_options), max_bytes, storage_options)


def _images(uri: str, storage_options: Options) -> Folder:
    found = locate(uri, storage_options)
    if not isinstance(found, Folder):
        raise ValueError(f"the source's `images` {uri!r} is no folder")
    return found


def _joined(prefix: str, name: str) -> str:
    """A name relative to the images' folder; as it is if it is unsafe, which is said when it is read."""
    safe = safe_name(name)
    return f"{prefix}{safe}" if safe else name


def _stems(name: str) -> Iterator[tuple[str, str]]:
    """A name cut at each dot of its last part: what is before, and the extension after it in lower case."""
    at = name.rfind("/") + 1
    while (at := name.find(".", at + 1)) > 0:
        yield name[:at], name[at + 1 :].lower()


def _beside(folder: Folder, columns: Columns) -> dict[str, list[FileInfo]]:
    """Name of an image without its extension → files that say something of it."""
    extensions = [*CAPTION_FILES, _META, *(name.lower() for name in text_names(columns))]
    if columns.captions is not None:
        extensions = extensions[len(CAPTION_FILES) :]
    order = {extension: rank for rank, extension in reversed(list(enumerate(extensions)))}
    found: dict[str, dict[str, FileInfo]] = defaultdict(dict)
    for file in folder.files:
        for stem, extension in _stems(file.name):
            if extension in order:
                found[stem].setdefault(extension, file)
    return {stem: [some[extension] for extension in sorted(some, key=order.__getitem__)] for stem, some in found.items()}


def _stem(name: str) -> str:
    return name.rpartition(".")[0]


def _sized(files: list[FileInfo]) -> tuple[tuple[str, int], ...]:
    return tuple((file.name, file.size) for file in files)


def _described(rows: dict[str, list[Row]], files: dict[str, FileInfo], texts: dict[str, list[FileInfo]]) -> Iterator[tuple[Member, str]]:
    """Images that rows name, there or not."""
    for image, found in rows.items():
        info = files.get(image)
        beside = texts.get(_stem(image), [])
        stamp = parts.stamp(info, *beside, more=" ".join(row.digest for row in found))
        problem = None if safe_name(image) else ("UnsafePath", f"the file name {image!r} leads out of the folder; put the file into it")
        yield Member(image, None if info is None else info.size, _sized(beside), tuple(row.place for row in found), problem=problem), stamp


def _rest(folder: Folder, rows: dict[str, list[Row]], texts: dict[str, list[FileInfo]], described: bool) -> Iterator[tuple[Member, str]]:
    """What no row names: images, links to other folders, and, where captions stand beside images, captions that stand alone."""
    stems = set()
    for file in folder.files:
        if file.base.lower().endswith(IMAGE_ENDINGS):
            stems.add(_stem(file.name))
            if file.name not in rows and file.kind != "link":
                beside = texts.get(_stem(file.name), [])
                yield Member(file.name, file.size, _sized(beside)), parts.stamp(file, *beside)
        if file.kind == "link":
            message = f"{file.name!r} is a symlink to another folder, which is not followed; make that folder a source of its own"
            yield Member(file.name, None, problem=("UnsafePath", message)), ""
    if not described:
        for file in folder.files:
            cuts = list(_stems(file.name))
            if cuts and cuts[-1][1] in CAPTION_FILES and not any(stem in stems for stem, _ in cuts):
                yield Member(file.name, None, _sized([file])), parts.stamp(file)


def _said(shard: ShardRef, members: list[Member], max_bytes: int, storage_options: Options) -> Iterator[dict[str, Any]]:
    """What rows and files say of each member."""
    rows = metadata.fetch((row for member in members for row in member.rows), shard.root, storage_options)
    reader = Members(shard.root, max_bytes, storage_options)
    contents = reader.read_all(wanted for member in members for wanted in _wanted(member, max_bytes))
    for member in members:
        found = [rows[place] for place in member.rows]
        beside = {name[len(_stem(member.key)) + 1 :].lower(): (next(contents), size) for name, size in member.files}
        yield _facts(shard, found, beside, max_bytes)


def _wanted(member: Member, max_bytes: int) -> Iterator[Wanted | None]:
    """The files beside an image; None for one that is too large, or with those before it."""
    total = 0
    for name, size in member.files:
        fits = total + size <= max_bytes
        total += size if fits else 0
        yield Wanted(name, size) if fits else None


def _facts(
    shard: ShardRef, rows: list[dict[str, Any]], beside: dict[str, tuple[bytes | UnsafePathError | None, int]], max_bytes: int
) -> dict[str, Any]:
    columns = shard.columns
    said = [fields(row, columns) for row in rows]
    texts: dict[str, bytes] = {}
    json_: bytes | int | None = None
    for extension, (content, size) in beside.items():
        if isinstance(content, UnsafePathError):
            return {"problem": ("UnsafePath", str(content))}
        read = content if content is not None and len(content) <= max_bytes else None
        if extension == _META:
            json_ = size if read is None else read
        elif read is None:
            message = f"the file .{extension} has {size} bytes, with the image's other texts more than is read (ingest.max_bytes)"
            return {"problem": ("CaptionTooLong", message)}
        else:
            texts[extension] = read
    if beside:
        said.append(of_files(texts, json_, columns, any(one.captions for one in said)))
    found = [caption for one in said for caption in one.captions]
    others = rows[0] if rows else {}
    return {
        "captions": [one for one in found if one.kind == "web"] + [one for one in found if one.kind == "synthetic"],
        "url": next((one.url for one in said if one.url), None),
        "license": next((one.license for one in said if one.license), None),
        "problem": None if found else next((one.problem for one in said if one.problem), None),
        "meta": meta_of({name: _text(others[name]) for name in unused(others, columns, metadata.FILE_NAMES)})
        or (json_ if isinstance(json_, bytes) else None),
    }


def _text(value: Any) -> Any:
    return value.decode(errors="replace") if isinstance(value, bytes) else value
