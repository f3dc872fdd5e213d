"""Canary: a new revision of an expert is tried on some rows, aside; and what a person sees of it in the Prefect UI."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence

from PIL import Image
from prefect.artifacts import create_markdown_artifact

from mtv_core import canary as core
from mtv_core import labelling_plan
from mtv_core.canary import Canary
from mtv_core.data.files import Files
from mtv_core.executor import Progress, amount, duration
from mtv_core.labelling_plan import ExpertPlan
from mtv_core.report import StageRef, StageReport
from mtv_core.settings import is_local
from tasks import artifacts
from tasks.cluster import on_demand
from tasks.run import Run, stage_key

VERSION = 1
PICTURES = 6  # as artifacts; the page has the others


def plans(run: Run) -> dict[str, ExpertPlan]:
    """What stands where, by expert, from the table's manifest.

    Raises:
        FileNotFoundError: there is no table, or no such expert.
        ValueError: an expert cannot be used as configured.
    """
    return labelling_plan.plan(run.table, run.label_config, run.config.table.storage_options)


def proposed(plans: Mapping[str, ExpertPlan], only: str | None, force: bool) -> dict[str, ExpertPlan]:
    """The experts whose tracked revision waits for being accepted. One that was refused does so only if it is forced, one whose accepted
    labels were imported only if it is named.
    """
    return {
        name: one
        for name, one in plans.items()
        if one.proposed and only in (None, name) and (force or one.refusal is None) and (one.imported is None or only == name)
    }


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


def show(run: Run, canary: Canary) -> None:
    """The page, and the pictures, as artifacts of the run."""
    name = f"canary-{canary.expert}"
    create_markdown_artifact(text(canary), key=name, description=f"{canary.expert}: {canary.revision} tried beside {canary.accepted}")
    for number, uri in enumerate(canary.pictures[:PICTURES], start=1):
        folder, _, file = uri.rpartition("/")
        try:
            content = Files(folder, run.config.table.storage_options).read(file)
        except FileNotFoundError:  # a takedown removes pictures
            continue
        said = f"{canary.expert}, {number} of the rows that changed most: the image, the old label, the new one"
        artifacts.picture(f"{name}-{number}", Image.open(io.BytesIO(content)), said)


def text(canary: Canary, artifacts_url: str | None = None) -> str:
    """Verdict, thresholds and figures in Markdown: the artifact, and what stands above the form."""
    verdict = "**All checks passed.**" if canary.passed else f"**{len(canary.failed)} of {len(canary.checks)} checks failed.**"
    lines = [
        f"## {canary.expert}: revision `{canary.revision}` beside `{canary.accepted}`",
        f"{verdict} {canary.rows} rows were labelled aside; nothing in the table has changed. Accepting it labels {_work(canary)}.",
        _table(
            ("", "new", "accepted"),
            [
                ("model", _plain(canary.model), _plain(canary.accepted_model)),
                ("licence", _plain(canary.license), _plain(canary.accepted_license)),
            ],
        ),
        _table(
            ("check", "measured", "limit", "", "what it is"),
            [
                (
                    f"`{check.name}`",
                    _number(check.value),
                    f"{check.sign} {check.limit:g}",
                    "✓" if check.passed else "✗",
                    _plain(check.meaning),
                )
                for check in canary.checks
            ],
        ),
        _table(("figure", "value"), [(name.replace("_", " "), _number(value)) for name, value in canary.figures.items()]),
    ]
    where = canary.page if not is_local(canary.page) else f"`{canary.page}`"
    links = f"Pictures: [artifacts of this run]({artifacts_url}). " if artifacts_url else ""
    return "\n\n".join([*lines, f"{links}The whole page: {where}"])


def _work(canary: Canary) -> str:
    work = canary.work
    parts = [f"{work.num_stale} rows again"]
    parts += [f"about {duration(work.seconds)}"] if work.seconds is not None else []
    parts += [f"{amount(work.bytes_to_write)} bytes"] if work.bytes_to_write is not None else []
    parts += [f"cost {work.cost:.2f}"] if work.cost is not None else []
    return ", ".join(parts)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (header, ["---"] * len(header), *rows))


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"


def _plain(said: str) -> str:
    """Text of others, which is no Markdown and no HTML."""
    return re.sub(r"([\\`*_{}\[\]<>#|!~])", r"\\\1", " ".join(said.split()))
