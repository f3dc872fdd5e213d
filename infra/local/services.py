"""Start, stop and look at the local services. Every call may be repeated, and repairs what it finds broken.

    home/services/{services.json, lock, prefect/, mlflow/}    home/logs/{prefect,mlflow,worker,deploy}.log

Order of `up`: Prefect and MLflow together; then the worker and the deployments together. Order of `down`: runs, while the server can still
hear how they ended; worker; servers; `prefect.toml`.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import psutil

from infra.local import deploy, prefect_toml, processes
from infra.local.state import ServiceError, State, load, lock, log_file, prepare, save, services_folder
from mtv_core import settings

ROOT = Path(__file__).resolve().parents[2]
POOL = "mtv"
PORTS = {"prefect": 4200, "mlflow": 5000}
NAMES = ("prefect", "mlflow", "worker")
TITLES = {"prefect": "Prefect", "mlflow": "MLflow", "worker": "worker"}

_START_SECONDS = 180.0  # A first start on a slow disk makes two databases.
_ANSWER_SECONDS = 30.0  # for a service that runs: a busy machine is no reason to start it anew
_RUNS_END_SECONDS = 25.0  # Longer than a training takes to write its checkpoint and end its ranks.
_END_SECONDS = 8.0


@dataclass
class Local:
    """The services of one `MTV_HOME`. `project` is where `prefect.toml` goes and where flows are run."""

    home: Path = field(default_factory=settings.home)
    project: Path = ROOT
    prefect_file: Path = ROOT / "deployments" / "prefect.yaml"
    ports: Mapping[str, int | None] = field(default_factory=dict)
    say: Callable[[str], None] = lambda message: None

    def up(self) -> dict[str, Any]:
        """Start what is not running, deploy what has changed, and return `status()`.

        Raises:
            ServiceError: with what to do about it.
        """
        prepare(self.home)
        with lock(self.home, self.say):
            prefect_toml.check(self.project)
            state = load(self.home)
            self._servers(state)
            api, tracking = self.url("prefect", state) + "/api", self.url("mlflow", state)
            self._point_prefect_here(api)
            deploy.make_pool(api, POOL)
            digest = deploy.changed(api, self.prefect_file, state.deployed)
            with self._deploying(api) if digest else contextlib.nullcontext():
                self._worker(state, api, tracking)
            if digest:
                state.deployed = digest
                save(self.home, state)
        return self.status()

    def down(self) -> dict[str, Any]:
        """End everything that `up` started, and what that started in turn. Returns how many processes and runs there were."""
        if not services_folder(self.home).is_dir():
            return {"stopped": [], "runs": 0, "left": 0}
        with lock(self.home, self.say):
            state = load(self.home)
            stopped = [name for name in NAMES if processes.alive(state.services.get(name))]
            runs = self._end_runs()
            self._end(lambda: processes.family(self.home, "worker"))
            deploy.cancelled(runs)
            self._end(lambda: processes.family(self.home))
            prefect_toml.remove(self.project, self.home)
            state.services.clear()
            save(self.home, state)
            return {"stopped": stopped, "runs": len(runs), "left": len(processes.family(self.home))}

    def status(self) -> dict[str, Any]:
        """What runs, where, since when, and where it logs. Changes nothing and needs nothing to run."""
        state = load(self.home)
        services = [self._look(name, state) for name in NAMES]
        return {
            "home": str(self.home),
            "running": all(service["state"] == "running" for service in services),
            "services": services,
            "prefect_api": self.url("prefect", state) + "/api" if "prefect" in state.services else None,
            "mlflow": self.url("mlflow", state) if "mlflow" in state.services else None,
            "deployments": deploy.names(self.url("prefect", state) + "/api") if services[0]["state"] == "running" else [],
            "runs": len(self._runs_top()) if services[2]["state"] == "running" else 0,
        }

    def url(self, name: str, state: State) -> str:
        """Where a server is, or would be, found."""
        service = state.services.get(name)
        return f"http://127.0.0.1:{service.port if service and service.port else PORTS[name]}"

    def _end_runs(self) -> dict[str, str]:
        """End the runs' own processes, which then end their trees; after that whatever these left behind.

        Returns:
            id of the flow run → the API it reports to.
        """
        tops = processes.flow_runs(processes.family(self.home))
        environments = [processes.environment(process) for process in tops]
        runs = {env[processes.FLOW_RUN]: env.get("PREFECT_API_URL", "") for env in environments if env.get(processes.FLOW_RUN)}
        if tops:
            self.say(f"ending {len(runs)} run{'s' if len(runs) > 1 else ''}; started again, they go on from where they were")
            processes.end(lambda: [process for process in tops if not processes.ended(process)], tops, _RUNS_END_SECONDS)
            self._end(self._runs)
        return runs

    @staticmethod
    def _end(find: Callable[[], list[psutil.Process]]) -> None:
        processes.end(find, find(), _END_SECONDS)

    # ------------------------------------------------------------------ servers

    def _servers(self, state: State) -> None:
        starting = {}
        for name in ("prefect", "mlflow"):
            if processes.alive(state.services.get(name)) is None or not self._answers_soon(name, state):
                starting[name] = self._start_server(name, state)
        deadline = time.monotonic() + _START_SECONDS
        while starting:
            for name in list(starting):
                if self._answers(name, state):
                    del starting[name]
                elif processes.alive(state.services[name]) is None:
                    starting[name] += 1
                    if starting[name] > 2 or processes.is_free(state.services[name].port or 0):
                        raise self._died(name)
                    self._start_server(name, state)  # Somebody took the port in the meantime.
                elif time.monotonic() > deadline:
                    raise ServiceError(f"{TITLES[name]} does not answer after {_START_SECONDS:.0f} s: see {log_file(self.home, name)}")
            time.sleep(0.05)

    def _start_server(self, name: str, state: State) -> int:
        self._clear(name)
        last = state.services.get(name)
        wanted = self.ports.get(name) or PORTS[name]
        # A server that is repaired keeps its address: the worker and the runs that are going on know it.
        port = processes.choose_port([last.port if last else None, wanted])
        if port != wanted and (last is None or last.port != port):
            self.say(f"port {wanted} is taken: {TITLES[name]} is at {port}")
        command = self._prefect_command(port) if name == "prefect" else self._mlflow_command(port, state)
        service = processes.spawn(command, self._environment(name, port), log_file(self.home, name), self.project)
        service.port = port
        state.services[name] = service
        save(self.home, state)
        return 1

    def _prefect_command(self, port: int) -> list[str]:
        (services_folder(self.home) / "prefect").mkdir(exist_ok=True)
        return [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]

    def _mlflow_command(self, port: int, state: State) -> list[str]:
        folder = services_folder(self.home) / "mlflow"
        artifacts = folder / "artifacts"
        artifacts.mkdir(parents=True, exist_ok=True)
        database = f"sqlite:///{folder / 'mlflow.db'}"
        version = importlib.metadata.version("mlflow")
        if (folder / "mlflow.db").exists() and state.mlflow not in ("", version):
            command = [sys.executable, "-m", "mlflow", "db", "upgrade", database]
            with log_file(self.home, "mlflow").open("ab") as log:
                subprocess.run(command, env=self._environment("mlflow", port), stdout=log, stderr=subprocess.STDOUT, check=False)
        state.mlflow = version
        hosts = f"127.0.0.1,127.0.0.1:{port},localhost,localhost:{port}"
        # The artifact root is a path, not the proxy's scheme: `mtv train` reaches it with the server down as well.
        return [
            sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1",
            "--backend-store-uri", database, "--default-artifact-root", str(artifacts), "--artifacts-destination", str(artifacts),
            "--allowed-hosts", hosts,
        ]  # fmt: skip

    # ------------------------------------------------------------------ worker and deployments

    def _worker(self, state: State, api: str, tracking: str) -> None:
        serves = f"{api} {tracking}"
        running = state.services.get("worker")
        if processes.alive(running) and running is not None and running.serves == serves and self._answers_soon("worker", state):
            return
        self._clear("worker")
        command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", POOL, "--type", "process", "--name", self._worker_name()]
        env = self._environment("worker") | {"PREFECT_API_URL": api, "MLFLOW_TRACKING_URI": tracking}
        service = processes.spawn(command, env, log_file(self.home, "worker"), self.project)
        service.serves = serves
        state.services["worker"] = service
        save(self.home, state)
        deadline = time.monotonic() + _START_SECONDS
        while not self._answers("worker", state):
            if processes.alive(service) is None:
                raise self._died("worker")
            if time.monotonic() > deadline:
                raise ServiceError(f"the worker does not report to Prefect: see {log_file(self.home, 'worker')}")
            time.sleep(0.1)

    def _worker_name(self) -> str:
        return f"mtv-{os.uname().nodename}"

    @contextlib.contextmanager
    def _deploying(self, api: str) -> Iterator[None]:
        """Deploy while something else is done."""
        path = log_file(self.home, "deploy")
        env = self._environment("deploy") | {"PREFECT_API_URL": api}
        command = deploy.command(self.prefect_file)
        with (
            path.open("wb") as log,
            subprocess.Popen(
                command, env=env, cwd=self.project, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
            ) as deploying,
        ):
            try:
                yield
                code = deploying.wait(_START_SECONDS)
            finally:
                deploying.kill()
        if code:
            raise ServiceError(f"the deployments were refused: {_last_line(path)} (all of it: {path})")
        deploy.make_the_rest(api)

    def _point_prefect_here(self, api: str) -> None:
        other = prefect_toml.owner(self.project)
        if other not in (None, self.home) and processes.family(other):
            self.say(f"prefect.toml stays with the services of {other}; for plain prefect commands export PREFECT_API_URL={api}")
            return
        prefect_toml.write(self.project, self.home, api)

    # ------------------------------------------------------------------ shared

    def _environment(self, role: str, port: int | None = None) -> dict[str, str]:
        """The user's environment less what would lead the services elsewhere; nothing that reports home."""
        keep = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_API", "PREFECT_PROFILE", "PREFECT__"))}
        folder = services_folder(self.home) / "prefect"
        no_proxy = ",".join(filter(None, (os.environ.get("NO_PROXY"), "127.0.0.1,localhost")))
        env = keep | {
            processes.MARK: str(self.home),
            processes.ROLE: role,
            "MTV_HOME": str(self.home),
            "DO_NOT_TRACK": "1",
            "NO_PROXY": no_proxy,
            "no_proxy": no_proxy,
            "PYTHONUNBUFFERED": "1",
            "PREFECT_HOME": str(folder),
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "PREFECT_SERVER_DATABASE_TIMEOUT": "60",  # SQLite has one writer; on a busy machine the others wait longer than 10 s.
            "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",  # What the automation crash-zombie-flows listens for.
            "PREFECT_WORKER_QUERY_SECONDS": "2",
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        }
        if role == "prefect":
            env |= {
                "PREFECT_SERVER_DATABASE_CONNECTION_URL": f"sqlite+aiosqlite:///{folder / 'prefect.db'}",
                "PREFECT_SERVER_UI_STATIC_DIRECTORY": str(folder / "ui"),
                "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
                "PREFECT_SERVER_UI_V2_ENABLED": "false",  # The first UI alone makes no request to the outside.
                "PREFECT_SERVER_UI_API_URL": f"http://127.0.0.1:{port}/api",
                "PREFECT_API_URL": f"http://127.0.0.1:{port}/api",
            }
        return env

    def _clear(self, role: str) -> None:
        """End what is left of a service before it is started anew. Runs that the worker started go on."""

        def left() -> list[psutil.Process]:
            return [process for process in processes.family(self.home, role) if processes.FLOW_RUN not in processes.environment(process)]

        self._end(left)

    def _runs(self) -> list[psutil.Process]:
        return [process for process in processes.family(self.home) if processes.FLOW_RUN in processes.environment(process)]

    def _runs_top(self) -> list[psutil.Process]:
        return processes.flow_runs(processes.family(self.home))

    def _answers(self, name: str, state: State) -> bool:
        with contextlib.suppress(httpx.HTTPError, KeyError, ValueError):
            if name == "prefect":
                return _get(self.url(name, state) + "/api/health").json() is True
            if name == "mlflow":
                return _get(self.url(name, state) + "/health").text == "OK"
            since = state.services["worker"].created
            return deploy.worker_seen(self.url("prefect", state) + "/api", POOL, self._worker_name(), since)
        return False

    def _answers_soon(self, name: str, state: State) -> bool:
        deadline = time.monotonic() + _ANSWER_SECONDS
        while not self._answers(name, state):
            if time.monotonic() > deadline or processes.alive(state.services.get(name)) is None:
                return False
            time.sleep(0.1)
        return True

    def _look(self, name: str, state: State) -> dict[str, Any]:
        service = state.services.get(name)
        process = processes.alive(service)
        if service is None:
            condition = "stopped"
        elif process is None:
            condition = "died"
        else:
            condition = "running" if self._answers(name, state) else "not answering"
        return {
            "name": name,
            "state": condition,
            "url": self.url(name, state) if name in PORTS and service else None,
            "pid": service.pid if service and process else None,
            "since": datetime.fromtimestamp(service.created, UTC).isoformat(timespec="seconds") if service and process else None,
            "log": str(log_file(self.home, name)),
        }

    def _died(self, name: str) -> ServiceError:
        log = log_file(self.home, name)
        return ServiceError(f"{TITLES[name]} did not start: {_last_line(log)} (all of it: {log})")


def _get(url: str) -> httpx.Response:
    return httpx.get(url, timeout=5, trust_env=False).raise_for_status()


def _last_line(log: Path) -> str:
    with contextlib.suppress(OSError):
        lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip(" │╰╯╭╮─")]
        if lines:
            return lines[-1].strip("│ ")
    return "it said nothing"
