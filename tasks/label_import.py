"""Import: labels of one's own, as a run that `mtv runs` lists."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from mtv_core.executor import Progress
from mtv_core.report import StageRef
from tasks import label as label_stage
from tasks.run import Run

if TYPE_CHECKING:
    from mtv_core.label_import import ImportResult
    from mtv_core.label_import_files import ReadOptions


def import_labels(
    run: Run, path: Path, expert: str | None, options: ReadOptions, keep_others: bool, license_name: str, progress: Progress
) -> StageRef:
    """Import a file into the run's table. Raises as `mtv_core.label_import.run`."""
    from mtv_core import label_import

    config = run.config
    result = label_import.run(
        run.table,
        path,
        expert=expert,
        options=options,
        keep_others=keep_others,
        license_name=license_name,
        failures=config.label.failures,
        progress=progress,
        storage_options=config.table.storage_options,
    )
    ref = label_stage.ref(run, result.version, result.tag, {result.expert: result.revision}, result.report)
    return ref.model_copy(update={"outputs": {"notes": "\n".join(notes(result))}})


def notes(result: ImportResult) -> list[str]:
    """What a person has to know of an import, a line each."""
    said = [f"{result.expert} revision {result.revision}"]
    if result.kept:
        kept = ", ".join(f"{rows} rows {revision}" for revision, rows in result.kept.items())
        said.append(f"rows that the file says nothing of keep what they have: {kept}; the labels are mixed")
    elif result.without:
        said.append(f"{result.without} rows are not in the file: they have no {result.expert} labels now (--keep-others keeps them)")
    said += [f"refused: {rows} × {reason}" for reason, rows in result.refused.items()]
    said += [f"  {example}" for example in result.examples]
    return said
