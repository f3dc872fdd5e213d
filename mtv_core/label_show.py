"""Rows and their labels for somebody who asks for them: by uid, or of a slice of what a report would show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mtv_core.data.depth import decode
from mtv_core.data.schema import LABELS
from mtv_core.label_report import groups_of, sheet
from mtv_core.label_report_pages import rows_page
from mtv_core.label_report_rows import CHANGE, Row, Shown, experts_of, find
from mtv_core.label_report_sample import changes
from mtv_core.label_report_scan import SAMPLE, SLICES, scan
from mtv_core.store.table import Table
from mtv_core.store.view import View

CHOICES = (*SLICES, CHANGE)
_DETECTED = ("lowest-score", "most-boxes", "none")


def named(view: View, uids: Sequence[str], experts: Sequence[str] | None = None) -> Shown:
    """Rows by uid, or by the beginning of one.

    Raises:
        ValueError: as `find`; or the version has no labels.
    """
    there = _labelled(view, experts)
    count = f"{len(uids)} row{'' if len(uids) == 1 else 's'}"
    return Shown("rows", "Rows", f"{count} of version {view.version}", view, tuple(there), find(view, uids))


def choose(
    table: Table, view: View, name: str = "random", experts: Sequence[str] | None = None, count: int = 8, before: int | None = None
) -> list[Shown]:
    """The first rows of a slice; of `largest-change` one group an expert.

    Args:
        table: where.
        view: the version.
        name: one of CHOICES.
        experts: whose labels; None: all.
        count: rows of a group.
        before: the version to compare with; None: of the latest earlier tag whose labels are other ones.

    Raises:
        ValueError: the version has no labels that the slice is made of, or there is nothing to compare with.
    """
    there = _labelled(view, experts)
    if name in _DETECTED and "scores" not in view.schema.names:
        raise ValueError(f"version {view.version} of the table has no detection labels, which the slice {name} is made of; run `mtv label`")
    if name != CHANGE:
        overview = scan(view, count, count if name == "random" else 0)
        return [one for one in groups_of(view, there, overview, {}) if one.name == name]
    previous = _previous(table, view, there, before)
    overview = scan(view, 0, SAMPLE)
    found = groups_of(view, there, overview, changes(view, previous, overview.uids, overview.sample, there, count))
    return [one for one in found if one.name.startswith(CHANGE)]


def _labelled(view: View, experts: Sequence[str] | None) -> list[str]:
    """The experts, of those that are wanted, whose labels a version has."""
    there = experts_of(view, experts)
    if not there:
        raise ValueError(f"version {view.version} of the table has no {' or '.join(experts or LABELS)} labels; run `mtv label`")
    return there


def _previous(table: Table, view: View, experts: Sequence[str], before: int | None) -> View:
    version = earlier(table, view, experts) if before is None else before
    if version is None:
        raise ValueError(
            f"no earlier tag has labels of other revisions than version {view.version}; name the version to compare with: --before"
        )
    if version >= view.version or not table.version_exists(version):
        raise ValueError(f"there is no version {version} before version {view.version} any more; --before takes an earlier one")
    return table.at(table.uri, version=version, storage_options=table.storage_options)


def earlier(table: Table, view: View, experts: Sequence[str]) -> int | None:
    """Version of the latest earlier tag that has labels of other revisions; None if there is none."""
    now = table.label_counts(view.version)
    for version in sorted({version for version in table.tags().values() if version < view.version}, reverse=True):
        then = table.label_counts(version)
        if any(set(then.get(name, {})) - set(now.get(name, {})) - {""} for name in experts):
            return version
    return None


def facts(row: Row) -> dict[str, Any]:
    """A row and its labels as plain values, without its picture."""
    values = row.values
    found: dict[str, Any] = {name: values[name] for name in ("uid", "caption", "width", "height")}
    found |= labels(values)
    if row.before is not None:
        found["before"] = labels(row.before)
    if row.note:
        found["note"] = row.note
    return found


def labels(values: Mapping[str, Any]) -> dict[str, Any]:
    """The labels of a row: of depth its size and range, of detection every box; None where there is no label."""
    found: dict[str, Any] = {}
    if "depth" in values:
        found["depth"] = _depth(values["depth"])
    if "boxes" in values:
        found["boxes"] = None if values["boxes"] is None else [
            {"phrase": phrase, "score": round(score, 4), "box": [round(side, 5) for side in box]}
            for box, phrase, score in zip(values["boxes"], values["phrases"], values["scores"], strict=True)
        ]  # fmt: skip
    return found | {name: value for name, value in values.items() if name.endswith("_rev")}


def _depth(value: bytes | None) -> dict[str, Any] | None:
    if value is None:
        return None
    depth = decode(value)
    known = depth[np.isfinite(depth)]
    return {
        "height": depth.shape[0],
        "width": depth.shape[1],
        "lowest": float(known.min()) if known.size else None,
        "highest": float(known.max()) if known.size else None,
        "known": round(known.size / depth.size, 4),
    }


def files(shown: Shown, rows: Sequence[Row], revisions: Mapping[str, str]) -> dict[str, bytes]:
    """A page of rows and a picture of them: name → content."""
    page = rows_page(shown.title, shown.meaning, rows, revisions)
    return {f"{shown.name}.html": page.encode(), f"{shown.name}.jpg": sheet(rows)}
