"""Ingests, and dies where `MTV_FAULT` says: `python ingest_child.py SOURCE TABLE serial|dask|tcp://…`."""

from __future__ import annotations

import sys

from mtv_core import ingest
from mtv_core.compute import ComputeConfig
from mtv_core.data.sources import SourceConfig
from mtv_core.executor import Executor, SerialExecutor
from mtv_core.ingest_config import IngestConfig


def run(source: str, table: str, executor: Executor) -> None:
    ingest.run([SourceConfig(uri=source)], table, IngestConfig(rows_per_fragment=7), executor)


if __name__ == "__main__":
    if sys.argv[3] != "serial":
        from tasks.cluster import connect

        scheduler = None if sys.argv[3] == "dask" else sys.argv[3]
        with connect(ComputeConfig(scheduler=scheduler, workers=2, memory_limit="1GiB")) as executor:
            print("ready", flush=True)
            run(sys.argv[1], sys.argv[2], executor)
    else:
        print("ready", flush=True)
        run(sys.argv[1], sys.argv[2], SerialExecutor())
