"""The whole pipeline's configuration, and how it is put together: class defaults < preset < parameters < overrides.

Each stage's own configuration lives beside its user; this module only collects them. It imports nothing heavy.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, Field, ValidationError

from mtv_core.compute import ComputeConfig
from mtv_core.data.sources.config import Sources
from mtv_core.data.uris import CREDENTIAL
from mtv_core.evaluation.config import EvaluateConfig
from mtv_core.export.config import ExportConfig
from mtv_core.ingest_config import IngestConfig
from mtv_core.labelling_config import LabelConfig
from mtv_core.settings import is_local, resolve
from mtv_core.store.config import TableConfig
from mtv_core.training.config import TrainConfig

PRESETS = Path(__file__).parent.parent / "deployments" / "configs"
STAGES = ("sources", "table", "ingest", "label", "train", "evaluate", "export", "compute")


class PipelineConfig(BaseModel, frozen=True, extra="forbid", hide_input_in_errors=True):
    """What `mtv/full-pipeline` does, resolved."""

    sources: Sources = Field(min_length=1, description="where the image-text data is: paths, globs, s3://, blocks://; one or a list")
    table: TableConfig = TableConfig()
    ingest: IngestConfig = IngestConfig()
    label: LabelConfig = LabelConfig()
    train: TrainConfig = TrainConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    export: ExportConfig = ExportConfig()
    compute: ComputeConfig = ComputeConfig()


class Resolved(BaseModel, frozen=True):
    """A configuration and where each of its values came from."""

    config: PipelineConfig
    origin: dict[str, str] = Field(description="dotted key → 'default', 'preset NAME', 'parameter' or 'override'")


class ConfigError(ValueError):
    """The user's configuration is wrong; `problems` has one line for each mistake."""

    def __init__(self, problems: list[str]) -> None:
        self.problems = problems
        super().__init__("; ".join(problems))


def presets() -> list[str]:
    """Names of the presets that ship with MTV."""
    return sorted(path.stem for path in PRESETS.glob("*.yaml"))


def load_preset(name: str) -> dict[str, Any]:
    """The values of a preset that ships with MTV, or of a YAML file.

    Raises:
        ConfigError: there is no such preset or file, or it is no YAML mapping.
    """
    path = Path(name) if name.endswith((".yaml", ".yml")) else PRESETS / f"{name}.yaml"
    if not path.is_file():
        near = difflib.get_close_matches(name, presets(), 1)
        hint = f"; did you mean {near[0]!r}?" if near else "."
        raise ConfigError([f"there is no preset {name!r}{hint} Presets: {', '.join(presets())}; or give a path that ends in .yaml"])
    try:
        values = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError([f"{path} is not valid YAML: {' '.join(str(error).split())}"]) from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError([f"{path} must hold a mapping of stages ({', '.join(STAGES)}), not a {type(values).__name__}"])
    return values


