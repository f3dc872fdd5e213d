"""What a look of the watcher finds: the table beside the experts as they are."""

from __future__ import annotations

import shutil
from pathlib import Path

import label_tables
import pytest

from mtv_core import labelling, labelling_accept, labelling_plan
from mtv_core.executor import SerialExecutor
from mtv_core.experts.config import DepthExpertConfig
from mtv_core.experts.source import WEIGHTS
from mtv_core.labelling_config import LabelConfig
from mtv_core.store import locks
from mtv_core.store.table import Table
from tasks import watch

quick = pytest.fixture(autouse=True)(label_tables.quick_experts)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The watched folder."""
    shutil.copytree(WEIGHTS / "depth-r1", tmp_path / "depth")
    return tmp_path / "depth"


@pytest.fixture
def config(folder: Path) -> LabelConfig:
    return label_tables.config(depth=str(folder))


@pytest.fixture
def table(tmp_path: Path, config: LabelConfig) -> Table:
    table = label_tables.make_table(tmp_path / "t", 12, 6)
    labelling.run(table.uri, config, SerialExecutor())
    return table


def publish(folder: Path, revision: str) -> None:
    shutil.rmtree(folder)
    shutil.copytree(WEIGHTS / f"depth-{revision}", folder)


def test_without_labels_there_is_nothing_to_compare(tmp_path: Path, config: LabelConfig) -> None:
    table = label_tables.make_table(tmp_path / "bare", 2, 2)
    found = watch.look(table.uri, config)
    assert found.updates == []
    assert "no labels of it yet" in found.said["depth"]
    with pytest.raises(FileNotFoundError):
        watch.look(str(tmp_path / "nowhere"), config)


def test_a_folder_that_changed_is_an_update_until_it_is_refused(table: Table, config: LabelConfig, folder: Path) -> None:
    assert watch.look(table.uri, config).updates == []
    before = table.accepted()["depth"].revision
    publish(folder, "r2")
    revision = labelling_plan.revisions(config)["depth"]
    update = watch.ExpertUpdate(expert="depth", revision=revision, accepted=before)
    for _ in range(2):  # nothing is remembered between looks
        assert watch.look(table.uri, config).updates == [update]
    table.reject("depth", revision, "blurred")
    found = watch.look(table.uri, config)
    assert found.updates == []
    assert "blurred" in found.said["depth"]
    publish(folder, "r1")
    assert "as accepted" in watch.look(table.uri, config).said["depth"]


def test_what_cannot_change_by_itself_is_announced_only_if_asked_for(table: Table, folder: Path) -> None:
    other = label_tables.config(depth="blocks:depth-r2")
    found = watch.look(table.uri, other)
    assert found.updates == []
    assert "mtv refresh" in found.said["depth"]
    assert [update.expert for update in watch.look(table.uri, other, pinned=True).updates] == ["depth"]


@pytest.mark.parametrize(
    ("model", "revision", "pinned"),
    [
        ("blocks:depth-r1", "main", True),
        ("/models/depth", "main", False),
        ("owner/name", "main", False),
        ("owner/name", "c" * 40, True),
        ("models:/depth@production", "main", False),
        ("models:/depth/3", "main", True),
    ],
)
def test_what_is_pinned(model: str, revision: str, pinned: bool) -> None:
    assert watch.is_pinned(DepthExpertConfig(model=model, revision=revision)) is pinned


def test_a_refresh_that_ended_half_way_is_announced_unless_somebody_is_at_it(table: Table, config: LabelConfig, folder: Path) -> None:
    publish(folder, "r2")
    assert config.depth is not None
    labelling_accept.accept(table, "depth", config.depth, table.accepted()["depth"])
    with locks.writing(table, "labelling"):
        found = watch.look(table.uri, config)
        assert found.updates == []
        assert "labelling" in found.said["depth"]
    (update,) = watch.look(table.uri, config).updates
    assert update.revision == update.accepted == table.accepted()["depth"].revision
    labelling.run(table.uri, config, SerialExecutor())
    assert watch.look(table.uri, config).updates == []


def test_rows_that_came_since_are_no_update(table: Table, config: LabelConfig) -> None:
    table.append(label_tables.sample_rows(3, first=50), 3)
    assert watch.look(table.uri, config).updates == []


def test_an_expert_that_cannot_be_looked_up_does_not_hide_the_others(table: Table, config: LabelConfig, folder: Path) -> None:
    publish(folder, "r2")
    broken = config.model_copy(update={"detection": config.experts()["detection"].model_copy(update={"model": "/nowhere/at/all"})})
    found = watch.look(table.uri, broken)
    assert [update.expert for update in found.updates] == ["depth"]
    assert len(found.problems) == 1
    assert "/nowhere/at/all" in found.problems[0]


def test_which_runs_are_about_an_update(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MTV_HOME", str(tmp_path))
    update = watch.ExpertUpdate(expert="depth", revision="r2", accepted="r1")
    about = {"update": {"expert": "depth", "revision": "r2", "accepted": "r0"}, "table": {"uri": "tables/a"}}
    table = str(tmp_path / "tables" / "a")
    assert watch._is_of(about, table, update)
    for other in (
        {**about, "table": {"uri": "tables/b"}},
        {**about, "update": {"expert": "detection", "revision": "r2"}},
        {**about, "update": {"expert": "depth", "revision": "r3"}},
        {"preset": "demo"},
        {**about, "update": None},
    ):
        assert not watch._is_of(other, table, update)
