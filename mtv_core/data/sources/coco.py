"""COCO captions: one JSON with `images` and `annotations`, and a folder with the files. All captions of an image are one sample."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

from mtv_core.data.sources import parts
from mtv_core.data.sources.access import Opened, Options, opened, safe_name
from mtv_core.data.sources.base import ShardRef
from mtv_core.data.sources.config import Columns, SourceConfig
from mtv_core.data.sources.format import Format, Samples
from mtv_core.data.sources.jsonstream import items
from mtv_core.data.sources.listing import FileInfo, Folder, locate
from mtv_core.data.sources.parts import Member
from mtv_core.data.sources.records import IMAGE_ENDINGS, LICENSE, URL, Seen, meta_of

_HEAD = 1 << 16  # bytes in which a JSON of this kind shows what it is
_MAX_JSON = 32  # files of a folder that are looked at


class Coco(Format):
    """Parts of about a thousand images."""

    name = "coco"
    endings = (".json",)
    no_columns = {"key": "the name of the file is the key", "image": "`file_name` is the image"}  # noqa: RUF012
    outranks = frozenset({"imagefolder"})

    def claims(self, folder: Folder, named: bool = False) -> list[FileInfo]:
        """The JSON with captions, where images lie in the folder too and nothing else describes them."""
        stems = {file.name.rpartition(".")[0] for file in folder.files if file.base.lower().endswith(IMAGE_ENDINGS)}
        if not stems or any(file.base.startswith("metadata.") for file in folder.files):
            return []
        documents = [file for file in super().claims(folder, named) if file.name.removesuffix(".json") not in stems and file.kind == "file"]
        found = [file for file in documents[:_MAX_JSON] if _looks_like(folder, file)]
        if len(found) > 1:
            with_captions = [file for file in found if file.base.startswith("captions")]
            if not with_captions:
                names = ", ".join(file.name for file in found[:5])
                raise ValueError(f"{folder.uri} holds several COCO files, {names}; give the one with captions as the source")
            return with_captions
        return found

    def shards(self, folder: Folder, claimed: Sequence[FileInfo], source: SourceConfig, name: str) -> Sequence[ShardRef]:
        """The parts of each JSON."""
        return [
            shard
            for file in claimed
            for shard in self.file_shards(file._replace(name=folder.path(file.name)), source, name, folder.storage_options)
        ]

    def file_shards(self, file: FileInfo, source: SourceConfig, name: str, storage_options: Options) -> Sequence[ShardRef]:
        """The parts of a JSON."""
        document = _Document(source.columns)
        try:
            with opened(file.name, storage_options) as opened_file:
                document.read(opened_file)
        except ValueError as error:
            raise ValueError(f"{file.name} is no COCO captions file: {error}") from None
        root = _images(file.name, document, source, storage_options)
        members = sorted(document.members({one.name: one for one in root.files}), key=lambda member: member[0].key)
        return parts.cut(members, root.uri, file.name, self.name, source, name)

    def read(self, shard: ShardRef, max_bytes: int, storage_options: Options = None) -> Samples:
        """See `Format.read`."""
        members = [Member.decode(line) for line in shard.members]
        yield from parts.samples(shard, members, (_facts(member) for member in members), max_bytes, storage_options)


def _facts(member: Member) -> dict[str, Any]:
    said = member.said
    return {
        "captions": parts.captions(said.get("captions", ())),
        "url": said.get("url"),
        "license": said.get("license"),
        "meta": said["meta"].encode() if "meta" in said else None,
    }


def _looks_like(folder: Folder, file: FileInfo) -> bool:
    with opened(folder.path(file.name), folder.storage_options) as opened_file:
        return re.search(rb'"(images|annotations)"\s*:\s*\[', opened_file.read(_HEAD)) is not None


def _images(uri: str, document: _Document, source: SourceConfig, storage_options: Options) -> Folder:
    """The folder in which the first images are: the one that was given, or one of those that are usual."""
    folder, _, base = uri.rpartition("/")
    above = folder.rpartition("/")[0]
    split = base.removesuffix(".json").rpartition("_")[2]
    usual = [folder, *(f"{where}/{name}" for where in (folder, above) for name in (split, "images", f"images/{split}")), above]
    names = [name for name in document.file_names[:100] if safe_name(name)]
    tried = [source.images] if source.images is not None else usual
    for candidate in dict.fromkeys(tried):
        try:
            found = locate(candidate, storage_options)
        except FileNotFoundError:
            continue
        if isinstance(found, Folder):
            here = {file.name for file in found.files}
            if source.images is not None or any(safe_name(name) in here for name in names):
                return found
    if not document.file_names and folder:
        return Folder(folder, [], storage_options)  # nothing to be found
    first = ", ".join(document.file_names[:2])
    raise ValueError(f"the images of {uri} ({first}, …) are not in {', '.join(tried)}; set the source's `images`")


class _Document:
    """What a JSON says of each image."""

    def __init__(self, columns: Columns) -> None:
        self.columns = columns
        self.images: dict[Any, dict[str, Any]] = {}
        self.captions: dict[Any, list[tuple[tuple[bool, Any], str, str]]] = defaultdict(list)  # image id → (annotation id, text, kind)
        self.wrong: dict[Any, str] = {}
        self.licenses: dict[Any, str] = {}
        self.bad: list[tuple[str, str]] = []  # (name, message)
        self.file_names: list[str] = []

    def read(self, file: Opened) -> None:
        """Take it in.

        Raises:
            ValueError: it is no JSON, or none with captions of images.
        """
        seen: dict[str, int] = defaultdict(int)
        with_caption = False
        keys: set[str] = set()
        for key, item in items(file, keys):
            number = seen[key]
            seen[key] += 1
            if key == "images":
                self._image(item, number)
            elif key == "annotations" and self.columns.captions != ():
                with_caption |= self._annotation(item, number)
            elif key == "licenses" and isinstance(item, dict) and isinstance(item.get("id"), int | str):
                self.licenses[item["id"]] = str(item.get("name") or item.get("url") or item["id"])
        if self.columns.captions == () and "images" in keys:
            return  # none are wanted
        if not {"images", "annotations"} <= keys:
            raise ValueError(f"it needs `images` and `annotations` and has {', '.join(sorted(keys)) or 'nothing'}")
        if not with_caption:
            raise ValueError("its annotations have no captions; give the file with the captions, captions_….json")

    def _image(self, item: Any, number: int) -> None:
        name = item.get("file_name") if isinstance(item, dict) else None
        if not isinstance(name, str) or not name or not isinstance(item.get("id"), int | str):
            self.bad.append((f"images:{number}", f"images[{number}] has no file_name or no id"))
        elif item["id"] in self.images:
            self.bad.append((f"images:{number}", f"images[{number}] ({name}) has the id {item['id']} of another image"))
        else:
            self.images[item["id"]] = item
            self.file_names.append(name)

    def _annotation(self, item: Any, number: int) -> bool:
        """Whether there is a caption in it."""
        image = item.get("image_id") if isinstance(item, dict) else None
        if not isinstance(image, int | str):
            self.bad.append((f"annotations:{number}", f"annotations[{number}] has no image_id"))
            return False
        found = False
        order = item.get("id")
        rank = (isinstance(order, str), order if isinstance(order, int | float | str) else number)
        for kind, names in (("web", self.columns.captions or ("caption",)), ("synthetic", self.columns.synthetic or ())):
            for name in names:
                if name not in item:
                    continue
                found = True
                if isinstance(item[name], str):
                    self.captions[image].append((rank, item[name], kind))
                elif item[name] is not None:
                    self.wrong[image] = f"annotations[{number}]: {name!r} is {item[name]!r:.40}, not a text"
        return found

    def members(self, files: dict[str, FileInfo]) -> Iterator[tuple[Member, str]]:
        """One for each image, for each image that is only annotated, and for what makes no sense."""
        seen = Seen()
        for image, item in self.images.items():
            yield self._member(image, item, files, seen)
        for image in self.captions.keys() - self.images.keys():
            said = {"captions": self._said(image)}
            yield Member(f"image_id {image}", None, said=said), ""
        for name, message in self.bad:
            yield Member(name, None, problem=("BadRow", message)), message

    def _member(self, image: Any, item: dict[str, Any], files: dict[str, FileInfo], seen: Seen) -> tuple[Member, str]:
        name = item["file_name"]
        safe = safe_name(name)
        key, again = seen.name(safe or name)
        said = {"captions": self._said(image), **self._facts(item)}
        problem = None
        if not safe:
            problem = ("UnsafePath", f"the file name {name!r} leads out of the folder of images; put the file into it")
        elif again:
            problem = ("DuplicateKey", f"two images have the file name {name!r}")
        elif image in self.wrong and not said["captions"]:
            problem = ("BadRow", self.wrong[image])
        info = files.get(safe or "") if not again else None
        member = Member(key, None if info is None else info.size, said=said, problem=problem)
        return member, parts.stamp(info, more=json.dumps(said, sort_keys=True))

    def _said(self, image: Any) -> list[list[str]]:
        ordered = sorted(self.captions.get(image, ()), key=lambda caption: caption[0])
        return [[text, kind] for wanted in ("web", "synthetic") for _, text, kind in ordered if kind == wanted]

    def _facts(self, item: dict[str, Any]) -> dict[str, str]:
        columns = self.columns
        names = ("coco_url", "flickr_url", *URL) if columns.url is None else (columns.url,)
        found = {"url": next((item[name] for name in names if isinstance(item.get(name), str)), None)}
        license_ = next((item[name] for name in (LICENSE if columns.license is None else (columns.license,)) if name in item), None)
        found["license"] = self.licenses.get(license_, str(license_)) if isinstance(license_, int | str) else None
        rest = {name: value for name, value in item.items() if name not in ("file_name", "license")}
        meta = meta_of(rest)
        found["meta"] = meta.decode() if meta else None
        return {name: value.encode(errors="replace").decode() for name, value in found.items() if value}
