"""Canary: a new revision of an expert is tried on some rows, aside; and what a person sees of it in the Prefect UI."""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence

from prefect.artifacts import create_image_artifact, create_markdown_artifact

from mtv_core import canary as core
from mtv_core.canary import Canary
from mtv_core.charts import size
from mtv_core.data.files import Files
from mtv_core.executor import Progress, duration
from mtv_core.labelling_plan import ExpertPlan
from mtv_core.report import StageRef, StageReport
from mtv_core.settings import is_local
from tasks.cluster import on_demand
from tasks.run import Run, stage_key

VERSION = 1
PICTURES = 6  # as artifacts; the page has the others


def key(run: Run, expert: str, plan: ExpertPlan) -> str:
    """Of one run's canary. It does not depend on the table's version: the run goes on with what a person has looked at."""
    return stage_key("canary", VERSION, run=run.run_id, table=run.table, expert=expert, tracked=plan.tracked, accepted=plan.accepted)


def try_out(run: Run, expert: str, force: bool, progress: Progress) -> StageRef:
    """Label some rows aside with the tracked revision. The canary itself is in `outputs`, so that it outlives its files."""
    options = run.config.table.storage_options
    with on_demand(run.config.compute) as executor:
        (canary,) = core.try_out(run.table, run.label_config, executor, progress, options, force=force, names=[expert])
    # Without a version: the stage does not change the table.
    return StageRef(
        stage="canary",
        run_id=run.run_id,
        uri=run.table,
        outputs={"canary": canary.model_dump_json(), "page": canary.page},
        report=StageReport(rows_in=canary.rows),
    )


def of(ref: StageRef) -> Canary:
    """The canary of a stage's result."""
    return Canary.model_validate_json(ref.outputs["canary"])


# What a person sees


def show(run: Run, canary: Canary) -> str:
    """The page, and its pictures, as artifacts of the run; returns the id of the page."""
    name, pictures = f"canary-{canary.expert}", []
    for number, uri in enumerate(canary.pictures[:PICTURES], start=1):
        folder, _, file = uri.rpartition("/")
        try:
            content = Files(folder, run.config.table.storage_options).read(file)
        except FileNotFoundError:  # a takedown removes pictures
            continue
        pictures.append(f"data:image/jpeg;base64,{base64.b64encode(content).decode()}")
        said = f"{canary.expert}, {number} of the rows that changed most: the image, the old label, the new one"
        create_image_artifact(pictures[-1], key=f"{name}-{number}", description=said)
    said = f"{canary.expert}: {canary.revision} tried beside {canary.accepted}"
    return str(create_markdown_artifact(page(canary, pictures), key=name, description=said))


def page(canary: Canary, pictures: Sequence[str]) -> str:
    """Verdict, thresholds, figures and pictures (data URIs) in Markdown."""
    checks = [(*cells, _plain(check.meaning)) for check, cells in zip(canary.checks, _checks(canary), strict=True)]
    lines = [
        *_head(canary),
        "### Checks",
        _table(("check", "measured", "limit", "", "what it is"), checks),
        "### Figures",
        _table(("figure", "value"), [(name.replace("_", " "), _number(value)) for name, value in canary.figures.items()]),
        *(["### Rows that changed most: image, old label, new label"] if pictures else []),
        *(f"![{number}]({picture})" for number, picture in enumerate(pictures, start=1)),
        f"The whole page: {canary.page if not is_local(canary.page) else f'`{canary.page}`'}",
    ]
    return "\n\n".join(lines)


def question(canary: Canary, url: str | None) -> str:
    """What stands above the form: narrower and shorter than the page, to which it points."""
    failed = [f"- `{check.name}`: {_plain(check.meaning)}" for check in canary.failed]
    lines = [
        *_head(canary),
        *(["\n".join(["What failed:", "", *failed])] if failed else []),
        f"[Figures and pictures]({url})" if url else f"Figures and pictures: {canary.page}",
        _table(("check", "measured", "limit", ""), _checks(canary)),
    ]
    return "\n\n".join(lines)


def _head(canary: Canary) -> list[str]:
    verdict = "**All checks passed.**" if canary.passed else f"**{len(canary.failed)} of {len(canary.checks)} checks failed.**"
    return [
        f"## {canary.expert}: `{canary.revision}` instead of `{canary.accepted}`",
        f"{verdict} {canary.rows} rows were labelled aside; nothing in the table has changed. Accepting it labels {_work(canary)}.",
        f"- new: {_plain(canary.model)}, licence {_plain(canary.license)}\n"
        f"- accepted: {_plain(canary.accepted_model)}, licence {_plain(canary.accepted_license)}",
    ]


def _checks(canary: Canary) -> list[tuple[str, str, str, str]]:
    return [
        (f"`{check.name}`", _number(check.value), f"{check.sign} {check.limit:g}", "✓" if check.passed else "✗") for check in canary.checks
    ]


def _work(canary: Canary) -> str:
    work = canary.work
    parts = [f"{work.num_stale} rows again"]
    parts += [f"about {duration(work.seconds)}"] if work.seconds is not None else []
    parts += [size(work.bytes_to_write)] if work.bytes_to_write is not None else []
    parts += [f"cost {work.cost:.2f}"] if work.cost is not None else []
    return ", ".join(parts)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (header, ["---"] * len(header), *rows))


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"


def _plain(said: str) -> str:
    """Text of others, which is no Markdown and no HTML."""
    return re.sub(r"([\\`*_{}\[\]<>#|!~])", r"\\\1", " ".join(said.split()))
