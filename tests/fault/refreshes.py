"""`mtv refresh` with experts that see the picture, in a process that may be killed or in this one."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import yaml
from beside import start
from canary_experts import seeing_experts
from refresh_child import here
from typer.testing import CliRunner

from flows.cli import app
from mtv_core import labelling_worker
from mtv_core.labelling_config import LabelConfig
from tasks import label as label_stage
from tasks import refresh


def options(folder: Path, label: LabelConfig) -> list[str]:
    preset = folder.parent / "preset.yaml"
    preset.write_text(yaml.safe_dump({"sources": ["blocks://few"], "label": label.model_dump(mode="json")}))
    return ["--preset", str(preset), "--table", str(folder)]


def child(folder: Path, label: LabelConfig, fault: str = "", broken: str = "") -> subprocess.Popen[str]:
    """A process that says `ready` when it begins, `done` at its end."""
    home = str(folder.parent / "home")
    return start("refresh_child.py", *options(folder, label), MTV_FAULT=fault, MTV_TEST_BROKEN=broken, MTV_HOME=home)


def undisturbed(folder: Path, label: LabelConfig, broken: str = "") -> int:
    """Exit code of a refresh here: nobody kills it, and it costs no process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MTV_HOME", str(folder.parent / "home"))
        for module in (refresh, label_stage):
            patch.setattr(module, "on_demand", here)
        seeing_experts(patch, broken or None)
        result = CliRunner().invoke(app, ["refresh", *options(folder, label)])
    labelling_worker.loaded.cache_clear()
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert "error:" not in result.output, result.output
    return result.exit_code
