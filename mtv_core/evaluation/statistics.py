"""Intervals: of a proportion, and of a mean over seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

# 97.5 % quantiles of Student's t by degrees of freedom: what 3 to 10 seeds need.
_T = {2: 4.302653, 3: 3.182446, 4: 2.776445, 5: 2.570582, 6: 2.446912, 7: 2.364624, 8: 2.306004, 9: 2.262157}
_Z = 1.959964


@dataclass(frozen=True)
class Estimate:
    """A number, its spread over seeds, and half the width of its 95 % interval."""

    mean: float
    std: float
    ci: float


def over_seeds(values: Sequence[float]) -> Estimate:
    """Mean, sample deviation and t interval of a metric measured with 3 to 10 seeds.

    The interval is of the seeds alone: the pictures are the same each time.
    """
    n = len(values)
    if n - 1 not in _T:
        raise ValueError(f"an interval over seeds needs 3 to 10 of them, not {n}")
    mean = math.fsum(values) / n
    std = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1))
    return Estimate(mean, std, _T[n - 1] * std / math.sqrt(n))


def wilson(share: float, n: int) -> float:
    """Half the width of Wilson's 95 % interval of a share seen in n trials: not zero at 0 and 1, as the normal one is."""
    return _Z / (1.0 + _Z**2 / n) * math.sqrt(share * (1.0 - share) / n + _Z**2 / (4.0 * n * n))


def beyond(better: float, ci: float, worse: float, worse_ci: float, higher: bool) -> bool:
    """Whether the first number is better and the two intervals do not touch: stricter than an interval of the difference."""
    gain = better - worse if higher else worse - better
    return gain > ci + worse_ci