def set_fields(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters as plain values, without what the user did not set: None at the top, and unset fields of models."""
    return {name: _plain(value) for name, value in parameters.items() if value is not None}


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json", exclude_unset=True)
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


def parse_override(text: str) -> tuple[str, Any]:
    """'train.steps=100' → ('train.steps', 100); the value is YAML.

    Raises:
        ConfigError: there is no '='.
    """
    key, equals, value = text.partition("=")
    if not equals or not re.fullmatch(r"\w+(\.\w+)*", key):
        raise ConfigError([f"{text!r} is not KEY=VALUE, for example train.steps=100"])
    try:
        return key, yaml.safe_load(value)
    except yaml.YAMLError:
        return key, value


def resolve_config(
    preset: str = "demo", parameters: Mapping[str, Any] | None = None, overrides: Mapping[str, Any] | None = None
) -> Resolved:
    """Merge, validate, and say where each value came from.

    Mappings are merged key by key, everything else (lists too) is replaced as a whole.

    Args:
        preset: name of a preset, or path of a YAML file.
        parameters: values by stage; models count with their set fields only.
        overrides: dotted key → value, the strongest.

    Raises:
        ConfigError: with one line a mistake: unknown keys (and the closest known one), wrong types.
    """
    return resolve_values([(f"preset {preset}", load_preset(preset)), ("parameter", set_fields(parameters or {}))], overrides)


def resolve_values(layers: Sequence[tuple[str, Mapping[str, Any]]], overrides: Mapping[str, Any] | None = None) -> Resolved:
    """`resolve_config` for layers that are already plain values: (name of the origin, values), weakest first."""
    values: dict[str, Any] = {}
    origin: dict[str, str] = {}
    for name, layer in layers:
        _merge(values, layer, name, origin)
    for key, value in (overrides or {}).items():
        nested: Any = value
        for part in reversed(key.split(".")):
            nested = {part: nested}
        _merge(values, nested, "override", origin)
    try:
        config = PipelineConfig.model_validate(values)
    except ValidationError as error:
        raise ConfigError(explain(error)) from None
    leaves = flatten(config.model_dump(mode="json"))
    return Resolved(config=config, origin={key: _origin(key, origin) for key in leaves})


def _merge(into: dict[str, Any], values: Mapping[str, Any], name: str, origin: dict[str, str], prefix: str = "") -> None:
    for key, value in values.items():
        path = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            if not isinstance(into.get(key), dict):
                into[key] = {}
            _merge(into[key], value, name, origin, f"{path}.")
        else:
            into[key] = value
            for stale in [known for known in origin if known.startswith(f"{path}.")]:
                del origin[stale]
            origin[path] = name


def _origin(key: str, origin: Mapping[str, str]) -> str:
    parts = key.split(".")
    return next((origin[path] for end in range(len(parts), 0, -1) if (path := ".".join(parts[:end])) in origin), "default")


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{'train': {'steps': 1}} → {'train.steps': 1}; lists and empty mappings are leaves."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def explain(error: ValidationError, root: type[BaseModel] = PipelineConfig) -> list[str]:
    """One line for each mistake, in the words of the configuration file."""
    return list(dict.fromkeys(_line(problem, root) for problem in error.errors()))


def _line(problem: Any, root: type[BaseModel]) -> str:
    location = [str(part) for part in problem["loc"]]
    key = ".".join(location)
    if problem["type"] == "extra_forbidden":
        known = _keys_at(root, location[:-1])
        near = difflib.get_close_matches(location[-1], known, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"known keys here: {', '.join(known)}"
        return f"unknown key {key!r}; {hint}"
    if problem["type"] == "missing":
        return f"{key} is missing"
    given = problem.get("input")
    shown = f" (got {given!r})" if isinstance(given, (str, int, float, bool, type(None))) and problem["type"] != CREDENTIAL else ""
    return f"{key}: {problem['msg'].removeprefix('Value error, ')}{shown}"


def _keys_at(root: type[BaseModel], path: list[str]) -> list[str]:
    models = [root]
    for part in path:
        if part.isdigit():
            continue
        field = next((model.model_fields[part] for model in models if part in model.model_fields), None)
        if field is not None:
            models = list(_models(field.annotation)) or models
        else:  # which of several models it is, by its name
            models = [model for model in models if "name" in model.model_fields and model.model_fields["name"].default == part] or models
    return list(models[0].model_fields)


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and not isinstance(annotation, types.GenericAlias) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in typing.get_args(annotation):
        yield from _models(argument)


def table_uri(config: PipelineConfig) -> str:
    """Where the table is: what `table.uri` says.

    'auto' is one table for each list of sources, so that two data sets never mix unasked.
    """
    if config.table.uri != "auto":
        return resolve(config.table.uri)
    uris = sorted(str(Path(source.uri).expanduser().absolute()) if is_local(source.uri) else source.uri for source in config.sources)
    digest = hashlib.sha256(json.dumps(uris).encode()).hexdigest()[:12]
    return resolve(f"tables/{digest}")


def digest(document: Any) -> str:
    """32 hex digits of the canonical JSON of a document: the key under which a stage's result is kept."""
    canonical = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(canonical.encode()).hexdigest()[:32]
