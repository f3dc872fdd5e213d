"""Which revision of an expert a table's labels are to have, and with which weights they are made.

Only the first labelling, `accept: immediate` and a passed gate change what is accepted; otherwise the accepted one completes what is
missing, also where the configured one cannot be looked up. As long as no row has a label, the next labelling is the first.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from mtv_core.experts import phrase_column, source
from mtv_core.experts.config import DepthExpertConfig, DetectionExpertConfig, ExpertConfig
from mtv_core.faults import fault_point
from mtv_core.labelling_config import LabelConfig
from mtv_core.settings import home, is_local
from mtv_core.store.accepted import Accepted
from mtv_core.store.label_state import LabelState
from mtv_core.store.table import Table

_CONFIGS: dict[str, type[ExpertConfig]] = {"depth": DepthExpertConfig, "detection": DetectionExpertConfig}


@dataclass(frozen=True)
class Assignment:
    """An expert as a run uses it: which revision, loaded from where."""

    config: ExpertConfig
    revision: str
    tracked: str  # what the configuration resolves to; another one waits for being accepted
    imported: Accepted | None = None  # the accepted labels are somebody's own: no model makes more of them
    unresolved: str | None = None  # why the configured expert cannot be looked up; the accepted one is used

    @property
    def mixed(self) -> bool:
        """Whether rows are meant to keep labels of other revisions: an import over them."""
        return self.imported is not None and bool(self.imported.source["imported"]["keep_others"])


@dataclass(frozen=True)
class Tracked:
    """What a configuration resolves to."""

    revision: str
    unresolved: str | None = None  # why it cannot be looked up, where the accepted one is there instead; the revision is that one's


def in_force(table: Table, state: LabelState) -> dict[str, Accepted]:
    """Expert → what is accepted. Without a label of any revision it protects nothing, and is left out: the first labelling came to nothing.

    A row that was refused for good has a revision, so it counts. What was imported is in force whatever the rows say.
    """
    known = table.accepted(state.dataset)
    return {name: one for name, one in known.items() if is_imported(one) or state.any_labelled(name)}


def track(name: str, config: ExpertConfig, known: Accepted | None) -> Tracked:
    """Look an expert up. One that is not there leaves what is accepted.

    Args:
        name: of the expert.
        config: names the model.
        known: what is accepted and in force; None: the model is needed, whatever that is.

    Raises:
        FileNotFoundError, ValueError, OSError: the expert is not there, has no weights, cannot be read, or its licence has to be accepted.
    """
    try:
        return Tracked(source.label_revision(name, source.resolve(config), config.label_parameters()))
    except (OSError, ValueError) as error:
        if known is None:
            raise
        return Tracked(known.revision, str(error))


def look_up(config: LabelConfig, known: Mapping[str, Accepted]) -> dict[str, Tracked]:
    """Expert → what is configured; `known` is what is in force, which counts with `accept: gate` alone. Errors as of `track`."""
    return {name: track(name, one, known.get(name) if config.accept == "gate" else None) for name, one in config.experts().items()}


def check_columns(config: ExpertConfig, schema: pa.Schema) -> None:
    """See that a table of this schema has what an expert is configured to read.

    Raises:
        ValueError: it lacks the column that names the phrases.
    """
    if isinstance(config, DetectionExpertConfig) and config.phrases_column is not None:
        phrase_column.read(pa.RecordBatch.from_pylist([], schema), config.phrases_column)


def assign(table: Table, name: str, config: ExpertConfig, tracked: Tracked, known: Accepted | None, mode: str) -> Assignment:
    """Decide what an expert's labels are to be, and record it in the table.

    Args:
        table: where.
        name: of the expert.
        config: names the model that is tracked.
        tracked: what it resolves to.
        known: what is accepted and in force.
        mode: `label.accept`.

    Raises:
        FileNotFoundError, ValueError: the expert is not there any more, or its licence has to be accepted.
        OSError: the table cannot be written, or there is no place for a copy of the weights.
    """
    if known is None or mode == "immediate":
        return accept(table, name, config, known)
    if is_imported(known):
        return Assignment(config, known.revision, tracked.revision, imported=known)
    if tracked.revision == known.revision and tracked.unresolved is None:
        return accept(table, name, config, known)
    return Assignment(accepted_config(table, name, known, config), known.revision, tracked.revision, unresolved=tracked.unresolved)


def accept(table: Table, name: str, config: ExpertConfig, known: Accepted | None = None, expected: str | None = None) -> Assignment:
    """Make what the configuration resolves to the accepted revision; a copy of local weights is kept first. Labels nothing.

    A kill before the record leaves a copy that the next call finds.

    Args:
        table: where.
        name: of the expert.
        config: names the model.
        known: what the table accepted so far.
        expected: the revision that is meant, where somebody decided on it before.

    Raises:
        FileNotFoundError, ValueError: the expert is not there, has no weights, its licence has to be accepted, or it is not the expected
            one any more.
        OSError: no place for the copy.
    """
    weights = source.resolve(config)
    revision = source.label_revision(name, weights, config.label_parameters())
    if expected is not None and revision != expected:
        raise ValueError(
            f"the {name} expert {config.model} is of revision {revision} by now, and {expected} was decided on; run `mtv refresh` again, "
            "which tries the new one"
        )
    kept = source.keep(weights, kept_experts(table))
    if known is None or known.revision != revision:
        facts = {
            "model": config.model,
            "license": weights.license,
            "identity": weights.identity,
            "config": config.model_dump(mode="json"),
        }
        table.accept(name, revision, facts)
        fault_point("label.accepted")
    pinned = config.model_copy(update={"model": kept, "revision": weights.commit or config.revision})
    return Assignment(pinned, revision, revision)


def kept_experts(table: Table) -> Path:
    """Where local folders of accepted experts are kept: in a local table, for others in `MTV_HOME`."""
    return Path(table.uri) / "_experts" if is_local(table.uri) else home() / "experts"


def is_imported(accepted: Accepted) -> bool:
    """Whether these are labels of `mtv label import`."""
    return "imported" in accepted.source


def accepted_config(table: Table, name: str, accepted: Accepted, current: ExpertConfig) -> ExpertConfig:
    """The configuration that was accepted, pointing to the weights that were kept; where it runs is today's business.

    Raises:
        ValueError: the accepted labels were imported, so there are no weights.
    """
    if is_imported(accepted):
        raise ValueError(f"the accepted {name} labels were imported ({accepted.source['model']}): no model can make more of them")
    facts: Mapping[str, Any] = accepted.source
    identity = facts["identity"]
    config = _CONFIGS[name].model_validate(facts["config"]).model_copy(update={"device": current.device})
    if "commit" in identity:
        return config.model_copy(update={"model": identity["hub"], "revision": identity["commit"]})
    return config.model_copy(update={"model": str(kept_experts(table) / identity["folder_sha256"])})
