"""MLflow: what a run was made of, what it measured, what came out. The only importer of mlflow.

Records go to `MLFLOW_TRACKING_URI`; without one, into the database of the local services, which need not run for that. Run, experiment
and model are always named explicitly: nothing depends on MLflow's global state. `run.json` and `metrics.jsonl` are the truth; this is for
looking.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx

from mtv_core.report import StageRef
from mtv_core.runs import RunRecord
from mtv_core.settings import home

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from mtv_core.config import PipelineConfig
    from mtv_core.evaluation.suite import Evaluation
    from mtv_core.store.slice_config import SliceConfig

EXPERIMENT = "mtv"
ALIAS = "champion"

_METRICS_A_BATCH, _PARAMS_A_BATCH = 1000, 100  # mlflow.utils.validation
_VALUE_CHARACTERS = 6000
_SECRET = re.compile(r"secret|token|password|key", re.IGNORECASE)
_PICTURE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".gif", ".svg"}

log = logging.getLogger(__name__)


def tracking_uri() -> str:
    """Where records go."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{_folder() / 'mlflow.db'}"


def start_run(record: RunRecord, config: PipelineConfig, labelled: StageRef) -> Tracked:
    """Open the MLflow run of a run, with its configuration and what it is trained on; a retry goes on in the one it has.

    Raises:
        ConnectionError: nothing answers at the tracking URI.
    """
    client = _client()
    earlier = _find(client, [record.mlflow_run_id])
    if earlier is not None:
        client.update_run(earlier.run_id, status="RUNNING")
        return earlier
    experiment_id = _experiment(client)
    tags = {
        "mtv.run_id": record.run_id,
        "mtv.flow": record.flow,
        "mlflow.source.name": f"mtv/{record.flow}",
        "mlflow.source.type": "JOB",
        "mlflow.source.git.commit": record.git_commit,
        "prefect.flow_run_id": record.prefect_flow_run_id,
        "prefect.url": record.prefect_url,
    }
    run = client.create_run(experiment_id, run_name=record.run_id, tags={name: value for name, value in tags.items() if value})
    tracked = Tracked(client, run.info.run_id, experiment_id)
    tracked.log_config(config.model_dump(mode="json"))
    tracked.log_lineage(labelled, config.train.data)
    return tracked


def resume_run(record: RunRecord, config: PipelineConfig, trained: StageRef) -> Tracked:
    """The MLflow run that a model was trained in, to add to it; a new one if it is not there any more.

    Raises:
        ConnectionError: nothing answers at the tracking URI.
    """
    earlier = _find(_client(), [record.mlflow_run_id, trained.outputs.get("mlflow_run_id")])
    if earlier is not None:
        return earlier
    tracked = start_run(record, config, trained)
    tracked.end("FINISHED")
    return tracked


@dataclass(frozen=True)
class Trace:
    """A run of ours in MLflow that was given some rows, and what of it may show them or stem from them."""

    run_id: str
    name: str
    url: str
    pictures: list[str]  # artifacts of the run that are pictures
    models: list[str]  # '<name> <version>' of registered models, '@<alias>' if it has one


def traces(table: str, tags: Sequence[str], run_ids: Sequence[str]) -> list[Trace]:
    """Runs that were given a table under one of some tags, and the named ones that are there. Nothing is changed.

    Raises:
        ConnectionError: nothing answers at the tracking URI, or there is no record at all.
    """
    _see_a_record()
    client = _client()
    found = {tracked.run_id: tracked for run_id in run_ids if (tracked := _find(client, [run_id])) is not None}
    experiment = client.get_experiment_by_name(EXPERIMENT)
    experiments = [experiment.experiment_id] if experiment is not None else []
    for tag in tags if experiments else ():
        token = None
        while True:
            page = client.search_runs(experiments, f"tags.`mtv.tag` = '{tag}'", max_results=1000, page_token=token)
            for run in page:
                if run.data.tags.get("mtv.table") == table:
                    found[run.info.run_id] = Tracked(client, run.info.run_id, run.info.experiment_id)
            token = page.token
            if not token:
                break
    return [_trace(tracked) for tracked in found.values()]


@dataclass(frozen=True)
class Training:
    """A run of ours in MLflow, with the labels that it was given."""

    run_id: str
    name: str
    url: str
    status: str
    table: str
    tag: str | None
    version: int | None
    revisions: dict[str, str]
    models: list[str]


