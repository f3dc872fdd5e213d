"""Columns as the Hugging Face libraries call them, without those libraries: `Features` as JSON, and the Arrow types that go with them.

`datasets` keeps them as JSON in the metadata of an Arrow schema, under the key `huggingface`. An image is a struct of bytes and a path.
Lists are spelled as versions before 4 do, which later ones read too.
"""

from __future__ import annotations

import json
from typing import Any

import pyarrow as pa

IMAGE = "image"
_IMAGE_TYPE = pa.struct([pa.field("bytes", pa.binary()), pa.field("path", pa.string())])


def features(schema: pa.Schema) -> dict[str, Any]:
    """Columns of a table as `datasets.Features.to_dict()` has them."""
    return {field.name: {"_type": "Image"} if field.name == IMAGE else _feature(field.type) for field in schema}


def _feature(kind: pa.DataType) -> Any:
    if pa.types.is_fixed_size_list(kind):
        return {"feature": _feature(kind.value_type), "length": kind.list_size, "_type": "Sequence"}
    if pa.types.is_list(kind):
        if pa.types.is_struct(kind.value_type):  # a Sequence of these would be turned into a struct of lists
            return [_feature(kind.value_type)]
        return {"feature": _feature(kind.value_type), "length": -1, "_type": "Sequence"}
    if pa.types.is_struct(kind):
        return {field.name: _feature(field.type) for field in kind}
    names = {pa.float32(): "float32", pa.float64(): "float64"}  # Arrow says 'float' and 'double'
    return {"dtype": names.get(kind, str(kind)), "_type": "Value"}


def schema_of(schema: pa.Schema) -> pa.Schema:
    """The schema of the files."""
    fields = [pa.field(field.name, _IMAGE_TYPE if field.name == IMAGE else field.type) for field in schema]
    return pa.schema(fields, metadata={"huggingface": json.dumps({"info": {"features": features(schema)}})})


def convert(rows: pa.Table, schema: pa.Schema) -> pa.RecordBatch:
    """Rows of a table as a batch of the files' schema."""
    arrays = []
    for field in schema:
        column = rows[field.name].combine_chunks()
        if field.name == IMAGE:
            paths = pa.array([f"{uid}.jpg" for uid in rows["uid"].to_pylist()], pa.string())
            column = pa.StructArray.from_arrays([column, paths], fields=list(_IMAGE_TYPE))
        arrays.append(column)
    return pa.RecordBatch.from_arrays(arrays, schema=schema)
