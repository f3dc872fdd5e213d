"""Which shards to read, and which of their fields are what."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field

from mtv_core.data.uris import PlainUri

Format = Literal["auto", "webdataset", "parquet", "imagefolder", "coco", "arrow"]


def _not_blank(uri: str) -> str:
    if not uri.strip():
        raise ValueError("it is empty, which would be the working folder; give a path or a URI ('.' for the working folder)")
    return uri


class Columns(BaseModel, frozen=True, extra="forbid"):
    """Where a sample's parts are: names of columns, of JSON keys, or of file extensions in a tar. None: the usual names."""

    image: str | None = Field(None, description="bytes, or a Hugging Face Image struct; in a tar an extension: jpg")
    captions: tuple[str, ...] | None = Field(
        None, description="captions that people wrote or the web had, the first is the one that counts; []: none"
    )
    synthetic: tuple[str, ...] | None = Field(None, description="captions that a model wrote; kept apart")
    key: str | None = Field(None, description="name of the sample in its shard")
    url: str | None = Field(None, description="where the image came from")
    license: str | None = Field(None, description="its licence")


class SourceConfig(BaseModel, frozen=True, extra="forbid", hide_input_in_errors=True):
    """A set of shards with pictures and captions."""

    uri: Annotated[PlainUri, AfterValidator(_not_blank)] = Field(
        description="a file, a folder, a glob or a brace range (shards-{0000..0099}.tar); local, s3://, gs://, http(s)://; "
        "blocks://NAME?samples=N&seed=S makes synthetic ones"
    )
    format: Format = Field("auto", description="auto: by the names of the files and by what is in the folder")
    name: str | None = Field(None, description="what the column `source` says; default: the name of the folder")
    columns: Columns = Columns()
    near_duplicates: bool = Field(
        True, description="whether its pictures are compared with others; false where all look alike and none is a copy, as in renderings"
    )
    images: Annotated[str, AfterValidator(_not_blank)] | None = Field(
        None, description="coco and metadata files: the folder the file names are relative to; default: theirs"
    )


def _as_list(value: Any) -> Any:
    """One source or several, each a URI or a mapping."""
    items = value if isinstance(value, (list, tuple)) else [value]
    return [{"uri": item} if isinstance(item, str) else item for item in items]


Sources = Annotated[list[SourceConfig], BeforeValidator(_as_list)]
