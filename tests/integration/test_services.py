"""The local services from start to end, in a home of their own: real processes, real ports."""

from __future__ import annotations

import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from infra.local import prefect_toml, processes
from infra.local.services import Local
from infra.local.state import ServiceError, load, services_folder

FLOW = """
import os, subprocess, sys, time
from pathlib import Path
from prefect import flow

@flow(name="mtv")
def probe(mark: str) -> None:
    rank = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
    names = ("MTV_HOME", "MLFLOW_TRACKING_URI", "DO_NOT_TRACK", "PREFECT_FLOWS_HEARTBEAT_FREQUENCY")
    environment = {name: os.environ.get(name) for name in names}
    Path(mark).write_text(repr((rank.pid, environment)))
    time.sleep(600)
"""
YAML = "deployments: [{name: probe, entrypoint: 'probe.py:probe', work_pool: {name: mtv}}]"


def wait_for(what: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Local]:
    project = tmp_path_factory.mktemp("project")
    (project / "probe.py").write_text(FLOW)
    (project / "prefect.yaml").write_text(YAML)
    local = Local(home=project / "home", project=project, prefect_file=project / "prefect.yaml")
    yield local
    local.down()


@pytest.fixture(scope="module")
def up(local: Local) -> dict[str, object]:
    """Started once, with the port wanted for MLflow taken by somebody else."""
    said: list[str] = []
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        local.ports = {"prefect": processes.choose_port([]), "mlflow": taken.getsockname()[1]}
        local.say = said.append
        status = local.up()
    return {"status": status, "said": said, "taken": local.ports["mlflow"]}


def pids(local: Local) -> dict[str, int]:
    return {name: service.pid for name, service in load(local.home).services.items()}


def test_everything_runs_and_a_taken_port_is_said(local: Local, up: dict[str, object]) -> None:
    status = local.status()
    assert status["running"]
    assert status["deployments"] == ["mtv/probe"]
    assert any(f"port {up['taken']} is taken: MLflow is at" in line for line in up["said"])  # type: ignore[attr-defined]
    assert all(Path(service["log"]).is_file() for service in status["services"])
    assert all(connection.laddr.ip == "127.0.0.1" for process in processes.family(local.home) for connection in listening(process))


def listening(process: psutil.Process) -> list[psutil._common.pconn]:
    return [connection for connection in process.net_connections("tcp") if connection.status == psutil.CONN_LISTEN]


def test_the_servers_report_to_nobody_and_show_the_quiet_ui(local: Local, up: dict[str, object]) -> None:
    api = local.status()["prefect_api"]
    settings = httpx.get(f"{api}/admin/settings").json()
    assert settings["server"]["analytics_enabled"] is False
    assert settings["server"]["ui"]["show_promotional_content"] is False
    assert httpx.get(api.replace("/api", "/ui-settings")).json()["default_ui"] == "v1"


def test_up_again_changes_nothing_even_twice_at_once(local: Local, up: dict[str, object]) -> None:
    before = pids(local)
    threads = [threading.Thread(target=local.up) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert pids(local) == before


def test_plain_prefect_commands_find_the_server_and_a_run_survives_repairs(local: Local, up: dict[str, object]) -> None:
    mark = local.project / "mark"
    command = [sys.executable, "-m", "prefect", "deployment", "run", "mtv/probe", "--param", f"mark={mark}"]
    env = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT")} | {"DO_NOT_TRACK": "1"}
    subprocess.run(command, cwd=local.project, env=env, check=True, capture_output=True)
    wait_for(lambda: mark.exists() and bool(mark.read_text()))
    rank, environment = eval(mark.read_text())
    tracking = local.status()["mlflow"]
    assert environment == {
        "MTV_HOME": str(local.home), "MLFLOW_TRACKING_URI": tracking, "DO_NOT_TRACK": "1", "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",
    }  # fmt: skip
    before = pids(local)
    for name in ("mlflow", "worker"):
        os.kill(before[name], signal.SIGKILL)
    wait_for(lambda: not local.status()["running"])
    assert {service["name"]: service["state"] for service in local.status()["services"]} == {
        "prefect": "running", "mlflow": "died", "worker": "died",
    }  # fmt: skip
    assert local.up()["running"]
    after = pids(local)
    assert after["prefect"] == before["prefect"]
    assert {after["mlflow"], after["worker"]}.isdisjoint(before.values())
    assert local.status()["mlflow"] == tracking
    assert psutil.pid_exists(rank)


def gone(pid: int) -> bool:
    """Whether a process has ended: killed, it is a zombie until whoever inherited it looks."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_down_leaves_nothing_even_if_the_state_file_is_lost(local: Local, up: dict[str, object]) -> None:
    rank, _ = eval((local.project / "mark").read_text())
    ports = [service.port for service in load(local.home).services.values() if service.port]
    (services_folder(local.home) / "services.json").unlink()
    done = local.down()
    assert (done["runs"], done["left"]) == (1, 0)
    assert processes.family(local.home) == []
    assert gone(rank)
    assert all(processes.is_free(port) for port in ports)
    assert not (local.project / "prefect.toml").exists()
    with sqlite3.connect(services_folder(local.home) / "prefect" / "prefect.db") as database:
        states = database.execute("select state_type from flow_run").fetchall()
    database.close()
    assert states == [("CANCELLED",)]
    assert local.down() == {"stopped": [], "runs": 0, "left": 0}


def test_a_process_that_is_not_ours_is_never_ended(tmp_path: Path) -> None:
    """A pid that was given to somebody else after a reboot."""
    local = Local(home=tmp_path, project=tmp_path)
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as stranger:
        services_folder(tmp_path).mkdir()
        service = {"pid": stranger.pid, "created": psutil.Process(stranger.pid).create_time() - 100, "port": 1}
        (services_folder(tmp_path) / "services.json").write_text(json.dumps({"services": {"prefect": service}}))
        assert local.status()["services"][0]["state"] == "died"
        local.down()
        assert stranger.poll() is None
        stranger.kill()


def test_a_prefect_toml_of_the_users_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "prefect.toml").write_text("[api]\nurl = 'https://elsewhere/api'\n")
    with pytest.raises(ServiceError, match=r"was not written by mtv.*move it away"):
        Local(home=tmp_path / "home", project=tmp_path).up()
    assert load(tmp_path / "home").services == {}
    prefect_toml.remove(tmp_path, tmp_path / "home")
    assert "elsewhere" in (tmp_path / "prefect.toml").read_text()


def test_a_home_that_cannot_be_written_is_a_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ServiceError, match="point MTV_HOME at a folder that can be written"):
        Local(home=tmp_path / "file" / "home", project=tmp_path).up()
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 5 << 20}))
    with pytest.raises(ServiceError, match="nearly full"):
        Local(home=tmp_path / "home", project=tmp_path).up()


def test_a_service_that_cannot_start_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    local = Local(
        home=tmp_path / "home", project=tmp_path, ports={"prefect": processes.choose_port([]), "mlflow": processes.choose_port([])}
    )
    monkeypatch.setattr(Local, "_prefect_command", lambda self, port: [sys.executable, "-c", "raise SystemExit('the database is damaged')"])
    try:
        with pytest.raises(ServiceError, match=r"Prefect did not start: the database is damaged .*prefect\.log"):
            local.up()
    finally:
        local.down()
    assert processes.family(local.home) == []
