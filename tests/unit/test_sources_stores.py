"""The same sources in other places: memory, HTTP with and without ranges, S3; and what is said when nothing is let out."""

from __future__ import annotations

import functools
import http.server
import os
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from s3_server import client
from source_files import WRITERS, contents, fingerprint, table
from tars import picture, sample, shards, tar

from mtv_core.data.schema import sample_uid
from mtv_core.data.sources import RawSample, SourceConfig, expand, read
from mtv_core.report import Reject

LIMIT = 1 << 20
MANY = contents(20)
UIDS = sorted(sample_uid(one.image, one.captions[0]) for one in MANY)


def everything(uri: str, options: dict[str, str] | None = None) -> list[RawSample | Reject]:
    return [one for shard in expand(SourceConfig(uri=uri), options) for one in read(shard, LIMIT, options)]


def uids(found: list[RawSample | Reject]) -> list[str]:
    return sorted(sample_uid(one.image or b"", one.captions[0].text.decode()) for one in found if isinstance(one, RawSample))


class TestMemory:
    @pytest.mark.parametrize("name", WRITERS)
    def test_every_format(self, tmp_path: Path, name: str) -> None:
        local = WRITERS[name][1](tmp_path / "in", MANY)
        for path in (path for path in (tmp_path / "in").rglob("*") if path.is_file()):
            with fsspec.open(f"memory://{name}/{path.relative_to(tmp_path)}", "wb") as file:
                file.write(path.read_bytes())
        uri = local.replace(str(tmp_path), f"memory://{name}")
        assert uids(everything(uri)) == UIDS
        found, here = expand(SourceConfig(uri=uri)), expand(SourceConfig(uri=local))
        assert [shard.uri.rpartition("/")[2] for shard in found] == [shard.uri.rpartition("/")[2] for shard in here]
        assert [fingerprint(shard) for shard in found] == [fingerprint(shard) for shard in here]

    def test_what_changed_is_seen_at_once(self) -> None:
        for number in (1, 2):
            with fsspec.open("memory://changes/a.tar", "wb") as file:
                file.write(bytes(number))
            [shard] = expand(SourceConfig(uri="memory://changes"))
            assert shard.size == number

    def test_unsafe_names(self) -> None:
        for name, content in {"in/a.jpg": picture(1), "secret.jpg": picture(2)}.items():
            with fsspec.open(f"memory://names/{name}", "wb") as file:
                file.write(content)
        with fsspec.open("memory://names/in/metadata.jsonl", "wb") as file:
            file.write(b'{"file_name": "../secret.jpg", "text": "stolen"}\n{"file_name": "a.jpg", "text": "A"}\n')
        found = everything("memory://names/in")
        assert [(one.key, one.problem and one.problem[0]) for one in found if isinstance(one, RawSample)] == [
            ("../secret.jpg", "UnsafePath"),
            ("a.jpg", None),
        ]


class TestS3:
    @pytest.mark.parametrize("name", WRITERS)
    def test_every_format(self, tmp_path: Path, bucket: str, name: str) -> None:
        local = WRITERS[name][1](tmp_path / "in", MANY)
        for path in (path for path in (tmp_path / "in").rglob("*") if path.is_file()):
            client().upload_file(str(path), bucket.removeprefix("s3://"), str(path.relative_to(tmp_path)))
        uri = local.replace(str(tmp_path), bucket)
        assert uids(everything(uri)) == UIDS
        here = expand(SourceConfig(uri=local))
        assert [fingerprint(shard) for shard in expand(SourceConfig(uri=uri))] == [fingerprint(shard) for shard in here]

    def test_what_changed_is_seen_at_once(self, tmp_path: Path, bucket: str) -> None:
        seen = set()
        for number in range(2):
            client().put_object(Bucket=bucket.removeprefix("s3://"), Key="in/a.tar", Body=bytes([number]) * 1024)
            for uri in ("in", "in/*.tar", "in/a.tar"):
                [shard] = expand(SourceConfig(uri=f"{bucket}/{uri}"))
                assert shard.uri == f"{bucket}/in/a.tar"
                seen.add((number, shard.id))
        assert len(seen) == 2

    def test_names_with_letters_of_globs(self, tmp_path: Path, bucket: str) -> None:
        names = ["a[1].jpg", "b*.jpg", "c?.jpg", "d e+f%20.jpg", "ü#.jpg"]
        for number, name in enumerate(names):
            client().put_object(Bucket=bucket.removeprefix("s3://"), Key=f"in/{name}", Body=picture(number))
        found = [one for one in everything(f"{bucket}/in") if isinstance(one, RawSample)]
        assert {one.key: one.image for one in found} == {name: picture(number) for number, name in enumerate(names)}

    def test_nothing_there(self, bucket: str) -> None:
        for uri in (f"{bucket}/gone.tar", f"{bucket}/gone", f"{bucket}-gone/a.tar"):
            with pytest.raises(FileNotFoundError, match="does not exist"):
                expand(SourceConfig(uri=uri))
        with pytest.raises(FileNotFoundError, match="matches no file; check the pattern"):
            expand(SourceConfig(uri=f"{bucket}/*.tar"))
        with pytest.raises(FileNotFoundError, match="there is no bucket 'mtv-nowhere'"):
            expand(SourceConfig(uri="s3://mtv-nowhere/a/*.tar"))