def trainings() -> list[Training]:
    """Every run that was given a table, the oldest first. Nothing is changed.

    Raises:
        ConnectionError: nothing answers at the tracking URI, or there is no record at all.
    """
    _see_a_record()
    client, found, token = _client(), list[Training](), None
    experiment = client.get_experiment_by_name(EXPERIMENT)
    while experiment is not None:
        order = ["attributes.start_time ASC"]
        page = client.search_runs([experiment.experiment_id], "", max_results=1000, page_token=token, order_by=order)
        found += [_training(client, run) for run in page if "mtv.table" in run.data.tags]
        token = page.token
        if not token:
            break
    return found


@dataclass(frozen=True)
class ModelVersion:
    """A version of a registered model: its files are never changed under the same number."""

    name: str
    version: str
    created: int  # ms since 1970, tells it from a version of the same number in a registry that was made anew
    files: str  # URI of its artifacts


def model_version(uri: str) -> ModelVersion:
    """What `models:/name@alias` or `models:/name/3` names now.

    Raises:
        ValueError: it is not of that form.
        FileNotFoundError: the registry has no such model, alias or version.
        ConnectionError: nothing answers at the tracking URI, or there is no registry at all.
    """
    found = re.fullmatch(r"models:/(?P<name>[^@/]+)(@(?P<alias>[^@/]+)|/(?P<version>\d+))", uri)
    if found is None:
        raise ValueError(f"{uri!r} names no registered model: write models:/NAME@ALIAS, or models:/NAME/VERSION")
    _see_a_record()
    client, name = _client(), found["name"]
    from mlflow.exceptions import MlflowException

    try:
        version = (
            client.get_model_version_by_alias(name, found["alias"]) if found["alias"] else client.get_model_version(name, found["version"])
        )
        files = client.get_model_version_download_uri(name, version.version)
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise ConnectionError(f"the model registry at {tracking_uri()} does not say what {uri} is: {_first_line(error)}") from None
        raise FileNotFoundError(f"there is no {uri} in the model registry at {tracking_uri()}: {_first_line(error)}") from None
    return ModelVersion(name, str(version.version), int(version.creation_timestamp), files)


def download(version: ModelVersion, folder: Path) -> Path:
    """Fetch the files of a version below a folder; returns where they lie.

    Raises:
        FileNotFoundError: they are not where the registry says.
        ConnectionError: the store does not answer.
    """
    _client()
    from mlflow.artifacts import download_artifacts
    from mlflow.exceptions import MlflowException

    try:
        return Path(download_artifacts(artifact_uri=version.files, dst_path=str(folder), tracking_uri=tracking_uri()))
    except (MlflowException, OSError) as error:
        kind = FileNotFoundError if isinstance(error, FileNotFoundError) else ConnectionError
        raise kind(f"the files of {version.name} {version.version} cannot be fetched from {version.files}: {_first_line(error)}") from None


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:300]


def _training(client: MlflowClient, run: Any) -> Training:
    tags, version = run.data.tags, run.data.tags.get("mtv.table_version")
    prefix = "mtv.expert."
    return Training(
        run_id=run.info.run_id,
        name=run.info.run_name or run.info.run_id,
        url=run_url(run.info.experiment_id, run.info.run_id),
        status=str(run.info.status).lower(),
        table=tags["mtv.table"],
        tag=tags.get("mtv.tag"),
        version=int(version) if version is not None else None,
        revisions={name.removeprefix(prefix): revision for name, revision in sorted(tags.items()) if name.startswith(prefix)},
        models=_models(client, run.info.run_id),
    )


def _see_a_record() -> None:
    uri = tracking_uri()
    if uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).is_file():
        raise ConnectionError(f"there is no record of any run at {uri}")


def _models(client: MlflowClient, run_id: str) -> list[str]:
    models = []
    for version in client.search_model_versions(f"run_id = '{run_id}'"):
        aliases = "".join(f" @{alias}" for alias in client.get_model_version(version.name, version.version).aliases)
        models.append(f"{version.name} {version.version}{aliases}")
    return sorted(models)


def _trace(tracked: Tracked) -> Trace:
    client, run_id = tracked.client, tracked.run_id
    name = client.get_run(run_id).info.run_name or run_id
    return Trace(run_id, name, tracked.url, sorted(_pictures(client, run_id, "")), _models(client, run_id))


