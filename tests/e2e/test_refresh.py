"""An expert changes: the watcher sees it, an event starts the refresh, a canary is tried, a gate or a person decides, labels get better.

A real server, a real worker, blocks labelled by the first revisions of the embedded experts in folders that are watched. The table is
compared with the truth that the pictures were drawn from. The tests are one story and run in its order.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
import yaml
from torchvision.ops import box_iou

from infra.local import processes, state
from infra.local.services import Local
from mtv_core.blocks.evaluate_experts import MIN_VISIBLE, WEIGHTS, align, average_precision
from mtv_core.blocks.shards import truth
from mtv_core.data.depth import decode
from mtv_core.store.table import Table

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]
ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
SEED, SAMPLES, FRAGMENT = 5, 96, 32
EXPERTS = ("depth", "detection")
ENDED = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")
EVENT = "mtv.expert.updated"


class World:
    """Services, a table and two watched folders."""

    def __init__(self, folder: Path) -> None:
        self.home, self.watched, self.project = folder / "home", folder / "watched", folder / "project"
        # Not the checkout: `mtv up` writes a prefect.toml to the project, and another test's services may be up there.
        self.project.mkdir()
        (self.project / "flows").symlink_to(ROOT / "flows")
        self.table_uri, self.preset = str(folder / "table"), str(folder / "preset.yaml")
        document = {
            "sources": [f"blocks://refresh?samples={SAMPLES}&seed={SEED}&shard_size={SAMPLES // 2}"],
            "table": {"uri": self.table_uri},
            "ingest": {"rows_per_fragment": FRAGMENT},
            "label": {name: {"model": str(self.watched / name)} for name in EXPERTS} | {"gate": {"rows": 32}},
            "compute": {"workers": 1},
        }
        Path(self.preset).write_text(yaml.safe_dump(document))
        self.local = Local(
            home=self.home, project=self.project, ports={"prefect": processes.choose_port([]), "mlflow": processes.choose_port([])}
        )
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "MLFLOW_", "MTV_"))}
        self.env = clean | {"MTV_HOME": str(self.home)}

    def publish(self, expert: str, revision: str) -> None:
        """As one should: the new weights appear in the watched folder at once, not file by file."""
        folder, new, old = self.watched / expert, self.watched / f".{expert}.new", self.watched / f".{expert}.old"
        shutil.copytree(WEIGHTS / f"{expert}-{revision}", new)
        if folder.exists():
            folder.rename(old)
        new.rename(folder)
        shutil.rmtree(old, ignore_errors=True)

    def mtv(self, *command: str) -> None:
        done = subprocess.run([str(BIN / "mtv"), *command], env=self.env, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"

    # The server

    @property
    def api(self) -> str:
        return self.local.url("prefect", state.load(self.home)) + "/api"

    def ask(self, method: str, path: str, **json_body: Any) -> Any:
        with httpx.Client(base_url=self.api, trust_env=False, timeout=60) as client:
            response = client.request(method, path, json=json_body or None)
            for _ in range(5):  # SQLite had one writer too many, as Prefect's own client sees it too
                if response.status_code != httpx.codes.SERVICE_UNAVAILABLE:
                    break
                time.sleep(1)
                response = client.request(method, path, json=json_body or None)
        assert response.status_code < 300, f"{method} {path}: {response.status_code} {response.text}"
        return response.json() if response.content else None

    def deployment(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = self.ask("GET", f"/deployments/name/mtv/{name}")
        return found

    def runs(self, name: str) -> list[dict[str, Any]]:
        """Runs of a deployment, the oldest first."""
        body = {"deployments": {"name": {"any_": [name]}}, "sort": "EXPECTED_START_TIME_ASC"}
        found: list[dict[str, Any]] = self.ask("POST", "/flow_runs/filter", **body)
        return [run for run in found if run["parameters"].get("preset") == self.preset]

    def start(self, name: str, **parameters: Any) -> dict[str, Any]:
        path = f"/deployments/{self.deployment(name)['id']}/create_flow_run"
        run: dict[str, Any] = self.ask("POST", path, parameters={"preset": self.preset, **parameters})
        return run

    def wait(self, run: dict[str, Any], *names: str, seconds: float = 180) -> dict[str, Any]:
        """Until a run has ended, or is in a state of one of these names."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            now: dict[str, Any] = self.ask("GET", f"/flow_runs/{run['id']}")
            if now["state_name"] in names or now["state_type"] in ENDED:
                assert now["state_name"] in names or not names, f"{now['state_name']}: {now['state']['message']}\n{self.log(run)}"
                return now
            time.sleep(0.3)
        raise AssertionError(f"{run['name']} is {now['state_name']}, not {names}\n{self.log(run)}")

    def next_run(self, name: str, known: list[dict[str, Any]], seconds: float = 90) -> dict[str, Any]:
        """The first run of a deployment that was not there before."""
        ids, deadline = {run["id"] for run in known}, time.monotonic() + seconds
        while time.monotonic() < deadline:
            if new := [run for run in self.runs(name) if run["id"] not in ids]:
                return new[0]
            time.sleep(0.3)
        raise AssertionError(f"no run of {name} was started")

    def watch(self, **parameters: Any) -> str:
        """Look now; returns what the watcher said."""
        return str(self.wait(self.start("watch-experts", **parameters), "Completed")["state"]["message"])

    def log(self, run: dict[str, Any]) -> str:
        found = self.ask("POST", "/logs/filter", logs={"flow_run_id": {"any_": [run["id"]]}}, sort="TIMESTAMP_ASC")
        return "\n".join(entry["message"] for entry in found)

    def artifacts(self, run: dict[str, Any]) -> dict[str, dict[str, Any]]:
        found = self.ask("POST", "/artifacts/filter", artifacts={"flow_run_id": {"any_": [run["id"]]}}, limit=200)
        return {artifact["key"]: artifact for artifact in found}

    def events(self) -> list[dict[str, Any]]:
        found = self.ask("POST", "/events/filter", filter={"event": {"name": [EVENT]}})["events"]
        return [event for event in found if event["payload"]["preset"] == self.preset]

    def stop_the_server(self) -> None:
        servers = processes.family(self.home, "prefect")
        assert servers
        processes.end(lambda: processes.family(self.home, "prefect"), servers, 10)
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{self.api}/health", trust_env=False)

    # The table

    def table(self) -> Table:
        return Table.open(self.table_uri)

    def files(self) -> dict[str, list[str]]:
        """What → data files with its columns, over all fragments: of each expert, and of everything else."""
        dataset = self.table().dataset()
        names = {field.id(): field.name() for field in dataset.lance_schema.fields()}
        found: dict[str, list[str]] = {"depth": [], "detection": [], "rows": []}
        labels = {"depth": "depth", "depth_rev": "depth"} | dict.fromkeys(("boxes", "phrases", "scores", "detection_rev"), "detection")
        for fragment in dataset.get_fragments():
            for file in fragment.data_files():
                owners = {labels.get(names[field], "rows") for field in file.fields if field in names}
                assert len(owners) == 1
                found[owners.pop()].append(file.path)
        return found

    def rows(self, *columns: str) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = self.table().dataset().to_table(["key", *columns]).to_pylist()
        assert len(rows) == SAMPLES
        return rows

    def revision(self, expert: str) -> str:
        (one,) = {row[f"{expert}_rev"] for row in self.rows(f"{expert}_rev")}
        assert one == self.table().accepted()[expert].revision
        return str(one)

    def abs_rel(self) -> float:
        """Mean over the pictures of |d − d*| / d* after aligning the stored disparity with the truth, as `evaluate_experts` does it."""
        errors = []
        for row in self.rows("depth"):
            found, depth = decode(row["depth"]).astype(np.float64), truth(SEED, int(row["key"])).rendered.depth.astype(np.float64)
            assert found.shape == depth.shape
            valid = np.isfinite(depth)
            disparity = align(found[valid], 1.0 / depth[valid])
            errors.append(np.mean(np.abs(1.0 / np.clip(disparity, 1 / 12.5, 2.0) - depth[valid]) / depth[valid]))
        return float(np.mean(errors))

    def ap50(self) -> float:
        """AP at IoU 0.5 of the stored boxes, all phrases together: a box is a hit on an untaken solid of the name that its phrase says."""
        scores, hits, wanted = [], [], 0
        for row in self.rows("boxes", "phrases", "scores"):
            sample, taken = truth(SEED, int(row["key"])), set[int]()
            boxes = torch.from_numpy(sample.rendered.boxes)
            wanted += sum(sample.rendered.visible[solid] >= MIN_VISIBLE for solid in sample.caption.mentions)
            for score, box, phrase in sorted(zip(row["scores"], row["boxes"], row["phrases"], strict=True), reverse=True):
                meant = [i for i, solid in enumerate(sample.scene.solids) if phrase.endswith(solid.name) and i not in taken]
                overlaps = [float(box_iou(torch.tensor([box]), boxes[i][None])) for i in meant]
                hit = bool(overlaps) and max(overlaps) >= 0.5
                if hit:
                    taken.add(meant[int(np.argmax(overlaps))])
                scores.append(score)
                hits.append(float(hit))
        return average_precision(np.array(hits), np.array(scores), wanted)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    world = World(tmp_path_factory.mktemp("refresh"))
    for expert in EXPERTS:
        world.publish(expert, "r1")
    with contextlib.ExitStack() as stack:
        stack.callback(lambda: shutil.rmtree(world.home, ignore_errors=True))
        stack.callback(processes.reap)
        stack.callback(time.sleep, 1)
        stack.callback(world.local.down)
        starting = threading.Thread(target=world.local.up)
        starting.start()
        stack.callback(starting.join)
        for stage in ("ingest", "label"):
            world.mtv(stage, "--preset", world.preset)
        starting.join()
        assert world.local.status()["running"]
        yield world


