"""Whether every loss of a training fell, from its `metrics.jsonl`."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

FIRST, LAST = 0.05, 0.10  # shares of the steps that are averaged
PREFIX = "loss/"


@dataclass(frozen=True)
class LossCurve:
    """One loss over the steps."""

    steps: tuple[int, ...]
    values: tuple[float, ...]

    @property
    def first(self) -> float:
        """Mean over the first 5 % of the logged steps, one at least."""
        return _mean(self.values[: max(1, round(FIRST * len(self.values)))])

    @property
    def last(self) -> float:
        """Mean over the last 10 %."""
        return _mean(self.values[-max(1, round(LAST * len(self.values))) :])

    @property
    def fell(self) -> bool:
        """Whether the end lies below the beginning; a loss that is not a number did not fall."""
        return self.last < self.first


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def read(metrics_file: Path) -> dict[str, LossCurve]:
    """Curves of `loss` and every `loss/<objective>` in a `metrics.jsonl`; the last row of a step counts.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it has no losses, or a line of it is no JSON.
    """
    if not metrics_file.is_file():
        raise FileNotFoundError(f"there is no {metrics_file}; give the metrics.jsonl that the training wrote")
    rows: dict[int, Mapping[str, float]] = {}
    for number, line in enumerate(metrics_file.read_text().splitlines(), 1):
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            raise ValueError(f"{metrics_file}: line {number} is not JSON; train again, or leave the file out") from None
        rows[int(row["step"])] = row
    names = sorted({name for row in rows.values() for name in row if name == "loss" or name.startswith(PREFIX)})
    if not names:
        raise ValueError(f"{metrics_file} has no losses; is it the metrics.jsonl of a training?")
    curves = {}
    for name in names:
        points = [(step, float(row[name])) for step, row in sorted(rows.items()) if row.get(name) is not None]
        curves[name] = LossCurve(tuple(step for step, _ in points), tuple(value for _, value in points))
    return curves


def metrics(curves: Mapping[str, LossCurve]) -> dict[str, float]:
    """`training/<loss>_first`, `_last`, `_fell` (1 or 0) of each, and `training/all_losses_fell`."""
    found: dict[str, float] = {}
    for name, curve in curves.items():
        means = {f"training/{name}_first": curve.first, f"training/{name}_last": curve.last}
        found |= {key: value for key, value in means.items() if math.isfinite(value)}  # JSON has no word for the others
        found[f"training/{name}_fell"] = float(curve.fell)
    return found | {"training/all_losses_fell": float(all(curve.fell for curve in curves.values()))}
