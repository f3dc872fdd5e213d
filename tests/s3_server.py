"""S3 for tests: `moto` in a process of its own, or any server that `MTV_TEST_S3_ENDPOINT` names, with credentials from the environment."""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest

ENDPOINT_VARIABLE = "MTV_TEST_S3_ENDPOINT"
KEY, SECRET = "test-key", "test-secret"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def moto() -> Iterator[str]:
    """A server with nothing in it; its URL."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                urllib.request.urlopen(f"{url}/moto-api/", timeout=5).close()
                break
            except OSError:
                assert server.poll() is None, "moto did not start"
                assert time.monotonic() < deadline
                time.sleep(0.1)
        yield url
    finally:
        server.terminate()
        server.wait(30)


@contextlib.contextmanager
def server() -> Iterator[dict[str, str]]:
    """Environment that makes s3:// mean a test server, for this process and those it starts."""
    endpoint = os.environ.get(ENDPOINT_VARIABLE)
    with contextlib.ExitStack() as stack:
        environment = {"AWS_REGION": os.environ.get("AWS_REGION", "us-east-1"), "AWS_EC2_METADATA_DISABLED": "true"}
        if endpoint is None:
            environment |= {"AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET}
            endpoint = stack.enter_context(moto())
        environment["AWS_ENDPOINT_URL"] = endpoint
        yield environment


def client() -> Any:
    """boto3, as another program would see the store."""
    import boto3

    return boto3.client("s3", region_name=os.environ["AWS_REGION"])


@pytest.fixture(scope="session")
def s3() -> Iterator[str]:
    """An S3 server for the session, in the environment; its URL."""
    with server() as environment, pytest.MonkeyPatch.context() as patch:
        for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_DEFAULT_REGION"):
            patch.delenv(name, raising=False)
        for name, value in environment.items():
            patch.setenv(name, value)
        yield environment["AWS_ENDPOINT_URL"]


@pytest.fixture
def bucket(s3: str) -> Iterator[str]:
    """`s3://…` of an empty bucket."""
    name = f"mtv-{secrets.token_hex(6)}"
    client().create_bucket(Bucket=name)
    yield f"s3://{name}"
    with contextlib.suppress(Exception):
        for page in client().get_paginator("list_objects_v2").paginate(Bucket=name):
            for entry in page.get("Contents", []):
                client().delete_object(Bucket=name, Key=entry["Key"])
        client().delete_bucket(Bucket=name)
