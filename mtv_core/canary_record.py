"""What trying an expert's new revision found, and where that is kept; and which experts there is anything to try of."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection
from dataclasses import dataclass

from pydantic import BaseModel, Field, ValidationError

from mtv_core.canary_config import GateConfig
from mtv_core.canary_gate import GateCheck
from mtv_core.experts.config import ExpertConfig
from mtv_core.labelling_accept import in_force, is_imported, track
from mtv_core.labelling_config import LabelConfig
from mtv_core.labelling_plan import Work
from mtv_core.store.accepted import Accepted
from mtv_core.store.table import Table

FOLDER = "_reports/canary"
FORMAT = 1  # raise it when figures or checks change their meaning: canaries are made anew


class Canary(BaseModel, frozen=True, extra="forbid"):
    """What trying a revision on some rows found."""

    expert: str
    revision: str = Field(description="the tracked revision, which was tried")
    accepted: str = Field(description="the accepted revision, which it was compared with")
    license: str = Field(description="of the new weights")
    accepted_license: str = Field(description="of the accepted ones, or of imported labels")
    model: str = Field(description="the new model, as the configuration names it")
    accepted_model: str = Field(description="the accepted one, as its configuration named it; the file of imported labels")
    version: int = Field(description="version of the table whose rows were labelled")
    rows: int = Field(description="rows that were labelled aside")
    figures: dict[str, float] = Field(description="see `canary_gate.figures`")
    checks: list[GateCheck]
    passed: bool = Field(description="whether every check passed")
    work: Work = Field(description="what accepting takes: rows to label again, time, bytes, cost")
    page: str = Field(description="URI of the HTML page")
    pictures: list[str] = Field(description="URIs of pictures: image, old and new label beside each other; the most changed first")
    key: str = Field(description="digest of what the result depends on; the same key, the same canary")
    at: str = Field(description="when, UTC, ISO 8601")

    @property
    def failed(self) -> list[GateCheck]:
        """The checks that did not pass."""
        return [check for check in self.checks if not check.passed]

    @property
    def reason(self) -> str:
        """Why it did not pass, in a line; empty if it did."""
        return "; ".join(f"{one.name}: {_said(one.value)}, the limit is {one.limit:g}" for one in self.failed)


def _said(value: float | None) -> str:
    return "nothing" if value is None else f"{value:.3g}"


@dataclass(frozen=True)
class Proposal:
    """An expert whose tracked revision is not the accepted one."""

    name: str
    config: ExpertConfig
    revision: str
    accepted: Accepted

    @property
    def folder(self) -> str:
        """Where its canary is kept, relative to the table."""
        return f"{FOLDER}/{self.name}-{self.revision}"

    def key(self, version: int, gate: GateConfig) -> str:
        """Digest of what a canary depends on; who decides and how long that may take is no part of it."""
        facts = gate.model_dump(mode="json", exclude={"approval", "approval_timeout"})
        document = [FORMAT, self.name, self.revision, self.accepted.revision, version, facts]
        return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()[:16]


def proposals(table: Table, config: LabelConfig, force: bool, names: Collection[str] | None) -> list[Proposal]:
    """Who is tried. Arguments and errors as of `canary.try_out`; loads nothing."""
    configured = config.experts()
    unknown = sorted(set(names or ()) - set(configured))
    if unknown:
        raise ValueError(f"there is no expert {unknown[0]!r} configured; there are: {', '.join(configured) or 'none'}")
    if config.accept == "immediate":
        return []
    state = table.label_state()
    accepted, rejected = in_force(table, state), table.rejected(state.dataset)
    found = []
    for name, expert in configured.items():
        known = accepted.get(name)
        if known is None or (names is not None and name not in names) or (names is None and is_imported(known)):
            continue
        # One that cannot be looked up is no proposal, and keeps no other from being one; who names it is told why.
        revision = track(name, expert, known if names is None else None).revision
        refused = any(one.revision == revision for one in rejected.get(name, []))
        if revision != known.revision and (force or not refused):
            found.append(Proposal(name, expert, revision, known))
    return found


def find(table: Table, proposal: Proposal, key: str) -> Canary | None:
    """The canary of a key, if it was made already."""
    canary = read(table, proposal)
    return canary if canary is not None and canary.key == key else None


def read(table: Table, proposal: Proposal) -> Canary | None:
    """The canary that is there, if its page still is: a takedown removes pages with pictures."""
    try:
        canary = Canary.model_validate_json(table.files.read(f"{proposal.folder}/canary.json"))
    except (FileNotFoundError, ValidationError):  # none, or by another version of MTV
        return None
    if not table.files.exists(f"{proposal.folder}/canary.html"):
        return None
    # The table may have been moved or copied since.
    here = [table.files.path(f"{proposal.folder}/{uri.rpartition('/')[2]}") for uri in (canary.page, *canary.pictures)]
    return canary.model_copy(update={"page": here[0], "pictures": here[1:]})