def _pictures(client: MlflowClient, run_id: str, folder: str) -> Iterator[str]:
    for item in client.list_artifacts(run_id, folder or None):
        if item.is_dir:
            yield from _pictures(client, run_id, item.path)
        elif Path(item.path).suffix.lower() in _PICTURE_SUFFIXES:
            yield item.path


def run_url(experiment_id: str, run_id: str) -> str:
    """The run's page; empty when records go straight into a database, which has none."""
    uri = tracking_uri().rstrip("/")
    return f"{uri}/#/experiments/{experiment_id}/runs/{run_id}?workflowType=machine_learning" if uri.startswith("http") else ""


@dataclass
class Tracked:
    """One MLflow run."""

    client: MlflowClient
    run_id: str
    experiment_id: str
    _waiting: list[Any] = field(default_factory=list, repr=False)
    _last_step: int | None = field(default=None, repr=False)

    @property
    def url(self) -> str:
        """The run's page."""
        return run_url(self.experiment_id, self.run_id)

    def log_metrics(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Record rows of `metrics.jsonl`. Steps recorded before are left out, so a resumed training repeats nothing.

        A server that is away for a while does not stop the training: rows wait and go with the next ones.
        """
        from mlflow.entities import Metric

        if self._last_step is None:
            self._last_step = max((int(m.step) for m in self.client.get_metric_history(self.run_id, "loss")), default=-1)
        now = int(time.time() * 1000)
        for row in rows:
            step = int(row["step"])
            if step <= self._last_step:
                continue
            self._waiting += [Metric(name, value, now, step) for name, value in _numbers(row) if name != "step"]
            self._last_step = step
        try:
            self._flush()
        except Exception as error:
            log.warning("MLflow does not take metrics, they wait: %s", " ".join(str(error).split())[:300])

    def log_evaluation(self, result: Evaluation) -> None:
        """Record metrics, plots and tables. Doing it again overwrites."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self._waiting += [Metric(name, value, now, 0) for name, value in _numbers(result.metrics)]
        self._flush()
        for path in result.plots.values():
            self.client.log_artifact(self.run_id, path, "plots")
        shown = []
        for name, rows in result.tables.items():
            columns = list(dict.fromkeys(column for row in rows for column in row))
            file = f"tables/{name}.json"
            self.client.log_dict(self.run_id, {"columns": columns, "data": [[row.get(column) for column in columns] for row in rows]}, file)
            shown.append({"path": file, "type": "table"})
        self.client.set_tag(self.run_id, "mlflow.loggedArtifacts", json.dumps(shown))  # The UI then draws the files as tables.
        self.client.log_dict(self.run_id, {name: card.model_dump(mode="json") for name, card in result.protocols.items()}, "protocols.json")

    def log_config(self, config: Mapping[str, Any]) -> None:
        """Record the resolved configuration, as parameters to compare and as a file to use again. Credentials are left out."""
        from mlflow.entities import Param

        document = _without_secrets(config)
        params = [Param(name, value) for name, value in _flat(document)]
        for start in range(0, len(params), _PARAMS_A_BATCH):
            self.client.log_batch(self.run_id, params=params[start : start + _PARAMS_A_BATCH])
        self.client.log_dict(self.run_id, document, "config.yaml")

    def log_lineage(self, labelled: StageRef, part: SliceConfig) -> None:
        """Record the table, its version and tag, which part of it, and the revisions of the experts behind its labels."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        source = {"uri": labelled.uri, "version": labelled.version, "tag": labelled.tag, "expert_revisions": labelled.revisions}
        digest = labelled.tag or str(labelled.version)
        if not part.whole:  # of two data sets with one digest MLflow keeps the first
            source["slice"] = part.model_dump(exclude_defaults=True)
            digest = f"{digest}-{part.digest}"
        dataset = Dataset(
            name=Path(labelled.uri).name or labelled.uri,
            digest=digest,
            source_type="lance",
            source=json.dumps(source),
            profile=json.dumps({"rows": labelled.report.rows_in}) if labelled.report.rows_in else None,
        )
        self.client.log_inputs(self.run_id, [DatasetInput(dataset, [InputTag("mlflow.data.context", "training")])])
        tags = {"mtv.table": labelled.uri, "mtv.table_version": labelled.version, "mtv.tag": labelled.tag}
        tags["mtv.slice"] = None if part.whole else str(part)
        tags |= {f"mtv.expert.{expert}": revision for expert, revision in labelled.revisions.items()}
        for name, value in tags.items():
            if value is not None:
                self.client.set_tag(self.run_id, name, str(value))

    def register(self, folder: Path, name: str) -> int:
        """Make an exported folder a version of a registered model, and the champion. Doing it again returns the same version."""
        from mlflow.exceptions import MlflowException

        with contextlib.suppress(MlflowException):  # It is there already.
            self.client.create_registered_model(name, description="Backbones trained by mtv/full-pipeline.")
        self.client.log_artifacts(self.run_id, str(folder), "model")
        run = self.client.get_run(self.run_id)
        source = f"{run.info.artifact_uri}/model"
        found = [v for v in self.client.search_model_versions(f"name = '{name}'") if v.run_id == self.run_id and v.source == source]
        tags = {key: value for key, value in run.data.tags.items() if key.startswith("mtv.")}
        version = found[0] if found else self.client.create_model_version(name, source, self.run_id, tags=tags, await_creation_for=0)
        self.client.set_registered_model_alias(name, ALIAS, version.version)
        return int(version.version)

    def end(self, status: str = "FINISHED") -> None:
        """Close the run: FINISHED, FAILED or KILLED. A server that is away is no reason to fail."""
        try:
            self._flush()
            self.client.set_terminated(self.run_id, status)
        except Exception as error:
            log.warning("MLflow did not hear that the run ended: %s", " ".join(str(error).split())[:300])

    def _flush(self) -> None:
        while self._waiting:
            self.client.log_batch(self.run_id, metrics=self._waiting[:_METRICS_A_BATCH])
            del self._waiting[:_METRICS_A_BATCH]


def _client() -> MlflowClient:
    uri = tracking_uri()
    _see_it_answers(uri)
    if uri.startswith("sqlite:///"):
        Path(uri.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
    # Before the import. Retries: a server that is away is noticed within seconds.
    defaults = {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "60",
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    }
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient

    logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)  # on the terminal of who runs one stage without a server
    logging.getLogger("alembic").setLevel(logging.WARNING)
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def _see_it_answers(uri: str) -> None:
    if not uri.startswith("http"):
        return
    local = "//127.0.0.1" in uri or "//localhost" in uri
    try:
        httpx.get(f"{uri.rstrip('/')}/health", timeout=10, trust_env=not local).raise_for_status()
    except httpx.HTTPError as error:
        raise ConnectionError(
            f"MLflow does not answer at {uri} ({error}): start it with `mtv up`, or unset MLFLOW_TRACKING_URI to record without a server"
        ) from None


def _experiment(client: MlflowClient) -> str:
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(EXPERIMENT)
    if found is None:
        location = None if tracking_uri().startswith("http") else str(_folder() / "artifacts" / EXPERIMENT)
        try:
            return str(client.create_experiment(EXPERIMENT, location, tags={"mlflow.experimentKind": "custom_model_development"}))
        except MlflowException:
            found = client.get_experiment_by_name(EXPERIMENT)  # Another run made it in the meantime.
            if found is None:
                raise
    if found.lifecycle_stage == "deleted":
        client.restore_experiment(found.experiment_id)
    return str(found.experiment_id)


def _find(client: MlflowClient, run_ids: Sequence[str | None]) -> Tracked | None:
    from mlflow.exceptions import MlflowException

    for run_id in run_ids:
        with contextlib.suppress(MlflowException):
            if run_id and (run := client.get_run(run_id)).info.lifecycle_stage == "active":
                return Tracked(client, run_id, run.info.experiment_id)
    return None


def _folder() -> Path:
    return home() / "services" / "mlflow"


def _numbers(row: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    for name, value in row.items():
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            yield name, float(value)


def _flat(document: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(document, Mapping) and document:
        for key, value in document.items():
            yield from _flat(value, f"{prefix}.{key}" if prefix else str(key))
    elif isinstance(document, list) and document and isinstance(document[0], (Mapping, list)):
        for index, value in enumerate(document):
            yield from _flat(value, f"{prefix}.{index}")
    else:
        text = document if isinstance(document, str) else json.dumps(document)
        yield re.sub(r"[^\w\-. :/]", "_", prefix)[:250], text[:_VALUE_CHARACTERS]


def _without_secrets(document: Any, inside: bool = False) -> Any:
    """Credentials stand in `storage_options`, nowhere else."""
    if isinstance(document, Mapping):
        return {
            key: "***" if inside and _SECRET.search(str(key)) else _without_secrets(value, inside or key == "storage_options")
            for key, value in document.items()
        }
    return [_without_secrets(item, inside) for item in document] if isinstance(document, list) else document
