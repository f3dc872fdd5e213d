"""Experts that a model registry names: `models:/NAME@ALIAS` becomes the folder of what the alias stands for now.

The core knows folders and hub ids only. What is downloaded lies in `MTV_HOME/experts/registry/<name>/<version>-<12 hex>`, once a version;
the revision of its labels is made of its contents, like that of any folder.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path

from mtv_core.experts.config import ExpertConfig
from mtv_core.labelling_config import LabelConfig
from mtv_core.settings import home
from tasks import tracking

REGISTRY = "models:/"


def resolved(config: LabelConfig) -> LabelConfig:
    """The configuration with every registered model replaced by the folder of its files; asks the registry anew at each call.

    Raises:
        ValueError: a name is not of the form `models:/NAME@ALIAS`, or what it names is no model of transformers.
        FileNotFoundError: the registry has no such model or alias, or its files are gone.
        ConnectionError: the registry does not answer.
    """
    changes = {name: fetched(expert) for name, expert in config.experts().items() if expert.model.startswith(REGISTRY)}
    return config.model_copy(update=changes) if changes else config


def fetched(expert: ExpertConfig) -> ExpertConfig:
    """One expert, as `resolved`."""
    if not expert.model.startswith(REGISTRY):
        return expert
    version = tracking.model_version(expert.model)
    key = json.dumps([tracking.tracking_uri(), version.name, version.version, version.created, version.files])
    place = home() / "experts" / "registry" / version.name / f"{version.version}-{hashlib.sha256(key.encode()).hexdigest()[:12]}"
    if not place.is_dir():
        _fetch(version, place, expert.model)
    return expert.model_copy(update={"model": str(place), "revision": "main"})


def _fetch(version: tracking.ModelVersion, place: Path, asked: str) -> None:
    """Download, and make the folder visible whole or not at all."""
    partial = place.with_name(f".{place.name}.{os.getpid()}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        model = _model_in(tracking.download(version, partial), asked)
        try:
            model.rename(place)
        except OSError:
            if not place.is_dir():  # else another run fetched the same a moment earlier
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _model_in(folder: Path, asked: str) -> Path:
    """The folder that transformers loads: the artifact itself, or the one below it that has a configuration and weights."""
    found = [path for path in (folder, *sorted(folder.rglob("*/"))) if (path / "config.json").is_file() and any(path.glob("*.safetensors"))]
    if len(found) != 1:
        what = "no folder" if not found else f"{len(found)} folders ({', '.join(path.name for path in found)})"
        raise ValueError(
            f"{asked} has {what} with config.json and *.safetensors, so it is not clear what to load; register the one folder that "
            "`model.save_pretrained` and `processor.save_pretrained` wrote"
        )
    return found[0]
