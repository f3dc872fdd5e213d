"""The report of labels beside the table, and what Prefect shows of it: numbers, checks, pictures of every group of rows, the page."""

from __future__ import annotations

import io
import logging
from collections.abc import Mapping

from PIL import Image

from mtv_core import label_report
from mtv_core.label_report_pages import START
from mtv_core.label_report_rows import TITLES
from mtv_core.report import StageRef, plain
from mtv_core.store.table import Table
from tasks import reports
from tasks.run import Run

_log = logging.getLogger(__name__)
PREFIX = f"{reports.PREFIX}labels/"  # of the names in `StageRef.outputs`


def report(run: Run, ref: StageRef, before: int | None) -> dict[str, str]:
    """Write the report of a labelled version; a stage is not failed by it.

    Args:
        run: whose configuration says what the experts are.
        ref: version, revisions and tag of the labels, and the account of the labelling.
        before: version of the table before it was labelled, which changes are measured against; None: nothing is compared.

    Returns:
        name → URI, for `StageRef.outputs`; empty if it could not be written.
    """
    options = run.config.table.storage_options
    assert ref.version is not None
    try:
        table = Table.open(ref.uri, options)
        idle = not (ref.report.rows_out or ref.report.rows_rejected)
        files = label_report.written(table, ref.version) if idle else {}  # nothing was labelled: the report is true still
        files = files or label_report.write(table, ref.version, ref.revisions, before, run.config.label, tag=ref.tag, report=ref.report)
    except (OSError, ValueError) as error:  # no place, a version that a takedown removed, a label that is damaged
        _log.warning("the labels are there, but their report could not be written: %s", plain(error))
        return {}
    return {f"{PREFIX}{name}": uri for name, uri in files.items()}


def artifacts(ref: StageRef, storage_options: Mapping[str, str] | None = None) -> None:
    """Show the report that `ref.outputs` names on the page of the run."""
    from prefect.artifacts import create_markdown_artifact  # here, since the command line writes reports without Prefect

    from tasks import artifacts as show

    wanted = {name: uri for name, uri in ref.outputs.items() if name.startswith(PREFIX) and not name.endswith(".html")}
    files = reports.read(ref.model_copy(update={"outputs": wanted}), storage_options)
    files = {name.removeprefix("labels/"): content for name, content in files.items()}
    start = ref.outputs.get(f"{PREFIX}{START}")
    if (text := files.get("report.md")) is not None:
        where = f"\nPages with pictures: `{start}`\n" if start else ""
        create_markdown_artifact(text.decode() + where, key="label-report", description=f"What the labels are like: {ref.uri}")
    for name, content in files.items():
        group = name.removesuffix(".jpg")
        if name.endswith(".jpg"):
            title = ": ".join(TITLES.get(group, (group.replace("-", " ").capitalize(),)))
            show.picture(f"labels-{group}", Image.open(io.BytesIO(content)), title)
    if start:
        show.link("label-pages", start if "://" in start else f"file://{start}", "The labels, page by page")
