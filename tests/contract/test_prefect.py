"""What the flows and the deployments rely on in Prefect, on a real server."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any
from uuid import UUID, uuid4

import pytest
import yaml
from packaging.specifiers import SpecifierSet
from packaging.version import Version
from PIL import Image
from prefect import Flow, flow, task
from prefect.artifacts import Artifact
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterDeploymentId
from prefect.client.schemas.objects import FlowRun
from prefect.events import emit_event
from prefect.events.schemas.automations import AutomationCore
from prefect.exceptions import PrefectHTTPStatusError
from prefect.utilities.callables import parameter_schema
from pydantic import BaseModel

from infra.local import deploy
from mtv_core.config import resolve_config
from mtv_core.labelling_config import LabelConfig
from mtv_core.report import StageRef
from tasks import artifacts

pytestmark = [pytest.mark.prefect, pytest.mark.usefixtures("prefect_server")]
ENTRIES = {entry["name"]: entry for entry in yaml.safe_load(deploy.PREFECT_FILE.read_text())["deployments"]}


@pytest.fixture
def client() -> Iterator[SyncPrefectClient]:
    with get_client(sync_client=True) as client:
        yield client


def load(name: str) -> Flow[..., Any]:
    from prefect.flows import load_flow_from_entrypoint

    return load_flow_from_entrypoint(str(deploy.ROOT / ENTRIES[name]["entrypoint"]))


def create(client: SyncPrefectClient, a_flow: Flow[..., Any], name: str, parameters: dict[str, Any]) -> UUID:
    return client.create_deployment(
        client.create_flow(a_flow),
        name=name,
        parameters=parameters,
        parameter_openapi_schema=parameter_schema(a_flow).model_dump_for_openapi(),
        enforce_parameter_schema=True,
    )


def runs_of(client: SyncPrefectClient, deployment_id: UUID) -> list[FlowRun]:
    return client.read_flow_runs(flow_run_filter=FlowRunFilter(deployment_id=FlowRunFilterDeploymentId(any_=[deployment_id])))


# ---------------------------------------------------------------- results


def stage(calls: list[str], **options: Any) -> Any:
    @task(
        name=f"stage-{uuid4().hex[:6]}",
        persist_result=True,
        result_serializer="json",
        cache_key_fn=lambda context, parameters: parameters["key"],
        **options,
    )
    def work(key: str, run_id: str) -> StageRef:
        calls.append(run_id)
        return StageRef(stage="ingest", run_id=run_id, uri="/t", version=3, revisions={"depth": "d"})

    return work


def test_a_result_under_the_same_key_is_reused_and_comes_back_as_what_it_was() -> None:
    calls: list[str] = []
    work, key = stage(calls), uuid4().hex

    @flow(name="mtv")
    def pipeline(key: str, run_id: str, again: bool = False) -> StageRef:
        ref: StageRef = work.with_options(refresh_cache=True)(key=key, run_id=run_id) if again else work(key=key, run_id=run_id)
        return ref

    first = pipeline(key, "r1")
    assert pipeline(key, "r2") == first == StageRef(stage="ingest", run_id="r1", uri="/t", version=3, revisions={"depth": "d"})
    assert pipeline(uuid4().hex, "r3").run_id == "r3"
    assert pipeline(key, "r4", again=True).run_id == "r4"
    assert pipeline(key, "r5").run_id == "r4"
    assert calls == ["r1", "r3", "r4"]


@pytest.mark.parametrize(("error", "attempts"), [(OSError, 2), (ValueError, 1)])
def test_only_what_may_pass_by_itself_is_retried(error: type[Exception], attempts: int) -> None:
    calls = []

    def worth(task: Any, run: Any, state: Any) -> bool:
        try:
            state.result()
        except ValueError:
            return False
        except Exception:
            return True
        return False

    @task(retries=1, retry_condition_fn=worth)
    def work() -> None:
        calls.append(1)
        raise error("x")

    @flow(name="mtv")
    def pipeline() -> None:
        work()

    with pytest.raises(error):
        pipeline()
    assert len(calls) == attempts


# ---------------------------------------------------------------- deployments


@pytest.mark.parametrize("name", list(ENTRIES))
def test_every_deployment_is_of_the_flow_mtv_and_its_parameters_are_the_flows(name: str) -> None:
    entry, a_flow = ENTRIES[name], load(name)
    assert a_flow.name == "mtv"
    known = set(parameter_schema(a_flow).properties)
    assert set(entry.get("parameters", {})) <= known
    assert all(set(trigger["parameters"]) <= known for trigger in entry.get("triggers", []))


def test_parameters_merge_at_the_top_level_only(client: SyncPrefectClient) -> None:
    class Train(BaseModel, extra="forbid"):
        steps: int = 1
        seed: int = 0

    @flow(name="mtv")
    def pipeline(preset: str = "x", train: Train | None = None) -> None: ...

    deployment = create(client, pipeline, "merge", {"preset": "demo", "train": {"steps": 5}})
    run = client.create_flow_run_from_deployment(deployment, parameters={"train": {"seed": 7}})
    assert run.parameters == {"preset": "demo", "train": {"seed": 7}}


@pytest.mark.parametrize("wrong", [{"train": {"stepz": 3}}, {"train": {"steps": "many"}}])
def test_a_wrong_parameter_is_refused_before_a_run_exists(client: SyncPrefectClient, wrong: dict[str, Any]) -> None:
    deployment = create(client, load("full-pipeline"), "refuse", {"preset": "demo"})
    with pytest.raises(PrefectHTTPStatusError) as refused:
        client.create_flow_run_from_deployment(deployment, parameters=wrong)
    assert refused.value.response.status_code == 409
    assert runs_of(client, deployment) == []


def test_an_unknown_stage_is_refused_by_the_command_line(client: SyncPrefectClient, prefect_server: str) -> None:
    """The server itself lets a key at the top level pass, so nothing may rely on it there."""
    deployment = create(client, load("full-pipeline"), "refuse-unknown", {"preset": "demo"})
    command = [sys.executable, "-m", "prefect", "deployment", "run", "mtv/refuse-unknown", "--param", "trian={}"]
    done = subprocess.run(command, env=os.environ | {"PREFECT_API_URL": prefect_server}, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "'trian'" in done.stdout + done.stderr
    assert runs_of(client, deployment) == []


def test_an_event_starts_the_refresh_of_the_table_it_names(client: SyncPrefectClient, prefect_server: str) -> None:
    from prefect.cli.deploy._triggers import _initialize_deployment_triggers

    deployment = create(client, load("refresh-labels"), "refresh-labels", {"preset": "demo"})
    triggers = _initialize_deployment_triggers("refresh-labels", [dict(spec) for spec in ENTRIES["refresh-labels"]["triggers"]])
    for trigger in triggers:
        trigger.set_deployment_id(deployment)
        response = client.request("POST", "/automations/", json=trigger.as_automation().model_dump(mode="json"))
        response.raise_for_status()
    time.sleep(2)  # An automation is listened for a moment after it was made.
    config = resolve_config("demo", {}, {"label.detection": None, "label.depth.model": '/models/it\'s {{ here }} "é" <&>'}).config
    wanted = {
        "preset": "other",
        "sources": [source.model_dump(mode="json") for source in config.sources],
        "table": {"uri": "/tables/t 1", "storage_options": {"aws_region": "eu"}},
        "label": config.label.model_dump(mode="json"),
        "overrides": {"compute.workers": 1},
        "update": {"expert": "depth", "revision": "d2", "accepted": "d1"},
    }
    emit_event("mtv.expert.updated", resource={"prefect.resource.id": "mtv.expert.depth", "mtv.table": "/tables/t 1"}, payload=wanted)
    deadline = time.monotonic() + 60
    while not (runs := runs_of(client, deployment)) and time.monotonic() < deadline:
        time.sleep(0.3)
    assert [run.parameters for run in runs] == [wanted]
    again = resolve_config("demo", {"label": LabelConfig.model_validate(runs[0].parameters["label"])}, wanted["overrides"]).config
    assert again.label == config.label


def test_pool_automations_and_limit_are_made_once_and_the_users_limit_stays(client: SyncPrefectClient, prefect_server: str) -> None:
    for _ in range(2):
        deploy.make_pool(prefect_server, "mtv")
        deploy.make_the_rest(prefect_server)
        client.request("PATCH", f"/v2/concurrency_limits/{deploy.GPU_LIMIT}", json={"limit": 4})
    found = client.request("POST", "/automations/filter", json={"automations": {"name": {"any_": ["crash-zombie-flows"]}}}).json()
    assert len(found) == 1
    assert found[0]["trigger"]["within"] == 90
    assert client.request("GET", f"/v2/concurrency_limits/{deploy.GPU_LIMIT}").json()["limit"] == 4


def test_the_automations_are_of_the_schema() -> None:
    for automation in yaml.safe_load(deploy.AUTOMATIONS_FILE.read_text()):
        AutomationCore.model_validate(automation)


# ---------------------------------------------------------------- what a person sees


def test_artifacts_of_every_kind(client: SyncPrefectClient) -> None:
    stage = f"s{uuid4().hex[:6]}"

    @flow(name="mtv")
    def pipeline() -> None:
        progress = artifacts.ProgressArtifact(stage, every=0)
        progress(1, 4, "working")
        artifacts.report(StageRef(stage=stage, run_id="r", uri="/t", version=3))
        artifacts.link(f"{stage}-link", "http://127.0.0.1:5000/#/x", "The run in MLflow")
        artifacts.picture(f"{stage}-picture", Image.new("RGB", (8, 8), "red"), "labels")

    pipeline()
    found = {kind: Artifact.get(key) for kind, key in [
        ("progress", f"{stage}-progress"), ("table", f"{stage}-report"), ("markdown", f"{stage}-link"), ("image", f"{stage}-picture"),
    ]}  # fmt: skip
    assert {kind: artifact.type for kind, artifact in found.items() if artifact} == {kind: kind for kind in found}
    assert found["progress"] is not None
    assert float(str(found["progress"].data)) == 25.0
    assert "http://127.0.0.1:5000/#/x" in str(found["markdown"].data if found["markdown"] else "")


# ---------------------------------------------------------------- versions


def test_fastapi_is_one_that_this_prefect_starts_with() -> None:
    assert importlib.metadata.version("prefect") == "3.8.8"
    assert Version(importlib.metadata.version("fastapi")) in SpecifierSet(">=0.139,<0.151")


def test_sqlalchemy_is_one_that_this_prefects_scheduler_works_with() -> None:
    """With 2.1 the insert of scheduled runs raises, in the log of the server alone, and no schedule starts anything."""
    assert Version(importlib.metadata.version("sqlalchemy")) in SpecifierSet(">=2.0.40,<2.1")
