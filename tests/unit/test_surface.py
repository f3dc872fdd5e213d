"""What users hold on to: commands and options, configuration keys, table columns, deployments. It cannot grow or shrink by accident.

Meant to change it? `python tests/unit/test_surface.py > tests/unit/surface.txt`, and say so in CHANGELOG.md.
"""

from __future__ import annotations

import difflib
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

from mtv_core.config import PipelineConfig, _models
from mtv_core.data.schema import LABELS, REJECTS, SAMPLES, SHARDS, label_schema
from mtv_core.runs import RunRecord

FROZEN = Path(__file__).parent / "surface.txt"
ROOT = Path(__file__).parents[2]


def commands(command: Any, name: str) -> Iterator[str]:
    for parameter in command.params:
        yield f"{name} {' '.join(sorted(parameter.opts + parameter.secondary_opts))}"
    for child, inner in sorted(getattr(command, "commands", {}).items()):
        yield f"{name} {child}"
        yield from commands(inner, f"{name} {child}")


def keys(model: type[BaseModel], prefix: str) -> Iterator[str]:
    for name, field in model.model_fields.items():
        yield f"{prefix}{name}"
        if typing.get_origin(field.annotation) is not list:
            for inner in dict.fromkeys(_models(field.annotation)):
                yield from keys(inner, f"{prefix}{name}.")


def surface() -> list[str]:
    import typer

    from flows.cli import app

    lines = sorted(set(commands(typer.main.get_command(app), "mtv")))
    lines += [f"config {key}" for key in sorted(set(keys(PipelineConfig, "")))]
    lines += [f"samples {field.name} {field.type}" for field in SAMPLES]
    lines += [f"samples {field.name} {field.type}" for expert in LABELS for field in label_schema(expert)]
    lines += [f"rejects {field.name} {field.type}" for field in REJECTS]
    lines += [f"shards {field.name} {field.type}" for field in SHARDS]
    lines += [f"run.json {key}" for key in keys(RunRecord, "")]
    deployments = yaml.safe_load((ROOT / "deployments" / "prefect.yaml").read_text())["deployments"]
    return lines + [f"deployment {deployment['name']} {deployment['entrypoint']}" for deployment in deployments]


def test_nothing_changed_by_accident() -> None:
    frozen = FROZEN.read_text().splitlines()
    changed = [line for line in difflib.unified_diff(frozen, surface(), "frozen", "now", lineterm="", n=0) if not line.startswith("@@")]
    assert not changed, "\n".join(changed)


if __name__ == "__main__":
    print("\n".join(surface()))
