"""Signs that a training goes wrong, told while it runs. They stop nothing: what to do is up to whoever reads them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from mtv_core.objectives.config import ObjectivesConfig
from mtv_core.training.config import AlarmConfig

KEY = "alarms"  # of a row of `metrics.jsonl`
REMEMBERED = 20  # rows whose losses a spike is measured against
_FEW = 5  # rows before which a falling loss is no measure


def look(row: Mapping[str, Any], before: Sequence[Mapping[str, Any]], objectives: ObjectivesConfig, config: AlarmConfig) -> list[str]:
    """What is wrong with a row of `metrics.jsonl`, a sentence each. It depends on rows alone, so a resumed run says the same.

    Args:
        row: means of a window of steps.
        before: the rows before it, the latest last.
        objectives: how many prototypes there are.
        config: limits.
    """
    return [*_spikes(row, before, config), *_collapsed(row, config), *_says_nothing(row, objectives, config)]


def _spikes(row: Mapping[str, Any], before: Sequence[Mapping[str, Any]], config: AlarmConfig) -> list[str]:
    found = []
    for name in (name for name in row if name.startswith("loss/")):
        known = [abs(earlier[name]) for earlier in before if name in earlier]
        if len(known) >= _FEW and abs(row[name]) > config.spike * median(known):
            found.append(
                f"loss spike: {name.removeprefix('loss/')} is {row[name]:.3g}, {config.spike:g} times the {median(known):.3g} of the last "
                f"{len(known)} rows and more; if it does not come down, lower train.optim.lr or clip, or go back to a checkpoint"
            )
    return found


def _collapsed(row: Mapping[str, Any], config: AlarmConfig) -> list[str]:
    return [
        f"collapse: {who}'s features of different pictures are nearly the same (spread {row[name]:.2g}; 1 fills the sphere, alarm below "
        f"{config.spread:g}); a lower teacher_temperature, koleo or larger batches spread them"
        for who in ("teacher", "student")
        if (name := f"distillation/{who}_spread") in row and row[name] < config.spread
    ]


def _says_nothing(row: Mapping[str, Any], objectives: ObjectivesConfig, config: AlarmConfig) -> list[str]:
    found = []
    for objective in ("distillation", "masked"):
        settings, entropy = getattr(objectives, objective), row.get(f"{objective}/target_entropy")
        if settings is None or entropy is None:
            continue
        information = math.log(settings.head.prototypes) - entropy
        if information < config.information:
            found.append(
                f"collapse: {objective}'s teacher says {information:.2g} nats of a view (alarm below {config.information:g}): its targets "
                f"are the same for all, which any model meets; lower train.objectives.{objective}.teacher_temperature"
            )
    return found
