"""What a person sees on the run's page in the Prefect UI: progress, the report, pictures of labels, links."""

from __future__ import annotations

import base64
import io
import json
import time
from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

from PIL import Image
from prefect.artifacts import (
    create_image_artifact,
    create_link_artifact,
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)

from mtv_core.report import StageRef
from tasks import reports


class ProgressArtifact:
    """A progress bar in the UI, updated at most every two seconds. A `mtv_core.executor.Progress`."""

    def __init__(self, stage: str, every: float = 2.0) -> None:
        self.stage, self.every, self.last = stage, every, time.monotonic()
        self.artifact: UUID = _id(create_progress_artifact(progress=0.0, key=f"{stage}-progress", description=f"{stage}: starting"))

    def __call__(self, done: int, total: int, message: str = "") -> None:
        """Show that `done` of `total` pieces are finished."""
        now = time.monotonic()
        if now - self.last < self.every and done < total:
            return
        self.last = now
        percent = 100.0 * done / total if total else 100.0
        update_progress_artifact(self.artifact, progress=percent, description=f"{self.stage}: {done} of {total} {message}".strip())


def _id(created: Any) -> UUID:
    assert isinstance(created, UUID)
    return created


def report(ref: StageRef) -> None:
    """The counts of one stage, as a table."""
    rows: list[dict[str, Any]] = [
        {"what": name.replace("_", " "), "value": value} for name, value in ref.report.model_dump(exclude={"counts"}).items()
    ]
    rows += [{"what": name, "value": value} for name, value in sorted(ref.report.counts.items())]
    rows += [{"what": f"revision of {name}", "value": value} for name, value in sorted(ref.revisions.items())]
    rows += [{"what": "version", "value": ref.version}] if ref.version is not None else []
    rows += [{"what": "tag", "value": ref.tag}] if ref.tag else []
    create_table_artifact(rows, key=f"{ref.stage}-report", description=f"What {ref.stage} did: {ref.uri}")


def results(rows: Sequence[Mapping[str, Any]]) -> None:
    """The table of results at the end of a run."""
    create_table_artifact([dict(row) for row in rows], key="results", description="What the trained model does, beside the untrained one")


def picture(key: str, image: Image.Image, description: str) -> None:
    """A picture, inside the artifact itself as a data URI: nothing else has to be served."""
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, "JPEG", quality=88)
    uri = "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
    create_image_artifact(uri, key=key, description=description)


def ingest_report(ref: StageRef, storage_options: Mapping[str, str] | None = None) -> None:
    """What an ingest wrote beside the table: the report as a page, the funnel as a table, and the pictures."""
    files = reports.read(ref, storage_options)
    if (text := files.get("report.md")) is not None:
        create_markdown_artifact(text.decode(), key="ingest-statistics", description=f"What the ingest found: {ref.uri}")
    if (document := files.get("report.json")) is not None:
        create_table_artifact(
            funnel_rows(json.loads(document)["funnel"]),
            key="ingest-funnel",
            description="From shards to rows: how many samples each step took",
        )
    for name, content in files.items():
        if name.endswith(".jpg"):
            title = (
                "Rows of this ingest, chosen by chance"
                if name == "gallery.jpg"
                else name.removesuffix(".jpg").replace("_", " ").capitalize()
            )
            picture(f"ingest-{name.removesuffix('.jpg').replace('_', '-')}", Image.open(io.BytesIO(content)), title)


def funnel_rows(steps: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Steps of a report, as rows of a table for people."""
    return [
        {
            "step": step["name"],
            "left": step["left"],
            "taken": step["lost"],
            "why": ", ".join(f"{reason} {count}" for reason, count in step["reasons"].items()),
        }
        for step in steps
    ]


def link(key: str, url: str, text: str) -> None:
    """A link to another page."""
    create_link_artifact(url, link_text=text, key=key, description=text)
