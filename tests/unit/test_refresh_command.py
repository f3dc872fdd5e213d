"""`mtv refresh`: plan, canary, gate, relabel; what a person decides, and what is left alone."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from canary_experts import cleared, seeing_experts
from label_tables import columns, config, make_table, sample_rows
from typer.testing import CliRunner, Result

from flows.cli import app
from mtv_core import experts, labelling, runs
from mtv_core.executor import SerialExecutor
from mtv_core.store.table import Table
from tasks import cluster, label, refresh

fresh = pytest.fixture(autouse=True)(cleared)


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 rows that experts which see have labelled."""
    table = make_table(tmp_path_factory.mktemp("refresh") / "table")
    with pytest.MonkeyPatch.context() as patch:
        seeing_experts(patch)
        labelling.run(table.uri, config(), SerialExecutor())
    return Path(table.uri)


@pytest.fixture
def table(labelled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Table:
    """With experts that see, and no cluster."""

    @contextlib.contextmanager
    def here(compute: Any) -> Iterator[SerialExecutor]:
        yield SerialExecutor()

    monkeypatch.setenv("MTV_HOME", str(tmp_path / "home"))
    for module in (refresh, label):
        monkeypatch.setattr(module, "on_demand", here)
    seeing_experts(monkeypatch)
    return Table.open(str(shutil.copytree(labelled, tmp_path / "table")))


def call(table: Table, *options: str, depth: str = "blocks:depth-r2", detection: str = "blocks:detection-r1", **fields: Any) -> Result:
    preset = Path(table.uri).parent / "preset.yaml"
    preset.write_text(yaml.safe_dump({"sources": ["blocks://few"], "label": config(depth, detection, **fields).model_dump(mode="json")}))
    result = CliRunner().invoke(app, ["refresh", "--preset", str(preset), "--table", table.uri, *options])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def depth_revisions(table: Table) -> set[object]:
    return set(columns(table)["depth_rev"])


def test_a_sound_update_is_accepted_and_only_its_columns_are_rewritten(table: Table) -> None:
    before, old = columns(table), table.accepted()["depth"].revision
    result = call(table)
    assert result.exit_code == 0, result.output
    after, new = columns(table), table.accepted()["depth"].revision
    assert new != old
    assert [name for name in before if before[name] != after[name]] == ["depth", "depth_rev"]
    assert depth_revisions(table) == {new}
    assert f"depth {new}: accepted, 6 checks passed" in " ".join(result.output.split())
    [record] = runs.load_all()[0]
    assert (record.flow, record.status.value, record.experts["depth"]) == ("refresh", "completed", new)
    assert table.tag_revisions(str(record.table.tag))["depth"] == new
    assert (Path(table.uri) / "_reports" / "labels" / str(table.version) / "index.html").is_file()
    again = call(table)
    assert (again.exit_code, table.version, table.tags()) == (0, table.version, table.tags())


def test_a_broken_one_is_refused_and_changes_nothing(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    seeing_experts(monkeypatch, "constant")
    version, tags, before = table.version, table.tags(), columns(table)
    result = call(table)
    assert result.exit_code == 1
    assert (table.version, table.tags(), columns(table)) == (version, tags, before)
    [refused] = table.rejected()["depth"]
    assert "depth.max_constant: 1, the limit is 0.05" in refused.reason
    # Not again: no expert is loaded, and it says why.
    monkeypatch.setattr(experts, "load", None)
    again = call(table)
    assert again.exit_code == 0
    assert f"revision {refused.revision} was refused on {refused.at[:10]}" in again.output
    assert "--force tries it again" in again.output


def test_refused_ones_are_forced_and_a_person_has_the_last_word(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    seeing_experts(monkeypatch, "constant")
    assert call(table).exit_code == 1
    assert call(table, "--force").exit_code == 1
    assert call(table, "--approve").exit_code == 1
    assert len(depth_revisions(table)) == 1
    assert table.accepted()["depth"].revision not in {one.revision for one in table.rejected()["depth"]}
    result = call(table, "--force", "--approve")
    assert result.exit_code == 0
    assert "accepted, by a person, although checks failed: depth." in " ".join(result.output.split())
    assert depth_revisions(table) == {table.accepted()["depth"].revision}
    assert table.rejected() == {}


def test_where_a_person_decides_it_waits_for_him(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    version, before = table.version, columns(table)
    gate = {"approval": True}
    waiting = call(table, gate=gate)
    assert waiting.exit_code == 3
    assert "`mtv refresh --approve`" in waiting.output
    assert (table.version, columns(table), table.rejected()) == (version, before, {})
    table.append(sample_rows(2, first=24))
    loads: list[str] = []
    seeing = experts.load

    def load(name: str, expert: Any) -> Any:
        loads.append(name)
        return seeing(name, expert)

    monkeypatch.setattr(experts, "load", load)
    assert call(table, "--reject", "--reason", "blurred edges", gate=gate).exit_code == 0
    assert loads == ["depth", "detection"]  # to label what was appended, by the accepted ones; what he had seen was not tried again
    [refused] = table.rejected()["depth"]
    assert refused.reason == "by a person: blurred edges"
    assert call(table, "--force", "--approve", gate=gate).exit_code == 0
    assert depth_revisions(table) == {refused.revision}
    nothing = call(table, "--approve", gate=gate)
    assert nothing.exit_code == 1
    assert "nothing waits for a decision" in nothing.output


def test_a_person_decides_only_on_what_he_can_have_seen(table: Table) -> None:
    version, tags = table.version, table.tags()
    first = call(table, "--approve")
    assert first.exit_code == 3
    assert "waiting, it was tried only now, so nobody has looked at it" in " ".join(first.output.split())
    assert (table.version, table.tags(), table.rejected()) == (version, tags, {})
    assert call(table, "--approve").exit_code == 0
    assert depth_revisions(table) == {table.accepted()["depth"].revision}
    assert table.accepted()["depth"].source["model"] == "blocks:depth-r2"


def test_where_nothing_can_be_compared_the_expert_is_not_refused(table: Table) -> None:
    version = table.version
    gate = {"min_compared": 1000}
    result = call(table, gate=gate)
    assert result.exit_code == 3
    assert "min_compared: 24, the limit is 1000; what is measured does not tell" in " ".join(result.output.split())
    assert (table.version, table.rejected()) == (version, {})
    assert call(table, "--approve", gate=gate).exit_code == 0
    assert depth_revisions(table) == {table.accepted()["depth"].revision}


def test_a_hint_after_force_works_as_it_stands(table: Table) -> None:
    assert call(table, gate={"approval": True}).exit_code == 3
    assert call(table, "--reject", gate={"approval": True}).exit_code == 0
    waiting = call(table, "--force", gate={"approval": True})
    assert waiting.exit_code == 3
    assert "`mtv refresh --force --approve`" in " ".join(waiting.output.split())
    assert call(table, "--force", "--approve", gate={"approval": True}).exit_code == 0


def test_trying_alone_decides_nothing(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    version = table.version
    assert call(table, "--canary-only").exit_code == 0
    monkeypatch.setattr(experts, "load", None)  # what was tried is not tried again
    assert call(table, "--canary-only").exit_code == 0
    assert (table.version, table.rejected(), table.accepted()["depth"].revision) == (version, {}, next(iter(depth_revisions(table))))


def test_json_has_everything(table: Table) -> None:
    result = call(table, "--json", detection="blocks:detection-r2")
    found = json.loads(result.stdout)
    assert found["table"] == table.uri
    assert [one["expert"] for one in found["canaries"]] == ["depth", "detection"]
    assert all(check["passed"] for one in found["canaries"] for check in one["checks"])
    assert [one["verdict"] for one in found["decisions"]] == ["accepted", "accepted"]
    assert found["experts"]["depth"]["proposal"]["num_stale"] == 24
    assert found["label"]["revisions"] == {name: one.revision for name, one in table.accepted().items()}
    assert found["label"]["report"]["rows_out"] == 48


def test_one_expert_alone(table: Table) -> None:
    before = table.accepted()["depth"].revision
    assert call(table, "--expert", "detection", detection="blocks:detection-r2").exit_code == 0
    assert table.accepted()["depth"].revision == before
    assert set(columns(table)["detection_rev"]) == {table.accepted()["detection"].revision}
    assert len(table.stale("detection", table.accepted()["detection"].revision).fragments) == 0


def test_immediate_needs_no_canary(table: Table) -> None:
    assert call(table, accept="immediate").exit_code == 0
    assert not (Path(table.uri) / "_reports" / "canary").exists()
    assert depth_revisions(table) == {table.accepted()["depth"].revision}
    assert table.accepted()["depth"].source["model"] == "blocks:depth-r2"


def test_the_first_labelling_is_done_by_it_too(tmp_path: Path, table: Table) -> None:
    new = make_table(tmp_path / "new", count=6)
    assert call(new).exit_code == 0
    assert new.stale("depth", new.accepted()["depth"].revision).num_stale == 0


def test_nothing_to_do_starts_no_cluster_and_loads_no_weights(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (refresh, label):
        monkeypatch.setattr(module, "on_demand", cluster.on_demand)
    monkeypatch.setattr(cluster, "connect", None)
    monkeypatch.setattr(experts, "load", None)
    version = table.version
    result = call(table, depth="blocks:depth-r1")
    assert result.exit_code == 0, result.output
    assert table.version == version


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--approve", "--reject"], "either --approve or --reject"),
        (["--canary-only", "--approve"], "decides nothing"),
        (["--reason", "because"], "goes with --reject"),
    ],
)
def test_contradictions(options: list[str], said: str, table: Table) -> None:
    result = call(table, *options)
    assert result.exit_code == 2
    assert said in result.output


def test_after_a_refusal_nothing_is_said_to_be_proposed(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    seeing_experts(monkeypatch, "constant")
    table.append(sample_rows(2, first=24))
    refused = call(table)
    assert refused.exit_code == 1
    assert "refused" in refused.output
    assert "tries it on some rows first" not in " ".join(refused.output.split())
    [record] = runs.load_all()[0]
    report = record.stages["label"].ref.report  # type: ignore[union-attr]
    assert report.rows_out == 4
    assert "depth_revision_proposed" not in report.counts
