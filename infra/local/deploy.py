"""Work pool, deployments, automations and limits on a Prefect server, made or brought up to date; nothing changes when it is repeated."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import yaml

from infra.local.state import ServiceError

ROOT = Path(__file__).resolve().parents[2]
PREFECT_FILE = ROOT / "deployments" / "prefect.yaml"
AUTOMATIONS_FILE = ROOT / "deployments" / "automations.yaml"
GPU_LIMIT = "mtv-gpu"


def run(api: str, prefect_file: Path = PREFECT_FILE, pool: str = "mtv") -> list[str]:
    """Deploy everything to a server, wherever it is. Returns the deployments' names.

    Raises:
        ServiceError: the server does not answer, or refuses a deployment.
    """
    make_pool(api, pool)
    env = os.environ | {"PREFECT_API_URL": api, "DO_NOT_TRACK": "1"}
    done = subprocess.run(command(prefect_file), env=env, cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ServiceError(f"the deployments were refused:\n{(done.stdout + done.stderr).strip()[-3000:]}")
    make_the_rest(api)
    return names(api)


def command(prefect_file: Path) -> list[str]:
    """`prefect deploy`, to be run in the project's folder, which becomes the working directory of the runs."""
    return [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all", "--prefect-file", str(prefect_file)]


def make_pool(api: str, pool: str) -> None:
    """A process work pool; the worker fills in its job template."""
    with _client(api) as client:
        response = client.post(
            "/work_pools/", json={"name": pool, "type": "process", "description": "Runs of MTV, as processes of the worker."}
        )
        if response.status_code != httpx.codes.CONFLICT:
            response.raise_for_status()


def make_the_rest(api: str) -> None:
    """Automations of `automations.yaml`, and the limit on GPU slots unless there is one: its size is the user's to change."""
    with _client(api) as client:
        for automation in yaml.safe_load(AUTOMATIONS_FILE.read_text()):
            named = {"automations": {"name": {"any_": [automation["name"]]}}}
            found = client.post("/automations/filter", json=named).raise_for_status().json()
            if found:
                client.put(f"/automations/{found[0]['id']}", json=automation).raise_for_status()
            else:
                client.post("/automations/", json=automation).raise_for_status()
        if client.get(f"/v2/concurrency_limits/{GPU_LIMIT}").status_code == httpx.codes.NOT_FOUND:
            client.post("/v2/concurrency_limits/", json={"name": GPU_LIMIT, "limit": 1, "active": True}).raise_for_status()


def changed(api: str, prefect_file: Path, before: str) -> str:
    """The digest of what the deployments depend on; an empty string if the server has them just so.

    A deployment holds the schema of the flow's parameters, hence all the code that a configuration may be in.
    """
    digest = hashlib.sha256(importlib.metadata.version("prefect").encode())
    files = [
        prefect_file,
        AUTOMATIONS_FILE,
        *(path for package in ("flows", "tasks", "mtv_core") for path in (ROOT / package).rglob("*.py")),
    ]
    for path in sorted(files):
        digest.update(str(path).encode() + b"\0" + path.read_bytes())
    wanted = {f"mtv/{entry['name']}" for entry in yaml.safe_load(prefect_file.read_text())["deployments"]}
    now = digest.hexdigest()
    return "" if now == before and wanted <= set(names(api)) else now


def names(api: str) -> list[str]:
    """Deployments on a server; none if it does not answer."""
    try:
        with _client(api) as client:
            deployments = client.post("/deployments/filter", json={"flows": {"name": {"any_": ["mtv"]}}}).raise_for_status().json()
    except (httpx.HTTPError, ServiceError):
        return []
    return sorted(f"mtv/{deployment['name']}" for deployment in deployments)


def worker_seen(api: str, pool: str, name: str, since: float) -> bool:
    """Whether the worker has reported to the server after it was started."""
    with _client(api) as client:
        workers: list[dict[str, Any]] = client.post(f"/work_pools/{pool}/workers/filter", json={}).raise_for_status().json()
    for worker in workers:
        last = worker.get("last_heartbeat_time")
        if (
            worker["name"] == name
            and worker["status"] == "ONLINE"
            and last
            and datetime.fromisoformat(last) >= datetime.fromtimestamp(since, UTC)
        ):
            return True
    return False


def cancelled(runs: Mapping[str, str]) -> None:
    """Tell each run's server that it was ended on purpose: its process could not, and a worker would call it a crash."""
    message = "stopped by `mtv down`; started again, it goes on from where it was"
    for flow_run_id, api in runs.items():
        with contextlib.suppress(httpx.HTTPError, ServiceError), _client(api) as client:
            state = client.get(f"/flow_runs/{flow_run_id}").raise_for_status().json()["state_type"]
            if state not in ("COMPLETED", "FAILED", "CANCELLED"):
                body = {"state": {"type": "CANCELLED", "name": "Cancelled", "message": message}, "force": True}
                client.post(f"/flow_runs/{flow_run_id}/set_state", json=body)


@contextlib.contextmanager
def _client(api: str) -> Iterator[httpx.Client]:
    try:
        with httpx.Client(base_url=api, timeout=30, trust_env=not api.startswith("http://127.0.0.1")) as client:
            yield client
    except httpx.ConnectError:
        raise ServiceError(f"no Prefect server answers at {api}: `mtv up` starts one here, PREFECT_API_URL names another") from None