class _Handler(http.server.SimpleHTTPRequestHandler):
    """Serves a folder, with ranges; some paths are forbidden, broken, or cut."""

    ranges = True

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        path = Path(self.translate_path(self.path))
        status = {"forbidden": 403, "broken": 500}.get(path.name.split(".")[0])
        if status or not path.is_file():
            self.send_error(status or 404)
            return
        content = path.read_bytes()
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        start, end = 0, len(content)
        if self.ranges and asked:
            start, end = int(asked[1]), min(int(asked[2]) + 1 if asked[2] else end, end)
        self.send_response(206 if self.ranges and asked else 200)
        self.send_header("Content-Length", str(end - start))
        self.send_header("ETag", f'"{path.stat().st_mtime_ns}"')
        if self.ranges:
            self.send_header("Accept-Ranges", "bytes")
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(content)}")
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content[start : (start + end) // 2 if path.name.startswith("cut") else end])

    do_HEAD = do_GET  # noqa: N815


class _Plain(_Handler):
    ranges = False


@pytest.fixture(params=[_Handler, _Plain], ids=["ranges", "plain"])
def served(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, Path, bool]]:
    folder = tmp_path / "served"
    folder.mkdir()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(request.param, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", folder, request.param.ranges
    server.shutdown()
    thread.join()
    server.server_close()


class TestHttp:
    def test_tars(self, served: tuple[str, Path, bool]) -> None:
        url, folder, _ = served
        shards(folder, 3, 2)
        found = expand(SourceConfig(uri=f"{url}/{{00000..00002}}.tar"))
        assert [shard.uri for shard in found] == [f"{url}/{n:05d}.tar" for n in range(3)]
        assert [one.key for shard in found for one in read(shard, LIMIT)] == [f"{n:06d}" for n in range(6)]
        assert [fingerprint(shard) for shard in found] == [
            fingerprint(expand(SourceConfig(uri=str(folder / f"{n:05d}.tar")))[0]) for n in range(3)
        ]
        [before] = expand(SourceConfig(uri=f"{url}/00000.tar"))
        os.utime(folder / "00000.tar", ns=(1, 1))
        [after] = expand(SourceConfig(uri=f"{url}/00000.tar"))
        assert before.id != after.id

    def test_huge_members_are_passed_over(self, served: tuple[str, Path, bool]) -> None:
        url, folder, _ = served
        tar(folder / "a.tar", [("big.jpg", bytes(30 * LIMIT)), *sample(1)])
        assert [one.key for one in everything(f"{url}/a.tar")] == ["big", "000001"]

    def test_compressed(self, served: tuple[str, Path, bool]) -> None:
        url, folder, _ = served
        tar(folder / "a.tar.gz", sample(1) + sample(2))
        assert [one.key for one in everything(f"{url}/a.tar.gz?some=query")] == ["000001", "000002"]

    def test_tables_need_ranges(self, served: tuple[str, Path, bool]) -> None:
        url, folder, ranges = served
        pq.write_table(table(MANY), folder / "a.parquet", row_group_size=3)
        if ranges:
            assert uids(everything(f"{url}/a.parquet")) == UIDS
            with pa.OSFile(str(folder / "a.arrow"), "wb") as sink, pa.ipc.new_stream(sink, table(MANY).schema) as writer:
                writer.write_table(table(MANY), max_chunksize=3)
            assert uids(everything(f"{url}/a.arrow")) == UIDS
        else:
            with pytest.raises(OSError, match="knows no ranges"):
                everything(f"{url}/a.parquet")

    @pytest.mark.parametrize(
        ("name", "kind", "message"),
        [
            ("gone.tar", FileNotFoundError, "does not exist"),
            ("forbidden.tar", PermissionError, "credentials"),
            ("broken.tar", OSError, "500"),
            ("some.zip", ValueError, "unzip it"),
            ("some.bin", ValueError, "cannot tell the format"),
        ],
    )
    def test_what_is_refused_is_said(self, served: tuple[str, Path, bool], name: str, kind: type[Exception], message: str) -> None:
        for ending in ("zip", "bin"):
            (served[1] / f"some.{ending}").write_bytes(b"x")
        with pytest.raises(kind, match=message) as caught:
            everything(f"{served[0]}/{name}?token=secret")
        assert "secret" not in str(caught.value)

    def test_a_connection_that_ends_early_is_no_damage(self, served: tuple[str, Path, bool]) -> None:
        """The data may be fine: the next ingest tries again."""
        url, folder, _ = served
        tar(folder / "cut.tar", [member for n in range(50) for member in sample(n)])
        with pytest.raises(OSError, match=r"cut\.tar"):
            everything(f"{url}/cut.tar")

    def test_nobody_there(self) -> None:
        with pytest.raises(OSError, match=r"127\.0\.0\.1"):
            everything("http://127.0.0.1:9/a.tar")


class TestErrors:
    def test_no_credentials(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            monkeypatch.delenv(name)
        monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
        monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
        with pytest.raises(PermissionError, match="AWS_ACCESS_KEY_ID"):
            expand(SourceConfig(uri="s3://bucket/a.tar"), {"endpoint": "http://127.0.0.1:9"})

    def test_a_store_that_is_not_installed(self) -> None:
        with pytest.raises(ValueError, match="cannot open"):
            expand(SourceConfig(uri="nosuch://bucket/a.tar"))

    @pytest.mark.skipif(os.getuid() == 0, reason="root may read everything")
    def test_no_permission(self, tmp_path: Path) -> None:
        (tmp_path / "in").mkdir(mode=0)
        with pytest.raises(PermissionError, match="may not be read"):
            expand(SourceConfig(uri=str(tmp_path / "in")))
