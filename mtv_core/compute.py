"""Which machines a stage's work is spread over."""

from __future__ import annotations

from pydantic import BaseModel, Field


class ComputeConfig(BaseModel, frozen=True, extra="forbid"):
    """A Dask cluster of worker processes on this machine, or one that is already there. Changes no result."""

    scheduler: str | None = Field(None, description="address of a running Dask scheduler, tcp://host:8786; None: start workers here")
    workers: int = Field(2, ge=1, description="worker processes on this machine; one a core is a good start")
    threads_per_worker: int = Field(1, ge=1, description="1 unless the work waits for the network")
    memory_limit: str = Field("4GiB", description="of one worker; it is restarted when it reaches 95 %")
    gpus_per_worker: float = Field(0, ge=0, description="share of the resource GPU a local worker offers; experts then run only there")
    retries: int = Field(2, ge=0, description="more tries of a piece of work that met a transient error of the network or a store")
