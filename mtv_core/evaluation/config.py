"""What is evaluated, and how thoroughly. Imports nothing heavy."""

from __future__ import annotations

from typing import Literal, get_args

from pydantic import BaseModel, Field, field_validator

ProtocolName = Literal["zero_shot", "retrieval", "depth_probe", "segmentation_probe"]
PROTOCOLS: tuple[ProtocolName, ...] = get_args(ProtocolName)


class EvaluateConfig(BaseModel, frozen=True, extra="forbid"):
    """Which protocols run on the embedded benchmark, on how many pictures, with how many seeds."""

    protocols: list[ProtocolName] = Field(
        list(PROTOCOLS), min_length=1, description="which protocols to run; each is one file of the package"
    )
    picture_size: int = Field(
        96, ge=32, le=1024, description="side the benchmark's pictures are rendered with, px; the model resizes them itself"
    )
    per_class: int = Field(8, ge=1, description="pictures of each of the 48 colour × shape classes; 8 give an interval of about ±5 points")
    retrieval_count: int = Field(256, ge=10, le=500, description="pictures, and as many captions, that are searched; recall depends on it")
    dense_train: int = Field(512, ge=8, description="pictures the linear probes are trained on")
    dense_val: int = Field(256, ge=4, description="pictures the linear probes are measured on")
    probe_seeds: int = Field(3, ge=3, le=10, description="times each probe is trained; fewer than 3 give no interval worth the name")
    probe_steps: int = Field(600, ge=10, description="optimiser steps of a probe, 16 pictures each")
    baseline: bool = Field(
        True, description="measure the untrained weights of the same architecture too, so that gains have something to beat"
    )
    batch_size: int = Field(64, ge=1, description="pictures or texts that go through the model together; changes no result")
    threads: int = Field(2, ge=1, description="batches, and seeds of a probe, that are computed at the same time; changes no result")
    examples: int = Field(4, ge=1, le=16, description="pictures shown in the figures of probes and retrieval")

    @field_validator("protocols")
    @classmethod
    def _once(cls, protocols: list[ProtocolName]) -> list[ProtocolName]:
        if len(set(protocols)) < len(protocols):
            raise ValueError("names a protocol twice; name each once")
        return protocols
