"""Experts named by a model registry, on a real MLflow database: what an alias stands for, fetched once, known by its contents."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import label_tables
import pytest

from mtv_core import experts as core
from mtv_core import labelling_plan
from mtv_core.config import resolve_config
from mtv_core.experts.config import DepthExpertConfig
from mtv_core.experts.source import WEIGHTS
from mtv_core.labelling_config import LabelConfig
from mtv_core.runs import RunRecord
from tasks import experts, tracking
from tasks import label as label_stage
from tasks.run import Run

ALIAS = "models:/depth-expert@production"


class Registry:
    """Models in the MLflow of a home of its own."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.client = tracking._client()
        self.run_id = self.client.create_run(tracking._experiment(self.client)).info.run_id
        self.count = 0

    def add(self, name: str, folder: Path, alias: str | None = None, below: str = "") -> str:
        """Register a folder; returns the version."""
        self.count += 1
        artifact = f"models/{self.count}"
        self.client.log_artifacts(self.run_id, str(folder), f"{artifact}/{below}".rstrip("/"))
        if not self.client.search_registered_models(f"name = '{name}'"):
            self.client.create_registered_model(name)
        source = f"{self.client.get_run(self.run_id).info.artifact_uri}/{artifact}"
        version = str(self.client.create_model_version(name, source, self.run_id, await_creation_for=0).version)
        if alias:
            self.client.set_registered_model_alias(name, alias, version)
        return version


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    with pytest.MonkeyPatch.context() as patch:
        home = tmp_path_factory.mktemp("home")
        patch.setenv("MTV_HOME", str(home))
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        yield Registry(home)


def depth(model: str) -> LabelConfig:
    return LabelConfig.model_validate({"depth": {"model": model}, "detection": None})


def revision(config: LabelConfig) -> str:
    return labelling_plan.revisions(experts.resolved(config))["depth"]


def test_the_alias_that_moves_is_a_new_revision_and_the_contents_decide(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    registry.add("depth-expert", WEIGHTS / "depth-r1", "production")
    first = revision(depth(ALIAS))
    assert first == core.revision("depth", DepthExpertConfig(model="blocks:depth-r1"))
    assert revision(depth("models:/depth-expert/1")) == first

    number = registry.add("depth-expert", WEIGHTS / "depth-r2")
    assert revision(depth(ALIAS)) == first  # registered, but the alias has not moved
    registry.client.set_registered_model_alias("depth-expert", "production", number)
    assert revision(depth(ALIAS)) == core.revision("depth", DepthExpertConfig(model="blocks:depth-r2"))

    def never(*_: object) -> None:
        raise AssertionError("fetched twice")

    monkeypatch.setattr(tracking, "download", never)
    assert revision(depth("models:/depth-expert/1")) == first
    assert not list((registry.home / "experts").rglob("*.partial"))


def test_what_was_registered_stays_where_it_is_for_others(registry: Registry) -> None:
    registry.add("kept", WEIGHTS / "depth-r1", "a")
    experts.resolved(depth("models:/kept@a"))
    version = tracking.model_version("models:/kept@a")
    assert (Path(version.files.removeprefix("file://")) / "config.json").is_file()


def test_the_same_weights_registered_anew_are_no_new_revision(registry: Registry, tmp_path: Path) -> None:
    registry.add("again", WEIGHTS / "depth-r1", "a")
    before = revision(depth("models:/again@a"))
    shutil.copytree(WEIGHTS / "depth-r1", tmp_path / "m")
    (tmp_path / "m" / "README.md").write_text("trained again, in vain")
    assert registry.add("again", tmp_path / "m", "a") == "2"
    assert revision(depth("models:/again@a")) == before


def test_a_model_below_the_artifact_is_found(registry: Registry) -> None:
    registry.add("nested", WEIGHTS / "depth-r1", "a", below="model")
    assert revision(depth("models:/nested@a")) == core.revision("depth", DepthExpertConfig(model="blocks:depth-r1"))


def test_plan_and_stage_understand_it_and_a_run_asks_once(registry: Registry, tmp_path: Path) -> None:
    registry.add("staged", WEIGHTS / "depth-r1", "a")
    table = label_tables.make_table(tmp_path / "t", 4, 4)
    overrides = {"label.depth.model": "models:/staged@a", "label.detection": None, "table.uri": table.uri}
    config = resolve_config("demo", {}, overrides).config
    label_stage.check(config)
    run = Run(RunRecord(run_id="r"), config, {})
    key = label_stage.key(run, label_stage.as_it_is(run))
    tracked = labelling_plan.plan(table.uri, experts.resolved(config.label))["depth"].tracked
    registry.add("staged", WEIGHTS / "depth-r2", "a")
    assert label_stage.key(run, label_stage.as_it_is(run)) == key
    assert labelling_plan.plan(table.uri, run.label_config)["depth"].tracked == tracked
    assert label_stage.key(Run(RunRecord(run_id="r2"), config, {}), label_stage.as_it_is(run)) != key


def test_other_experts_are_left_alone(registry: Registry) -> None:
    config = LabelConfig.model_validate({"depth": {"model": "blocks:depth-r1"}, "detection": None})
    assert experts.resolved(config) is config


@pytest.mark.parametrize(
    ("model", "error", "said"),
    [
        ("models:/depth-expert@nobody", FileNotFoundError, "models:/depth-expert@nobody"),
        ("models:/nothing@production", FileNotFoundError, "models:/nothing@production"),
        ("models:/depth-expert/99", FileNotFoundError, "models:/depth-expert/99"),
        ("models:/depth-expert", ValueError, "NAME@ALIAS"),
        ("models:/a/b@c", ValueError, "NAME@ALIAS"),
        ("models:/@c", ValueError, "NAME@ALIAS"),
    ],
)
def test_what_is_not_there_is_said(registry: Registry, model: str, error: type[Exception], said: str) -> None:
    registry.add("depth-expert", WEIGHTS / "depth-r1")
    with pytest.raises(error, match=said):
        experts.resolved(depth(model))


def test_an_artifact_that_is_no_model_leaves_nothing(registry: Registry, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no model")
    registry.add("no-model", tmp_path, "a")
    with pytest.raises(ValueError, match="save_pretrained"):
        experts.resolved(depth("models:/no-model@a"))
    assert not list((registry.home / "experts" / "registry" / "no-model").iterdir())


def test_files_that_are_gone_are_said(registry: Registry) -> None:
    registry.add("gone", WEIGHTS / "depth-r1", "a")
    shutil.rmtree(tracking.model_version("models:/gone@a").files.removeprefix("file://"))
    with pytest.raises((FileNotFoundError, ConnectionError), match="cannot be fetched"):
        experts.resolved(depth("models:/gone@a"))


def test_without_a_registry_it_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MTV_HOME", str(tmp_path))
    with pytest.raises(ConnectionError, match="no record"):
        experts.resolved(depth(ALIAS))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    with pytest.raises(ConnectionError, match="mtv up"):
        experts.resolved(depth(ALIAS))
