"""The whole of the data's way on a file system and in an object store, shards and table both there: what is seen is the same."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
import label_tables
import pytest
from s3_server import ENDPOINT_VARIABLE
from tars import picture, sample, tar

from mtv_core import experts, ingest, labelling
from mtv_core.data.files import Files
from mtv_core.data.sources import SourceConfig
from mtv_core.executor import SerialExecutor
from mtv_core.ingest_config import IngestConfig
from mtv_core.store import locks
from mtv_core.store.dataset import open_dataset
from mtv_core.store.table import Table

CHILD = Path(__file__).parents[1] / "fault" / "ingest_child.py"
ROOT = CHILD.parents[2]
POINTS = (
    "ingest.staged:3",
    "ingest.shard_done:2",
    "ingest.dedup",
    "ingest.fragment_written:2",
    "ingest.rejects_committed",
    "ingest.samples_committed",
    "ingest.ledger_committed",
)


@dataclass
class Place:
    """A folder for shards and a table beside it."""

    uri: str
    scratch: Path  # where tars are made before they go there

    @property
    def table(self) -> str:
        return f"{self.uri}/table"

    @property
    def source(self) -> str:
        return f"{self.uri}/in"

    def put(self, name: str, members: list[tuple[str, bytes]], cut: int = 0) -> None:
        content = tar(self.scratch / "made.tar", members).read_bytes()
        Files(self.source).write(name, content[: len(content) - cut])

    def fill(self) -> None:
        """5 shards: 23 good samples, two duplicates, a broken image, a missing caption, one cut short."""
        for shard in range(2):
            self.put(f"{shard}.tar", [member for n in range(8) for member in sample(8 * shard + n)])
        self.put("2.tar", [*sample(3), ("x.jpg", picture(40)[:150]), ("x.txt", b"x"), *(m for n in range(30, 33) for m in sample(n))])
        self.put("3.tar", [m for n in range(50, 56) for m in sample(n)], cut=11_000)
        self.put("4.tar", [("y.jpg", picture(41)), *sample(5, "again")])

    def run(self, **config: Any) -> ingest.IngestResult:
        return ingest.run([SourceConfig(uri=self.source)], self.table, IngestConfig(rows_per_fragment=7, **config), SerialExecutor())

    def opened(self) -> Table:
        return Table.open(self.table)

    def names(self) -> dict[str, str]:
        """Every file or object of the table → what tells its content."""
        files, path = (
            fsspec.core.url_to_fs(self.table, use_listings_cache=False) if "://" in self.table else fsspec.core.url_to_fs(self.table)
        )
        found = files.find(path, detail=True)
        return {name.removeprefix(path): str(info.get("ETag") or (info["size"], info["mtime"])) for name, info in found.items()}

    def state(self) -> dict[str, Any]:
        """All that can be seen, without what names the place; and that nothing is left over."""
        table = self.opened()
        dataset = table.dataset()
        named = {file.path for fragment in dataset.get_fragments() for file in fragment.data_files()}
        assert set(table.files.names("samples.lance/data")) == named
        assert not [name for name in self.names() if name.startswith("/_staging/")]
        place = {entry["shard"]: entry["uri"].removeprefix(self.uri) for entry in table.ledger.read().to_pylist()}
        return {
            "rows": [without(row, "ingest_id", shard=place[row["shard"]]) for row in dataset.to_table().to_pylist()],
            "fragments": [fragment.physical_rows for fragment in dataset.get_fragments()],
            "rejects": sorted(
                json.dumps(without(row, "location", "message", shard=place[row["shard"]])) for row in table.rejects.read().to_pylist()
            ),
            "ledger": sorted(
                json.dumps(without(row, "identity", "ingest_id", "replaces", shard=place[row["shard"]], uri=""))
                for row in table.ledger.read().to_pylist()
            ),
        }


def without(row: dict[str, Any], *names: str, **instead: Any) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in names} | instead


@pytest.fixture(params=["local", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    uri = str(tmp_path / "place") if request.param == "local" else request.getfixturevalue("bucket")
    return Place(uri, tmp_path)


@pytest.fixture
def on_s3(bucket: str, tmp_path: Path) -> Place:
    return Place(bucket, tmp_path)


@pytest.fixture(scope="module")
def truth(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What an undisturbed run on a file system ends with."""
    folder = tmp_path_factory.mktemp("truth")
    place = Place(str(folder / "place"), folder)
    place.fill()
    place.run()
    state = place.state()
    assert len(state["rows"]) > 20
    assert len(state["ledger"]) == 5
    return state


def test_the_same_wherever_it_is(place: Place, truth: dict[str, Any]) -> None:
    place.fill()
    result = place.run()
    assert place.state() == truth
    assert result.rows == len(truth["rows"])


