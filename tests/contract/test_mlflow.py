"""What `tasks.tracking` relies on in MLflow, on a real SQLite database."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from mtv_core.config import PipelineConfig
from mtv_core.evaluation.suite import Evaluation
from mtv_core.report import StageRef
from mtv_core.runs import RunRecord
from mtv_core.store.slice_config import SliceConfig
from mtv_core.training.config import TrainConfig
from tasks import tracking
from tasks.tracking import Tracked

CONFIG = PipelineConfig(sources="blocks://8", table={"storage_options": {"aws_sse_kms_key_id": "hush", "region": "eu"}})
LABELLED = StageRef(stage="label", run_id="r1", uri="/data/t.lance", version=7, tag="mtv-0123456789ab", revisions={"depth": "d" * 16})


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        home = tmp_path_factory.mktemp("home")
        patch.setenv("MTV_HOME", str(home))
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        yield home


@pytest.fixture(scope="module")
def tracked(store: Path) -> Tracked:
    record = RunRecord(run_id="20260101T000000-abcdef", git_commit="c0ffee", prefect_flow_run_id="f-1", prefect_url="http://p/f-1")
    return tracking.start_run(record, CONFIG, LABELLED)


def test_the_database_and_the_artifacts_lie_in_the_home(store: Path, tracked: Tracked) -> None:
    assert (store / "services" / "mlflow" / "mlflow.db").is_file()
    assert tracked.client.get_run(tracked.run_id).info.artifact_uri.startswith(str(store / "services" / "mlflow" / "artifacts"))
    assert tracked.url == ""


def test_lineage_names_table_version_tag_and_revisions(tracked: Tracked) -> None:
    run = tracked.client.get_run(tracked.run_id)
    dataset = run.inputs.dataset_inputs[0].dataset
    assert (dataset.source_type, dataset.digest) == ("lance", LABELLED.tag)
    assert json.loads(dataset.source) == {"uri": "/data/t.lance", "version": 7, "tag": LABELLED.tag, "expert_revisions": LABELLED.revisions}
    wanted = {"mlflow.source.git.commit": "c0ffee", "prefect.flow_run_id": "f-1", "prefect.url": "http://p/f-1", "mtv.table_version": "7"}
    assert wanted.items() <= run.data.tags.items()


def test_lineage_names_the_slice(tracked: Tracked) -> None:
    """MLflow keeps the first of what has one name and digest, so a slice has a digest of its own."""
    digests = {LABELLED.tag}
    for fraction in (0.25, 0.5):
        config = CONFIG.model_copy(update={"train": TrainConfig(data=SliceConfig(fraction=fraction, where="width > 9"))})
        run_id = tracking.start_run(RunRecord(run_id=f"slice-{fraction}"), config, LABELLED).run_id
        run = tracked.client.get_run(run_id)
        dataset = run.inputs.dataset_inputs[0].dataset
        assert json.loads(dataset.source)["slice"] == {"where": "width > 9", "fraction": fraction}
        assert run.data.tags["mtv.slice"] == f"where width > 9, fraction {fraction}"
        assert len(dataset.digest) <= 36  # MLflow's limit
        digests.add(dataset.digest)
    assert len(digests) == 3
    assert "mtv.slice" not in tracked.client.get_run(tracked.run_id).data.tags


def test_the_configuration_is_there_without_its_credentials(tracked: Tracked) -> None:
    params = tracked.client.get_run(tracked.run_id).data.params
    assert params["train.steps"] == str(CONFIG.train.steps)
    assert params["table.storage_options.aws_sse_kms_key_id"] == "***"
    text = Path(tracked.client.download_artifacts(tracked.run_id, "config.yaml")).read_text()
    assert "hush" not in text
    assert "region: eu" in text


def test_a_resumed_training_records_no_step_twice(tracked: Tracked) -> None:
    rows = [{"step": step, "loss": 1 / step, "loss/depth": 0.5, "note": "text"} for step in range(1, 1101)]
    tracked.log_metrics(rows[:600])
    again = tracking.resume_run(
        RunRecord(run_id="x"), CONFIG, StageRef(stage="train", run_id="x", uri="", outputs={"mlflow_run_id": tracked.run_id})
    )
    again.log_metrics(rows[500:])
    history = tracked.client.get_metric_history(tracked.run_id, "loss")
    assert [m.step for m in history] == [row["step"] for row in rows]
    assert "note" not in tracked.client.get_run(tracked.run_id).data.metrics


def test_metrics_wait_for_a_store_that_is_away(tracked: Tracked, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(*args: object, **kwargs: object) -> None:
        raise ConnectionError("gone")

    with monkeypatch.context() as patch:
        patch.setattr(tracked.client, "log_batch", away)
        tracked.log_metrics([{"step": 5000, "waited": 1.0}])
    assert "waited" not in tracked.client.get_run(tracked.run_id).data.metrics
    tracked.log_metrics([{"step": 5001, "waited": 2.0}])
    assert [m.value for m in tracked.client.get_metric_history(tracked.run_id, "waited")] == [1.0, 2.0]


def test_an_evaluation_has_metrics_plots_and_tables(tracked: Tracked, tmp_path: Path) -> None:
    plot = tmp_path / "losses.png"
    plot.write_bytes(b"png")
    tracked.log_evaluation(
        Evaluation(
            metrics={"zero_shot/top1": 0.5}, plots={"losses": str(plot)}, tables={"classes": [{"class": "cube", "top1": 1.0}]}, protocols={}
        )
    )
    run = tracked.client.get_run(tracked.run_id)
    assert run.data.metrics["zero_shot/top1"] == 0.5
    assert {file.path for file in tracked.client.list_artifacts(tracked.run_id, "plots")} == {"plots/losses.png"}
    table = json.loads(Path(tracked.client.download_artifacts(tracked.run_id, "tables/classes.json")).read_text())
    assert table == {"columns": ["class", "top1"], "data": [["cube", 1.0]]}


def test_registering_twice_is_one_version_and_the_champion(tracked: Tracked, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    versions = [tracked.register(tmp_path, "mtv-contract") for _ in range(2)]
    assert versions == [1, 1]
    champion = tracked.client.get_model_version_by_alias("mtv-contract", "champion")
    assert champion.run_id == tracked.run_id
    assert champion.tags["mtv.tag"] == LABELLED.tag
    assert Path(tracked.client.get_model_version_download_uri("mtv-contract", "1"), "config.json").is_file()


def test_a_run_that_ends_keeps_its_status(tracked: Tracked) -> None:
    tracked.end("FAILED")
    assert tracked.client.get_run(tracked.run_id).info.status == "FAILED"


def test_a_deleted_run_is_not_added_to(tracked: Tracked) -> None:
    tracked.client.delete_run(tracked.run_id)
    trained = LABELLED.model_copy(update={"outputs": {"mlflow_run_id": tracked.run_id}})
    fresh = tracking.resume_run(RunRecord(run_id="y"), CONFIG, trained)
    assert fresh.run_id != tracked.run_id
    assert tracked.client.get_run(fresh.run_id).info.status == "FINISHED"


def test_no_server_is_a_message_that_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    with pytest.raises(ConnectionError, match="mtv up"):
        tracking.start_run(RunRecord(run_id="z"), CONFIG, LABELLED)
