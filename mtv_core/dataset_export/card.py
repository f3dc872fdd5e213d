"""README.md of an export: what is in it, where from, under which terms, and how it is read. In the form that the Hugging Face Hub reads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

from mtv_core.data.schema import LABELS
from mtv_core.data.stats import Tally
from mtv_core.dataset_export.plan import Plan
from mtv_core.dataset_export.writer import Writer
from mtv_core.store.table import Accepted

CARD = "README.md"
_SIZES = (
    (1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"), (10_000_000, "1M<n<10M"),
    (100_000_000, "10M<n<100M"), (1_000_000_000, "100M<n<1B"), (10_000_000_000, "1B<n<10B"),
)  # fmt: skip
_LICENSES = 20  # named in the card
_HUB = {
    "cc0-1.0",
    "cc-by-2.0",
    "cc-by-4.0",
    "cc-by-sa-4.0",
    "cc-by-nc-4.0",
    "cc-by-nd-4.0",
    "odc-by",
    "mit",
    "apache-2.0",
}  # as the Hub calls them
_DEPTH = '''\
## Depth

`depth` is stored as MTV stores it: inverse depth of the whole image, in 12 bits over the range of the picture. It is relative: larger is
nearer, scale and shift are the picture's own. Without MTV it is read by:

```python
import struct
import blosc2  # pip install blosc2
import numpy as np


def depth(label: bytes) -> np.ndarray:
    """Inverse depth [H, W], NaN where there is no value."""
    _, _, height, width, lowest, highest = struct.unpack_from("<BBHHff", label)
    codes = np.empty((height, width), np.uint16)
    blosc2.decompress2(label[14:], dst=codes)
    return np.where(codes == 4095, np.nan, lowest + codes * np.float32((highest - lowest) / 4094)).astype(np.float32)
```'''
_BOXES = """\
## Boxes

`boxes` are xyxy, 0 … 1 of the image; `phrases` say what is in them, `scores` how sure the detector is. An empty list: it found nothing.
Null: the row has no label."""


def render(
    plan: Plan,
    writer: Writer,
    accepted: Mapping[str, Accepted],
    revisions: Mapping[str, Mapping[str, int]],
    licenses: Tally,
    num_bytes: int,
) -> str:
    """The whole document. It says nothing of time or place, so that the same export has the same card.

    Args:
        plan: of the export.
        writer: its format.
        accepted: the experts that the table knows.
        revisions: expert → revision → rows, of what was exported.
        licenses: of the images.
        num_bytes: of all shards.
    """
    name = plan.table.rstrip("/").rsplit("/", 1)[-1]
    parts = [
        f"# {name}",
        f"{plan.num_rows:,} images with captions{' and labels' if revisions else ''}, {num_bytes / 1e6:,.1f} MB, exported by MTV from the "
        f"table `{name}`.",
        _facts(plan),
        f"## Use\n\n{writer.usage(plan)}",
        f"## Licences\n\n{_licenses(plan, licenses)}",
    ]
    if revisions:
        parts.append(f"## Labels\n\n{_experts(plan, accepted, revisions)}")
    if "boxes" in plan.columns:
        parts.append(_BOXES)
    if "depth" in plan.columns and plan.format != "webdataset":
        parts.append(_DEPTH)
    parts.append(_TAKEDOWN)
    front = yaml.safe_dump(_front_matter(name, plan, writer, licenses), sort_keys=False, allow_unicode=True)
    return f"---\n{front}---\n\n" + "\n\n".join(parts) + "\n"


def _front_matter(name: str, plan: Plan, writer: Writer, licenses: Tally) -> dict[str, Any]:
    files = [{"split": split, "path": glob} for split, glob in writer.globs(plan).items()]
    return {
        "pretty_name": name,
        "license": _license(plan, licenses),
        "size_categories": [next((label for limit, label in _SIZES if plan.num_rows < limit), "n>10B")],
        "task_categories": ["image-to-text", "text-to-image", "zero-shot-image-classification", "feature-extraction"],
        "tags": ["image-text", "mtv"],
        "configs": [{"config_name": "default", "data_files": files}],
    }


def _license(plan: Plan, licenses: Tally) -> str:
    """The one licence of all rows, if the Hub has a name for it."""
    (only, _), *others = licenses.top(2) or [("", 0.0)]
    if not others and licenses.exact and licenses.total == plan.num_rows and only.lower() in _HUB:
        return only.lower()
    return "other" if licenses.total else "unknown"


def _facts(plan: Plan) -> str:
    splits = ", ".join(f"{count:,} `{split}`" for split, count in plan.rows.items())
    held_out = " Images of `held_out` are not meant to be trained on." if "held_out" in plan.rows else ""
    lines = [
        f"- rows: {splits}.{held_out}",
        f"- table: version {plan.version}" + (f", tag `{plan.tag}`" if plan.tag else ""),
        f"- slice: {plan.data}",
        f"- columns: {', '.join(f'`{column}`' for column in plan.columns)}",
        f"- files: listed in `manifest.json` with their hashes; without that file the export was not finished. Export `{plan.id}`.",
    ]
    return "\n".join(lines)


def _licenses(plan: Plan, licenses: Tally) -> str:
    if not licenses.total:
        return "No source says under which licence its images are. Having them here grants no right to use them."
    unknown = plan.num_rows - licenses.total
    lines = [f"| {_cell(value)} | {share:.1%} |" for value, share in licenses.top(_LICENSES)]
    rest = f" Of {unknown:,} rows it is unknown." if unknown else ""
    more = "" if licenses.exact else " There are more; shares are estimated."
    where = " Each row has its own in `license`." if "license" in plan.columns else ""
    said = f"Of the images, as their sources say; nobody has checked it.{where}{rest}{more}"
    return "\n".join([said, "", "| licence | share |", "|---|---:|", *lines])


def _experts(plan: Plan, accepted: Mapping[str, Accepted], revisions: Mapping[str, Mapping[str, int]]) -> str:
    lines = []
    for expert, counts in revisions.items():
        columns = ", ".join(f"`{name}`" for name in LABELS[expert].names if name in plan.columns)
        for revision, count in counts.items():
            known = accepted.get(expert)
            source = known.source if known is not None and known.revision == revision else {}
            said = [f"`{revision}`" if revision else "none yet", str(source.get("model", "")), str(source.get("license", "unknown"))]
            if not revision:
                said[1:] = ["", ""]
            lines.append(f"| {expert} | {columns} | {' | '.join(map(_cell, said))} | {count:,} |")
    head = "| expert | columns | revision | model | licence of its weights | rows |\n|---|---|---|---|---|---:|\n"
    return f"Written by models, with their mistakes. Terms of a model's licence may reach what it wrote.\n\n{head}" + "\n".join(lines)


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())


_TAKEDOWN = """\
## Takedown

Whoever holds rights in a picture, or is on it, can have it removed from the table this comes from. This copy is recorded there. If it was
passed on, pass removals on too."""