def test_again_changes_nothing(place: Place) -> None:
    place.fill()
    first = place.run()
    before = {name: content for name, content in place.names().items() if "/_locks/" not in name}
    again = place.run()
    assert (again.version, again.report.rows_in, again.report.rows_skipped) == (first.version, 0, first.rows)
    assert {name: content for name, content in place.names().items() if "/_locks/" not in name} == before


def test_it_grows_by_what_is_new(place: Place) -> None:
    place.fill()
    first = place.run()
    place.put("5.tar", [member for n in range(60, 64) for member in sample(n)])
    grown = place.run()
    assert (grown.rows, grown.report.rows_in, grown.report.rows_skipped) == (first.rows + 4, 4, first.rows)
    assert [row["key"] for row in place.state()["rows"][-4:]] == [f"{n:06d}" for n in range(60, 64)]


def test_a_shard_that_changed_is_read_again_and_told_of(place: Place) -> None:
    place.put("0.tar", [member for n in (1, 2, 3) for member in sample(n)])
    place.put("1.tar", sample(9))
    place.run()
    place.put("0.tar", [member for n in (1, 2, 4) for member in sample(n)])  # of the same size
    result = place.run()
    assert result.rows == 5
    [note] = result.notes
    assert note.startswith(f"{place.source}/0.tar changed since it was ingested: 1 rows are new, 2 are as before; 1 rows of the table")


def test_refusals_are_tried_again(place: Place) -> None:
    place.put("0.tar", [*sample(1), ("big.jpg", picture(5, size=(64, 64))), ("big.txt", b"a big one")])
    place.run(max_pixels=1000)
    assert place.opened().rejects.counts("ingest") == {"TooManyPixels": 1}
    ingest.retry([SourceConfig(uri=place.source)], place.table, IngestConfig(), SerialExecutor())
    assert place.opened().rejects.counts("ingest") == {}
    assert len(place.state()["rows"]) == 2


