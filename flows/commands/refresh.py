"""`mtv refresh`: try what changed, decide, relabel what is stale; here and now, without a server."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table as Grid

from flows.commands import stages
from flows.commands.console import Bar, PresetOption, SetOption, SourcesOption, TableOption, bars, out, resolve_options
from flows.commands.plan import said

if TYPE_CHECKING:
    from mtv_core.canary import Canary
    from mtv_core.labelling_plan import ExpertPlan
    from mtv_core.report import StageRef
    from tasks.refresh import Decision
    from tasks.run import Run

FAILED, WAITING = 1, 3  # exit codes: a revision did not stand the gate; a person has to decide
NOT_SEEN = "it was tried only now, so nobody has looked at it"


def refresh(
    preset: PresetOption = "demo",
    sources: SourcesOption = None,
    table: TableOption = None,
    expert: Annotated[
        list[str] | None, typer.Option("--expert", help="Try only this expert; may be repeated. Needed to replace imported labels.")
    ] = None,
    approve: Annotated[bool, typer.Option("--approve", help="Accept what was tried, whatever the thresholds say.")] = False,
    reject: Annotated[bool, typer.Option("--reject", help="Refuse what was tried; it is not proposed again.")] = False,
    reason: Annotated[str, typer.Option("--reason", help="Why it is refused, kept in the table.")] = "",
    force: Annotated[bool, typer.Option("--force", help="Try revisions again that were refused before.")] = False,
    canary_only: Annotated[bool, typer.Option("--canary-only", help="Try, say what would change, and stop: nothing is decided.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Everything, as one JSON object.")] = False,
    options: SetOption = None,
) -> None:
    """Try changed experts on some rows, accept or refuse them, and relabel what is stale. Needs no server.

    Exit code 0: done; 1: a revision did not pass and was refused (with --canary-only: would not pass), or --approve or --reject found
    nothing to decide on; 3: a person has to decide: look at the page, then --approve or --reject. These two decide on what was tried
    before; a revision that nobody can have looked at is tried first, and waits.
    """
    asked = approve or reject
    if approve and reject:
        raise typer.BadParameter("either --approve or --reject")
    if canary_only and asked:
        raise typer.BadParameter("--canary-only decides nothing; leave it out to --approve or --reject")
    if reason and not reject:
        raise typer.BadParameter("--reason goes with --reject")
    from tasks import refresh as stage
    from tasks.run import open_run

    resolved = resolve_options(preset, sources, table, options)
    with open_run(resolved, "refresh") as run:
        plans = stage.plans(run)
        if not as_json:
            _plan(run, plans, stage.refusals(plans, expert) if not force else [])
        with bars() as progress:
            canaries = stage.seen(run, names=expert, force=force) if asked else []
            known = {canary.expert for canary in canaries}
            names = [name for name in stage.proposed(run, names=expert, force=force) if name not in known] if asked else expert
            new = stage.canaries(run, Bar(progress, "canary"), names=names, force=force) if names != [] else []
        if not as_json:
            for canary in [*canaries, *new]:
                _canary(canary)
        decisions: list[Decision] = []
        ref: StageRef | None = None
        if not canary_only:
            decisions = [stage.decide(run, one, "approve" if approve else "refuse", reason) for one in canaries]
            decisions += [stage.waiting(one, NOT_SEEN) if asked else stage.decide(run, one) for one in new]
            if not as_json:
                _decisions(decisions, asked)
            if {one.verdict for one in decisions} != {"waiting"}:
                ref = _relabel(run)
    if as_json:
        typer.echo(json.dumps(_document(run, plans, [*canaries, *new], decisions, ref), indent=2))
    elif ref is not None:
        stages._say(ref)
    if any(one.verdict == "waiting" for one in decisions):
        if not as_json:
            again = "mtv refresh --force" if force else "mtv refresh"
            out.print(f"what waits has changed nothing: look at its page, then `{again} --approve` or `{again} --reject --reason '…'`")
        raise typer.Exit(WAITING)
    if (asked and not decisions) or any(not canary.passed for canary in new):
        raise typer.Exit(FAILED)


def _relabel(run: Run) -> StageRef:
    """Label what is stale, with a report where anything was."""
    from mtv_core.store.table import Table
    from tasks import refresh as stage

    before = Table.open(run.table, run.config.table.storage_options).version

    def work() -> StageRef:
        with bars() as progress:
            ref = stage.relabel(run, Bar(progress, "label"))
        if not stage.changed(ref):
            return ref
        from tasks import label_report

        return ref.model_copy(update={"outputs": {**ref.outputs, **label_report.report(run, ref, before)}})

    return run.stage("label", "", work)


# What a person reads


def _plan(run: Run, plans: dict[str, ExpertPlan], refusals: Sequence[str]) -> None:
    out.print(escape(run.table))
    for name, one in plans.items():
        if one.accepted is None:
            state = f"{one.tracked} labels for the first time, which accepts it"
        elif one.imported is not None:
            state = f"imported from {one.imported}; --expert {name} tries the configured model against it"
        elif one.unresolved is not None:
            state = f"{one.target} as accepted; the configured one cannot be looked up: {one.unresolved}"
        elif one.proposed:
            state = f"{one.tracked} beside {one.accepted}"
        else:
            state = f"{one.target} as accepted" if one.target == one.accepted else f"{one.target} without trying (label.accept: immediate)"
        out.print(f"  {name:<10} {escape(state)}; stale: {said(one.stale)}")
    for refusal in refusals:
        out.print(f"  {'note':<10} {escape(refusal)}")


def _canary(canary: Canary) -> None:
    out.print(f"canary {canary.expert} {canary.revision}: {canary.rows} rows beside {canary.accepted}")
    grid = Grid(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    for column in ("left", "right", "right", "left"):
        grid.add_column(justify=column)
    for check in canary.checks:
        value = "nothing" if check.value is None else f"{check.value:.3g}"
        verdict = "[green]passed[/]" if check.passed else "[bold red]failed[/]"
        grid.add_row(f"  {escape(check.name)}", value, f"{check.sign} {check.limit:g}", verdict)
    out.print(grid)
    out.print(f"  accepting labels {said(canary.work)}")
    license_ = canary.license if canary.license == canary.accepted_license else f"{canary.license} (so far {canary.accepted_license})"
    out.print(f"  {'licence':<8} {escape(license_)}")
    out.print(f"  {'page':<8} {escape(canary.page)}")


def _decisions(decisions: Sequence[Decision], asked: bool) -> None:
    for one in decisions:
        out.print(f"{one.expert} {one.revision}: {one.verdict}, {escape(one.reason)}")
    if not decisions and asked:
        out.print("nothing waits for a decision; what was refused before does with --force")


def _document(
    run: Run, plans: dict[str, ExpertPlan], canaries: Sequence[Canary], decisions: Sequence[Decision], ref: StageRef | None
) -> dict[str, Any]:
    return {
        "run": run.run_id,
        "table": run.table,
        "experts": {name: one.model_dump(mode="json") for name, one in plans.items()},
        "canaries": [one.model_dump(mode="json") for one in canaries],
        "decisions": [one.model_dump(mode="json") for one in decisions],
        "label": None if ref is None else ref.model_dump(mode="json"),
    }
