"""The report of a table's labels: numbers, checks, and rows to look at; files beside the table.

    <table>/_reports/labels/<version>/index.html           the page to start from
                                     /GROUP.html           random, lowest-score, most-boxes, none, largest-change-EXPERT, or a check's rows
                                     /GROUP.jpg            a sheet of some of them, for pages that show one picture
                                     /report.{md,json}     the same numbers, for Prefect and for programs

Pages hold their pictures and fetch nothing; a takedown removes them (`store.takedown_erase`). Numbers of boxes and scores are of all rows,
from their columns; what has to read labels is measured on the `SAMPLE` rows of smallest uid, which is by chance and always the same. So the
report of a hundred million rows reads as many pictures, depth maps and boxes as that of ten thousand.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from pydantic import ValidationError

from mtv_core import label_report_pages as pages
from mtv_core import viz
from mtv_core.data.schema import label_schema
from mtv_core.experts.config import DetectionExpertConfig
from mtv_core.ingest_gallery import jpeg
from mtv_core.label_report_facts import Boxes, ExpertFacts, LabelReport
from mtv_core.label_report_pictures import thumbnail
from mtv_core.label_report_rows import CHANGE, TITLES, Row, Shown, experts_of
from mtv_core.label_report_sample import Asked, Changes, Sample, asked_by, changes
from mtv_core.label_report_scan import SAMPLE, SHOWN, Overview, scan
from mtv_core.label_report_text import markdown
from mtv_core.labelling_config import LabelConfig
from mtv_core.report import StageReport
from mtv_core.store import locks
from mtv_core.store.accepted import Accepted
from mtv_core.store.rejects import Selection
from mtv_core.store.table import Table
from mtv_core.store.view import View

FOLDER = "_reports/labels"
KEPT = 20  # reports of a table, those of the latest versions
_ON_A_SHEET = 12
_THUMBNAILS = 4
_DROPPED = "detection_filter_"
_CHANGED = {"depth": "changed by {:.2f} of its range", "detection": "changed by {:.2f} (1 − mean IoU)"}


@dataclass(frozen=True)
class Document:
    """A report, and the groups of rows that it shows."""

    report: LabelReport
    shown: list[Shown]


def write(
    table: Table,
    version: int,
    revisions: Mapping[str, str],
    before: int | None,
    config: LabelConfig,
    folder: str | None = None,
    *,
    tag: str | None = None,
    report: StageReport | None = None,
) -> dict[str, str]:
    """Write the report of a version; the same again replaces it. Reports of the latest KEPT versions stay.

    Args:
        table: where.
        version: of the samples, whose labels are looked at.
        revisions: expert → revision that the labels are to have; of experts that are not named, the accepted one.
        before: the version before the labelling, to compare with; it need not exist any more. None: nothing is compared.
        config: of the experts, for what was asked for, where the table does not say it.
        folder: relative to the table; None: one a version.
        tag: of the version, if it has one.
        report: of the labelling run, for what its filters dropped.

    Returns:
        name → URI; the page to start from is `index.html`.

    Raises:
        FileNotFoundError: no such table or version.
        OSError: the files cannot be written, or a takedown is at work.
    """
    place = folder or f"{FOLDER}/{version}"
    files: dict[str, str] = {}
    with locks.writing(table, "label report"):  # a takedown that begins meanwhile would miss the pictures
        document = collect(table, version, revisions, before, config, tag=tag, report=report)
        for name, content in render(document):
            table.files.write(f"{place}/{name}", content)
            files[name] = table.files.path(f"{place}/{name}")
        for name in table.files.names(place):
            if name not in files:
                table.files.remove(f"{place}/{name}")
        if folder is None:
            for old in sorted(map(int, filter(str.isdecimal, table.files.names(FOLDER))))[:-KEPT]:
                table.files.remove(f"{FOLDER}/{old}")
    return files


def written(table: Table, version: int) -> dict[str, str]:
    """The report that a version has already: name → URI; empty if it has none. `report.json` is written last."""
    names = table.files.names(f"{FOLDER}/{version}")
    return {name: table.files.path(f"{FOLDER}/{version}/{name}") for name in names} if "report.json" in names else {}


def render(document: Document) -> Iterator[tuple[str, bytes]]:
    """The files of a report: (name, content). The pictures of one group are in memory at a time."""
    thumbnails: dict[str, list[str]] = {}
    for shown in document.shown:
        rows = shown.rows()
        thumbnails[shown.name] = [thumbnail(row) for row in rows[: _THUMBNAILS // 2 if shown.before else _THUMBNAILS]]
        yield f"{shown.name}.html", pages.group_page(document.report, shown, rows).encode()
        yield f"{shown.name}.jpg", sheet(rows[:_ON_A_SHEET])
    yield pages.START, pages.index(document.report, document.shown, thumbnails).encode()
    yield "report.md", markdown(document.report).encode()
    yield "report.json", document.report.model_dump_json(indent=1).encode()


def sheet(rows: Sequence[Row], columns: int = 3) -> bytes:
    """Rows with their labels as one JPEG."""
    return jpeg(viz.sheet([viz.tile(row.values, row.before, row.note) for row in rows], columns))


def collect(
    table: Table,
    version: int,
    revisions: Mapping[str, str],
    before: int | None,
    config: LabelConfig,
    *,
    tag: str | None = None,
    report: StageReport | None = None,
    shown: int = SHOWN,
    sample: int = SAMPLE,
) -> Document:
    """Measure the labels of a version, and choose the rows to look at. Arguments as for `write`.

    Args:
        shown: rows a group.
        sample: rows of which labels are read.
    """
    view = table.at(table.uri, version=version, storage_options=table.storage_options)
    names = experts_of(view)
    accepted = table.accepted(table.dataset(version))
    counts = table.label_counts(version)
    wanted = {name: _revision(name, revisions, accepted, counts[name]) for name in names}
    overview = scan(view, shown, sample, wanted.get("detection"))
    labels = Sample(_asked(view, accepted.get("detection"), config) if "detection" in names else None)
    labels.read(view, overview.sample, names)
    previous = _previous(table, version, before)
    changed = changes(view, previous, overview.uids, overview.sample, names, shown) if previous is not None else {}
    scores_before = Boxes.of(scan(previous, 0, 0)) if previous is not None and "detection" in changed else None
    checks = labels.checker.result()
    groups = groups_of(view, names, overview, changed)
    place = dict(zip(overview.uids, overview.sample, strict=True))
    for check in checks:
        if check.examples:
            groups.append(Shown(check.name, check.title, check.meaning, view, tuple(names), [place[uid] for uid in check.examples]))
    dropped = {name.removeprefix(_DROPPED): boxes for name, boxes in (report.counts if report else {}).items() if name.startswith(_DROPPED)}
    document = LabelReport(
        table=table.uri.rstrip("/").rsplit("/", 1)[-1],
        version=version,
        tag=tag,
        before=previous.version if previous is not None and changed else None,
        written=datetime.now(UTC),
        rows=overview.rows,
        experts={name: _facts(table, name, wanted[name], accepted.get(name), counts[name], overview, labels) for name in names},
        boxes=Boxes.of(overview) if "detection" in names else None,
        boxes_before=scores_before,
        sample=len(overview.sample),
        phrases=labels.most_found(),
        num_phrases=len(labels.boxes_of),
        never_found=labels.never_found(),
        areas=labels.areas.tolist(),
        relief=labels.relief.tolist(),
        checks=checks,
        changes={name: one.result() for name, one in changed.items()},
        dropped=dropped,
        pages={f"{one.name}.html": len(one.positions) for one in groups},
    )
    return Document(document, groups)


def groups_of(view: View, experts: Sequence[str], overview: Overview, changed: Mapping[str, Changes]) -> list[Shown]:
    """The rows of a scan that are worth looking at, and those that changed most."""
    found = [Shown(name, *TITLES[name], view, tuple(experts), overview.slices[name]) for name in TITLES if overview.slices.get(name)]
    place = dict(zip(overview.uids, overview.sample, strict=True))
    for name, one in changed.items():
        if ranked := one.ranked():
            found.append(
                Shown(
                    f"{CHANGE}-{name}",
                    *TITLES[f"{CHANGE}-{name}"],
                    view,
                    (name,),
                    [place[old["uid"]] for _, old in ranked],
                    [_CHANGED[name].format(amount) for amount, _ in ranked],
                    [{column: old[column] for column in label_schema(name).names} for _, old in ranked],
                )
            )
    return found


def _previous(table: Table, version: int, before: int | None) -> View | None:
    if before is None or before >= version or not table.version_exists(before):
        return None
    return table.at(table.uri, version=before, storage_options=table.storage_options)


def _revision(name: str, revisions: Mapping[str, str], accepted: Mapping[str, Accepted], counts: Mapping[str, int]) -> str:
    """What the labels should be; before anything was accepted, what most of them are."""
    if name in revisions:
        return revisions[name]
    if name in accepted:
        return accepted[name].revision
    return max((revision for revision in counts if revision), key=lambda revision: (counts[revision], revision), default="")


def _asked(view: View, accepted: Accepted | None, config: LabelConfig) -> Asked | None:
    """What the detector was asked for; None if nobody knows, as of imported boxes."""
    detection = config.detection
    if accepted is not None:
        if "imported" in accepted.source:
            return None
        with contextlib.suppress(KeyError, ValidationError):  # accepted by another version of MTV: as configured now
            detection = DetectionExpertConfig.model_validate(accepted.source["config"])
    asked = asked_by(detection) if detection is not None else None
    return asked if asked is not None and set(asked.columns) <= set(view.schema.names) else None


def _facts(
    table: Table,
    name: str,
    revision: str,
    accepted: Accepted | None,
    counts: Mapping[str, int],
    overview: Overview,
    labels: Sample,
) -> ExpertFacts:
    source: Mapping[str, Any] = accepted.source if accepted is not None and accepted.revision == revision else {}
    imported = source.get("imported")
    refused: Counter[str] = Counter()
    for batch in table.rejects.select(Selection(stage=name), ["uid", "error", "revision"]):
        for error, uid, of in zip(*(batch[column].to_pylist() for column in ("error", "uid", "revision")), strict=True):
            refused[error] += of == revision and uid is not None
    without, estimated = sum(refused.values()), False
    if name == "detection":
        without = overview.without
    elif imported is not None and overview.sample:
        without = round(counts.get(revision, 0) * (1 - labels.present[name] / len(overview.sample)))
        estimated = len(overview.sample) < overview.rows
    return ExpertFacts(
        revision=revision,
        model=str(source.get("model", "")),
        license=str(source.get("license", "")),
        identity={key: str(value) for key, value in source.get("identity", {}).items()},
        imported=str(imported["file"]) if imported is not None else "",
        stored=dict(sorted(counts.items())),
        refused={reason: rows for reason, rows in refused.most_common() if rows},
        without=min(without, counts.get(revision, 0)),
        estimated=estimated,
    )
