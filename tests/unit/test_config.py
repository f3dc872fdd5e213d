"""How a configuration is put together, and what a user is told who got it wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtv_core.config import (
    ConfigError,
    PipelineConfig,
    flatten,
    load_preset,
    parse_override,
    presets,
    resolve_config,
    table_uri,
)
from mtv_core.labelling_config import LabelConfig


def dump(**arguments: object) -> dict[str, object]:
    return flatten(resolve_config(**arguments).config.model_dump(mode="json"))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", presets())
def test_presets_are_valid_and_say_only_what_exists(name: str) -> None:
    resolved = resolve_config(name, {"sources": "x/*.tar"})
    said = {key for key, origin in resolved.origin.items() if origin == f"preset {name}"}
    assert said | {"sources"} >= set(flatten(load_preset(name))) & set(resolved.origin)


def test_changing_sources_changes_nothing_else(tmp_path: Path) -> None:
    before, after = dump(preset="demo"), dump(preset="demo", parameters={"sources": str(tmp_path / "*.tar")})
    assert {key for key in before | after if before.get(key) != after.get(key)} == {"sources"}


def test_strength_of_the_layers() -> None:
    preset = load_preset("demo")
    assert "steps" in preset["train"]
    assert dump()["train.steps"] == preset["train"]["steps"]
    assert dump(parameters={"train": {"steps": 7}})["train.steps"] == 7
    both = resolve_config(parameters={"train": {"steps": 7}}, overrides={"train.steps": 9})
    assert both.config.train.steps == 9
    assert both.origin["train.steps"] == "override"
    assert both.origin["train.seed"] in ("default", "preset demo")


def test_an_unset_field_never_overrides() -> None:
    """A model a user gave two fields of counts with these two: its class defaults do not hide the preset."""
    plain, given = dump(), dump(parameters={"label": LabelConfig.model_validate({"accept": "immediate"})})
    assert given["label.accept"] == "immediate"
    assert {key for key in plain if plain[key] != given[key]} <= {"label.accept"}


def test_nested_values_merge_and_lists_are_replaced() -> None:
    given = dump(parameters={"label": {"depth": {"model": "elsewhere"}}, "sources": ["a.tar", "b.tar"]})
    assert given["label.depth.model"] == "elsewhere"
    assert given["label.detection.model"] == dump()["label.detection.model"]
    assert [source["uri"] for source in given["sources"]] == ["a.tar", "b.tar"]  # type: ignore[index, union-attr]


def test_null_turns_a_stage_part_off() -> None:
    assert resolve_config(overrides={"train.objectives.depth": None}).config.train.objectives.depth is None


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ({"train.stepps": 1}, ["unknown key 'train.stepps'", "did you mean 'steps'"]),
        ({"label.depth.modle": "x"}, ["unknown key 'label.depth.modle'", "did you mean 'model'"]),
        ({"trian.steps": 1}, ["unknown key 'trian'", "did you mean 'train'"]),
        ({"train.steps": "many"}, ["train.steps", "integer", "'many'"]),
        ({"train.steps": -1}, ["train.steps", "greater"]),
        ({"sources": []}, ["sources"]),
        ({"table.storage_options": {"aws_secret_access_key": "x"}}, ["aws_secret_access_key is a credential", "environment"]),
        ({"label.accept": "yes"}, ["label.accept", "'gate'", "'immediate'"]),
    ],
)
def test_a_mistake_is_named(overrides: dict[str, object], said: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        resolve_config(overrides=overrides)
    assert len(caught.value.problems) == 1
    for part in said:
        assert part in caught.value.problems[0]


def test_every_mistake_is_named_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        resolve_config(overrides={"train.stepps": 1, "ingest.max_sied": 2})
    assert len(caught.value.problems) == 2


def test_unknown_preset_and_broken_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean 'demo'"):
        resolve_config("dmeo")
    broken = tmp_path / "mine.yaml"
    broken.write_text("train: [")
    with pytest.raises(ConfigError, match="not valid YAML"):
        resolve_config(str(broken))
    broken.write_text("- a\n- b\n")
    with pytest.raises(ConfigError, match="must hold a mapping"):
        resolve_config(str(broken))


def test_what_show_prints_is_a_preset(tmp_path: Path) -> None:
    import yaml

    resolved = resolve_config("demo", overrides={"train.steps": 11})
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(resolved.config.model_dump(mode="json"), sort_keys=False))
    assert resolve_config(str(path)).config == resolved.config


def test_overrides_are_yaml() -> None:
    assert parse_override("train.steps=100") == ("train.steps", 100)
    assert parse_override("label.depth.model=a=b") == ("label.depth.model", "a=b")
    assert parse_override("train.objectives.depth=null") == ("train.objectives.depth", None)
    with pytest.raises(ConfigError, match="KEY=VALUE"):
        parse_override("train.steps")


def test_one_table_a_list_of_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MTV_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)

    def table(*sources: str, **more: object) -> str:
        return table_uri(PipelineConfig.model_validate({"sources": list(sources), **more}))

    assert table("a/*.tar") == table(str(tmp_path / "a/*.tar"))
    assert table("a.tar", "b.tar") == table("b.tar", "a.tar") != table("a.tar")
    assert table("a.tar").startswith(str(tmp_path / "home" / "tables"))
    assert table("a.tar", table={"uri": "tables/mine"}) == str(tmp_path / "home/tables/mine")
    assert table("a.tar", table={"uri": "s3://bucket/t"}) == "s3://bucket/t"


@given(
    st.recursive(
        st.integers(), lambda inner: st.dictionaries(st.text("abc", min_size=1, max_size=2), inner, min_size=1, max_size=3), max_leaves=8
    )
)
def test_flatten_keeps_every_leaf(tree: object) -> None:
    if not isinstance(tree, dict):
        return

    def leaves(value: object) -> list[object]:
        return [leaf for inner in value.values() for leaf in leaves(inner)] if isinstance(value, dict) else [value]

    assert sorted(map(str, flatten(tree).values())) == sorted(map(str, leaves(tree)))