@pytest.fixture
def labels(world: World) -> dict[str, Any]:
    """The labels before a test: files and revisions."""
    return {"files": world.files(), **{expert: world.revision(expert) for expert in EXPERTS}}


def test_nothing_has_changed_and_nothing_is_announced(world: World, labels: dict[str, Any]) -> None:
    said = world.watch()
    assert said == "; ".join(f"{expert}: revision {labels[expert]}, as accepted" for expert in EXPERTS)
    assert world.events() == []
    assert world.runs("refresh-labels") == []
    # The schedule that ships is on.
    assert [schedule["active"] for schedule in world.deployment("watch-experts")["schedules"]] == [True]


def test_a_better_depth_expert_is_published_and_the_labels_get_better(world: World, labels: dict[str, Any]) -> None:
    before = world.abs_rel()
    world.publish("depth", "r2")
    world.watch()
    run = world.wait(world.next_run("refresh-labels", []), "Completed")
    (event,) = world.events()
    revision = world.revision("depth")
    assert event["payload"]["update"] == {"expert": "depth", "revision": revision, "accepted": labels["depth"]}
    assert run["parameters"]["label"]["gate"]["rows"] == 32
    after = world.abs_rel()
    print(f"\ndepth AbsRel against the truth: {before:.4f} with {labels['depth']}, {after:.4f} with {revision}")
    assert after < 0.75 * before
    _only(world, "depth", labels)
    assert f"depth {revision} accepted" in run["state"]["message"]

    artifacts = world.artifacts(run)
    page = artifacts["canary-depth"]["data"]
    assert revision in page
    assert labels["depth"] in page
    assert "All checks passed" in page
    assert "depth.max_abs_rel" in page
    assert artifacts["canary-depth-1"]["type"] == "image"
    assert artifacts["canary-depth-1"]["data"].startswith("data:image/jpeg;base64,")
    assert not any(key.startswith("canary-detection") for key in artifacts)
    folder = Path(world.table_uri) / "_reports" / "canary" / f"depth-{revision}"
    assert (folder / "canary.html").is_file()


