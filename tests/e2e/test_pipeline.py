"""The product as a user meets it: a real server, a real worker, the commands as typed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]
ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
SMOKE = str(Path(__file__).parent / "smoke.yaml")


class Installation:
    """An `MTV_HOME` of its own and the commands in it, typed in a folder of its own."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.env = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "MLFLOW_", "MTV_"))} | {"MTV_HOME": str(home)}

    def __call__(self, *command: str, code: int = 0, stdin: str | None = None) -> str:
        done = subprocess.run(
            [str(BIN / command[0]), *command[1:]], cwd=ROOT, env=self.env, capture_output=True, text=True, timeout=300, input=stdin
        )
        assert done.returncode == code, f"{command} ended with {done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-6000:]}"
        assert "Traceback" not in done.stderr + done.stdout, done.stderr
        return done.stdout + done.stderr if code else done.stdout

    def runs(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(self("mtv", "runs", "--json"))
        return found

    def stages(self) -> dict[str, str]:
        return {name: stage["status"] for name, stage in self.runs()[-1]["stages"].items()}


@pytest.fixture(scope="module")
def mtv(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    installation = Installation(tmp_path_factory.mktemp("home"))
    theirs = (
        ROOT / "prefect.toml"
    ).exists()  # services of this checkout are up: `up` leaves the file alone, so plain `prefect` needs telling
    try:
        installation("mtv", "up")
        if theirs:
            installation.env["PREFECT_API_URL"] = json.loads(installation("mtv", "status", "--json"))["prefect_api"]
        yield installation
    finally:
        installation("mtv", "down")
        assert (ROOT / "prefect.toml").exists() is theirs


RUN = ("prefect", "deployment", "run", "mtv/full-pipeline", "--watch", "--param", f"preset={SMOKE}")
STAGES = ["ingest", "label", "train", "evaluate", "export"]


@pytest.fixture(scope="module")
def first(mtv: Installation) -> dict[str, Any]:
    mtv(*RUN)
    return mtv.runs()[-1]


def test_the_run_says_what_it_made(mtv: Installation, first: dict[str, Any]) -> None:
    assert first["status"] == "completed"
    assert mtv.stages() == dict.fromkeys(STAGES, "ran")
    assert first["table"]["tag"].startswith("mtv-")
    assert set(first["experts"]) == {"depth", "detection"}
    assert 0.0 <= first["metrics"]["zero_shot/top1"] <= 1.0
    assert {"mlflow_run_id", "prefect_flow_run_id", "config"} <= {name for name, value in first.items() if value}
    assert (Path(first["export"]) / "config.json").is_file() or (Path(first["export"]) / "siglip" / "config.json").is_file()
    steps = [json.loads(line)["step"] for line in (mtv.home / "runs" / first["run_id"] / "metrics.jsonl").read_text().splitlines()]
    assert steps == [2, 4, 6, 8]


def test_mlflow_has_metrics_lineage_and_the_champion(mtv: Installation, first: dict[str, Any]) -> None:
    script = (
        "import json, sys, mlflow\n"
        "client = mlflow.MlflowClient()\n"
        "run = client.get_run(sys.argv[1])\n"
        "champion = client.get_model_version_by_alias('mtv', 'champion')\n"
        "print(json.dumps({'metrics': run.data.metrics, 'tags': run.data.tags, 'champion': champion.run_id,"
        " 'inputs': [i.dataset.source for i in run.inputs.dataset_inputs]}))\n"
    )
    url = json.loads(mtv("mtv", "status", "--json"))
    tracking = next(service["url"] for service in url["services"] if service["name"] == "mlflow")
    env = mtv.env | {"MLFLOW_TRACKING_URI": tracking}
    done = subprocess.run(
        [sys.executable, "-c", script, first["mlflow_run_id"]], env=env, capture_output=True, text=True, timeout=120, check=True
    )
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["champion"] == first["mlflow_run_id"]
    assert found["metrics"]["zero_shot/top1"] == pytest.approx(first["metrics"]["zero_shot/top1"])
    assert found["tags"]["prefect.flow_run_id"] == first["prefect_flow_run_id"]
    assert any(first["table"]["tag"] in source for source in found["inputs"])


def test_a_second_run_does_nothing_again(mtv: Installation, first: dict[str, Any]) -> None:
    mtv(*RUN)
    assert mtv.stages() == dict.fromkeys(STAGES, "reused")
    again = mtv.runs()[-1]
    for name in ("export", "metrics", "table", "experts", "mlflow_run_id"):
        assert again[name] == first[name], name


def test_another_expert_relabels_only_what_is_its_own(mtv: Installation, first: dict[str, Any]) -> None:
    new = json.dumps({"label.detection.model": "blocks:detection-r2", "label.accept": "immediate"})
    mtv(*RUN, "--param", f"overrides={new}")
    run = mtv.runs()[-1]
    assert mtv.stages() == {"ingest": "reused"} | dict.fromkeys(STAGES[1:], "ran")
    assert run["experts"]["depth"] == first["experts"]["depth"]
    assert run["experts"]["detection"] != first["experts"]["detection"]
    assert run["table"]["tag"] != first["table"]["tag"]


def test_a_bad_parameter_is_refused_before_a_run_exists(mtv: Installation, first: dict[str, Any]) -> None:
    before = len(mtv.runs())
    said = mtv("prefect", "deployment", "run", "mtv/full-pipeline", "--param", 'train={"stepps": 3}', code=1)
    assert "stepps" in said
    said = mtv("mtv", "run", "--preset", SMOKE, "--set", "train.stepps=3", code=2)
    assert "did you mean 'steps'" in said
    assert len(mtv.runs()) == before


def test_a_missing_source_fails_with_words(mtv: Installation, first: dict[str, Any]) -> None:
    said = mtv("mtv", "run", "--preset", SMOKE, "--sources", "/nowhere/*.tar", code=1)
    assert "/nowhere/*.tar" in said
    run = mtv.runs()[-1]
    assert run["status"] == "failed"
    assert "/nowhere/*.tar" in run["message"]
