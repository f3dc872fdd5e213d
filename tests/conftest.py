"""What every test can rely on: a home of its own, no word to the outside, and a Prefect server when it asks for one."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

pytest_plugins = ["s3_server"]  # the fixtures `s3` and `bucket`

# Before anything reads them. A test, or a command it starts, then never touches the state of whoever runs the tests.
_HOME = Path(tempfile.mkdtemp(prefix="mtv-tests-"))
os.environ |= {
    "MTV_HOME": str(_HOME / "mtv"),
    "PREFECT_HOME": str(_HOME / "prefect"),
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}
for _name in ("MLFLOW_TRACKING_URI", "PREFECT_API_URL", "PREFECT_API_KEY", "PREFECT_PROFILE"):
    os.environ.pop(_name, None)

# An example that takes longer than another says that the machine is busy.
settings.register_profile("mtv", deadline=None)
settings.load_profile("mtv")


def pytest_sessionfinish() -> None:
    shutil.rmtree(_HOME, ignore_errors=True)


@pytest.fixture(scope="session")
def prefect_server() -> Iterator[str]:
    """A Prefect server for the session; its URL. Tests that use it carry the marker `prefect`."""
    from prefect.settings import PREFECT_API_URL, PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings
    from prefect.testing.utilities import prefect_test_harness

    # Without heartbeats a flow costs 0.15 s instead of 1.15 s.
    with prefect_test_harness(server_startup_timeout=120), temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}):
        yield str(PREFECT_API_URL.value())