def test_an_event_lost_with_the_server_down_is_made_up_for_by_the_scheduled_watcher(world: World, labels: dict[str, Any]) -> None:
    known, events, before = world.runs("refresh-labels"), world.events(), world.ap50()
    world.stop_the_server()
    world.publish("detection", "r2")
    said = (
        "from prefect.events import emit_event\n"
        f"emit_event({EVENT!r}, resource={{'prefect.resource.id': 'mtv.expert.detection'}}, payload={{'preset': {world.preset!r}}})\n"
    )
    env = world.env | {"PREFECT_API_URL": world.api, "PREFECT_HOME": str(world.home / "emitter")}
    subprocess.run([sys.executable, "-c", said], env=env, timeout=120, check=True, capture_output=True)
    world.local.up()
    assert world.events() == events
    assert world.runs("refresh-labels") == known
    assert world.revision("detection") == labels["detection"]

    watcher = world.deployment("watch-experts")
    soon = {"schedule": {"interval": 8}, "active": True}
    world.ask("PATCH", f"/deployments/{watcher['id']}", parameters={"preset": world.preset}, schedules=[soon])
    run = world.next_run("refresh-labels", known)
    assert world.runs("watch-experts")[-1]["auto_scheduled"]
    run = world.wait(run, "Completed")
    world.ask("PATCH", f"/deployments/{watcher['id']}", schedules=[])  # taken off: from here on looks are made by hand
    after, revision = world.ap50(), world.revision("detection")
    print(f"\ndetection AP50 against the truth: {before:.4f} with {labels['detection']}, {after:.4f} with {revision}")
    assert after > before + 0.1
    _only(world, "detection", labels)
    _quiet(world)
    ours = [run for run in world.runs("refresh-labels") if run not in known]
    assert [run["state_name"] for run in ours if run["state_name"] != "Duplicate"] == ["Completed"], "looked at again and again, done once"