def child(place: Place, executor: str = "serial", **environment: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    return subprocess.run(
        [sys.executable, str(CHILD), place.source, place.table, executor],
        env=os.environ | {"PYTHONPATH": path} | environment,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )


@pytest.mark.fault
@pytest.mark.parametrize("point", POINTS)
def test_killed_and_run_again(point: str, on_s3: Place, truth: dict[str, Any]) -> None:
    on_s3.fill()
    died = child(on_s3, MTV_FAULT=point)
    assert died.returncode == -signal.SIGKILL, died.stderr
    dataset = open_dataset(f"{on_s3.table}/samples.lance")
    assert dataset is None or dataset.count_rows() == len(truth["rows"])
    on_s3.run()
    assert on_s3.state() == truth


@pytest.mark.fault
def test_two_ingests_at_once(place: Place, truth: dict[str, Any]) -> None:
    """Of the same shards, by processes of their own: whoever commits second finds them done, the last one clears up."""
    place.fill()
    with ThreadPoolExecutor() as threads:
        for done in threads.map(lambda _: child(place), range(2)):
            assert done.returncode == 0, done.stderr
    assert place.state() == truth


@pytest.mark.fault
def test_workers_of_a_cluster(on_s3: Place, truth: dict[str, Any]) -> None:
    """They find store and credentials as the driver does: in the environment."""
    on_s3.fill()
    done = child(on_s3, "dask")
    assert done.returncode == 0, done.stderr
    assert on_s3.state() == truth


def test_labels_and_tags(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(experts, "load", label_tables.QuickExpert)
    table = Table.create_or_open(place.table)
    table.append(label_tables.sample_rows(12), 4)
    config = label_tables.config(commit_fragments=2)
    first = labelling.run(place.table, config, SerialExecutor())
    table.append(label_tables.sample_rows(5, first=12), 4)
    second = labelling.run(place.table, config, SerialExecutor())
    assert table.label_counts()["depth"] == {second.revisions["depth"]: 17}
    assert Table.at(place.table, first.tag).dataset.count_rows() == 12
    assert Table.at(place.table, second.tag).dataset.count_rows() == 17
    assert labelling.run(place.table, config, SerialExecutor()).tag == second.tag
    assert not [name for name in place.names() if name.startswith("/_staging/")]


def test_who_removes_keeps_writers_out(place: Place) -> None:
    place.fill()
    with locks.maintenance(Table.create_or_open(place.table), "takedown"):
        with pytest.raises(OSError, match=r"takedown .* is at work"):
            place.run()
        assert not Table.create_or_open(place.table).exists()
    place.run()


def test_a_store_without_conditional_writes_gets_no_table(on_s3: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    on_s3.put("0.tar", sample(1))
    monkeypatch.setattr(Files, "write_once", lambda *_: True)
    with pytest.raises(OSError, match="ignores conditional writes"):
        on_s3.run()
    monkeypatch.undo()
    assert on_s3.names() == {}


def found(secrets: list[bytes], *texts: str | bytes) -> bool:
    contents = [text.encode() if isinstance(text, str) else text for text in texts]
    return any(secret in content for secret in secrets for content in contents)


class TestCredentials:
    """A secret in the environment opens the store, and is written nowhere."""

    @pytest.fixture
    def credentials(self, on_s3: Place, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[bytes]]:
        """What is to be seen nowhere. moto takes any; another server has given us one."""
        if ENDPOINT_VARIABLE not in os.environ:
            monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wJalrXUtnFEMIK7MDENGbPxRfiCYEXAMPLEKEY")
            monkeypatch.setenv("AWS_SESSION_TOKEN", "FwoGZXIvYXdzEBYaDKq3sessiontokenofthistest")
        fsspec.get_filesystem_class("s3").clear_instance_cache()
        names = ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
        yield [os.environ[name].encode() for name in names if name in os.environ]
        fsspec.get_filesystem_class("s3").clear_instance_cache()

    def test_nothing_that_is_written_holds_them(self, on_s3: Place, credentials: list[bytes]) -> None:
        """Table, reports, rejects, run folder and everything else of `MTV_HOME`, and what is said meanwhile."""
        on_s3.fill()
        home = on_s3.scratch / "home"
        done = self.command(home, "ingest", "--sources", on_s3.source, "--table", on_s3.table, "--set", "compute.workers=2")
        assert done.returncode == 0, done.stderr
        assert done.stdout
        assert not found(credentials, done.stdout, done.stderr)
        assert len(list(home.rglob("run.json"))) == 1
        for path in home.rglob("*"):
            assert path.is_dir() or not found(credentials, path.read_bytes()), path
        files, path = fsspec.core.url_to_fs(on_s3.uri)
        names = files.find(path)
        assert len(names) > 20
        for name in names:
            assert not found(credentials, name, files.cat_file(name)), name

    def test_given_where_they_do_not_belong_they_go_no_further(self, on_s3: Place, credentials: list[bytes]) -> None:
        secret, home = credentials[0].decode(), on_s3.scratch / "home"
        for arguments in (
            ["--sources", on_s3.source, "--table", f"s3://AKIA:{secret}@bucket/table"],
            ["--sources", f"https://host/0.tar?X-Amz-Signature={secret}", "--table", on_s3.table],
            ["--sources", on_s3.source, "--table", on_s3.table, "--set", f"table.storage_options.aws_secret_access_key={secret}"],
        ):
            done = self.command(home, "ingest", *arguments)
            assert done.returncode != 0
            assert "credential" in " ".join(done.stderr.split())
            assert not found(credentials, done.stdout, done.stderr)
        assert not any(found(credentials, path.read_bytes()) for path in home.rglob("*") if path.is_file())

    @staticmethod
    def command(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
        """`mtv` in a process of its own."""
        return subprocess.run(
            [sys.executable, "-m", "flows.cli", *arguments],
            env=os.environ | {"MTV_HOME": str(home), "PYTHONPATH": str(ROOT), "COLUMNS": "300"},
            capture_output=True,
            text=True,
            timeout=250,
            check=False,
        )

    def test_neither_messages_nor_logs_do(self, on_s3: Place, credentials: list[bytes]) -> None:
        """Whatever goes wrong: no bucket, no source, no server, no store at all."""
        on_s3.put("0.tar", sample(1))
        broken = [
            {"table": "s3://mtv-nowhere/table"},
            {"source": "s3://mtv-nowhere/in"},
            {"source": f"{on_s3.uri}/nothing"},
            {"table": "memory://table"},
            {"options": {"aws_endpoint": "http://127.0.0.1:1"}, "table": "s3://elsewhere/table"},
        ]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("s3fs.S3FileSystem.retries", 1)
            patch.setenv("AWS_MAX_ATTEMPTS", "1")
            for case in broken:
                done = self.failing(on_s3, **case)
                assert done.returncode == 1, case
                assert "Error: " in done.stderr
                assert not found(credentials, done.stdout, done.stderr), case

    @staticmethod
    def failing(place: Place, table: str | None = None, source: str | None = None, options: dict[str, str] | None = None) -> Any:
        """An ingest in a process of its own that shows its whole traceback."""
        program = (
            "import json, logging, sys\n"
            "logging.basicConfig(level=logging.INFO)\n"
            "from mtv_core import ingest\n"
            "from mtv_core.data.sources import SourceConfig\n"
            "from mtv_core.executor import SerialExecutor\n"
            "from mtv_core.ingest_config import IngestConfig\n"
            "source, table, options = json.loads(sys.argv[1])\n"
            "ingest.run([SourceConfig(uri=source)], table, IngestConfig(), SerialExecutor(), storage_options=options)\n"
        )
        arguments = json.dumps([source or place.source, table or place.table, options])
        return subprocess.run(
            [sys.executable, "-c", program, arguments],
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=200,
            check=False,
        )
