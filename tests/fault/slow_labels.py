"""Labelling that takes long enough to be killed at it, on Dask workers: what they have to be able to import."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from label_tables import QuickExpert

from mtv_core import experts
from mtv_core.executor import Executor, Outcome
from mtv_core.labelling_worker import FragmentJob, FragmentResult, label_fragment


class SlowExpert(QuickExpert):
    """Says what a quick one says, a while later."""

    def __call__(self, *arguments: Any) -> pa.RecordBatch:
        time.sleep(0.15)
        return super().__call__(*arguments)


def label_slowly(job: FragmentJob) -> FragmentResult:
    """`label_fragment` in a worker, whose expert is a slow one."""
    experts.load = SlowExpert
    return label_fragment(job)


@dataclass
class Slowly:
    """An executor for labelling, whose workers have slow experts."""

    executor: Executor

    def map(
        self, function: Callable[[Any], Any], items: Sequence[Any], *, resources: Mapping[str, float] | None = None
    ) -> Iterator[Outcome[Any, Any]]:
        assert function is label_fragment
        return self.executor.map(label_slowly, items, resources=resources)