def test_a_person_refuses_and_nothing_changes(world: World, labels: dict[str, Any]) -> None:
    run = _suspended(world, "depth", "r1")
    asked = _form(world, run)
    assert "max_abs_rel" in asked["description"]
    page = world.artifacts(run)["canary-depth"]["id"]
    assert f"/artifacts/artifact/{page})" in asked["description"]
    assert asked["schema"]["properties"]["decision"]["enum"] == ["approve", "refuse"]
    assert json.loads(_mtv_runs(world))[-1]["status"] == "suspended"
    # Looking again meanwhile starts nothing: the question has been asked.
    events = world.events()
    assert "not announced again" in world.watch(**APPROVAL)
    assert world.events() == events
    # An event that came twice all the same is told from the first.
    twice = world.wait(world.start("refresh-labels", **{k: v for k, v in run["parameters"].items() if k != "preset"}))
    assert twice["state_name"] == "Duplicate"

    assert world.ask("POST", f"/flow_runs/{run['id']}/resume", run_input={"decision": "perhaps"})["status"] == "REJECT"
    world.ask("POST", f"/flow_runs/{run['id']}/resume", run_input={"decision": "refuse", "reason": "edges are   blurred"})
    ended = world.wait(run, "Refused")
    assert ended["state_type"] == "COMPLETED"
    assert "edges are blurred" in ended["state"]["message"]
    assert "nothing was changed" in ended["state"]["message"]
    assert (world.files(), world.revision("depth")) == (labels["files"], labels["depth"])
    (refused,) = world.table().rejected()["depth"]
    assert "edges are blurred" in refused.reason
    tasks = world.ask("POST", "/task_runs/filter", flow_runs={"id": {"any_": [run["id"]]}})
    assert {task["name"].partition("-")[0] for task in tasks} == {"canary"}
    assert [task["state_name"] for task in sorted(tasks, key=lambda task: task["start_time"])] == ["Completed", "Cached"]
    assert "was refused" in world.watch(**APPROVAL)
    assert world.events() == events


def test_a_person_approves_and_the_rows_are_labelled(world: World, labels: dict[str, Any]) -> None:
    run = _suspended(world, "detection", "r1")
    assert (world.files(), world.revision("detection")) == (labels["files"], labels["detection"])
    world.ask("POST", f"/flow_runs/{run['id']}/resume", run_input={"decision": "approve", "reason": "wanted for a comparison"})
    ended = world.wait(run, "Completed")
    assert "wanted for a comparison" in ended["state"]["message"]
    assert world.revision("detection") != labels["detection"]
    _only(world, "detection", labels)
    assert json.loads(_mtv_runs(world))[-1]["status"] == "completed"


APPROVAL = {"overrides": {"label.gate.approval": True}}


def _suspended(world: World, expert: str, revision: str) -> dict[str, Any]:
    """Publish, look, and wait until the refresh that this starts asks a person."""
    known = world.runs("refresh-labels")
    world.publish(expert, revision)
    world.watch(**APPROVAL)
    return world.wait(world.next_run("refresh-labels", known), "Suspended")


def _form(world: World, run: dict[str, Any]) -> dict[str, Any]:
    """What the Prefect UI shows when Resume is pressed."""
    keys = run["state"]["state_details"]["run_input_keyset"]
    path = f"/flow_runs/{run['id']}/input"
    return {"schema": world.ask("GET", f"{path}/{keys['schema']}"), "description": world.ask("GET", f"{path}/{keys['description']}")}


def _mtv_runs(world: World) -> str:
    return subprocess.run(
        [str(BIN / "mtv"), "runs", "--json"], env=world.env, capture_output=True, text=True, timeout=60, check=True
    ).stdout


def _only(world: World, expert: str, before: dict[str, Any]) -> None:
    """That this expert's columns, and no others, are in new files."""
    now = world.files()
    assert set(now[expert]).isdisjoint(before["files"][expert])
    assert len(now[expert]) == SAMPLES // FRAGMENT
    other = next(name for name in EXPERTS if name != expert)
    for same in ("rows", other):
        assert now[same] == before["files"][same]
    assert world.revision(other) == before[other]


def _quiet(world: World) -> None:
    """Wait until nothing runs or waits any more."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        runs = [*world.runs("watch-experts"), *world.runs("refresh-labels")]
        if all(run["state_type"] in ENDED for run in runs):
            return
        time.sleep(0.5)
    raise AssertionError([(run["name"], run["state_name"]) for run in runs if run["state_type"] not in ENDED])
