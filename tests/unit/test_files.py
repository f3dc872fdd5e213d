"""Small files, here and in an object store: whole or not at all, seen by others at once, and no credential in sight."""

from __future__ import annotations

import gc
import pickle
import secrets
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest import mock

import fsspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from s3_server import client

from mtv_core.config import ConfigError, PipelineConfig, resolve_config
from mtv_core.data.files import Files, filesystem, fsspec_options, lance_options
from mtv_core.data.store_errors import of_lance
from mtv_core.data.uris import check_uri
from mtv_core.store import preflight
from mtv_core.store.config import TableConfig
from mtv_core.store.dataset import open_dataset
from mtv_core.store.preflight import StoreError, check_store


@pytest.fixture(params=["local", "s3"])
def files(request: pytest.FixtureRequest, tmp_path: Path) -> Files:
    return Files(f"{tmp_path if request.param == 'local' else request.getfixturevalue('bucket')}/folder")


def fail(files: Files, name: str, content: bytes) -> None:
    try:
        with files.create(name) as file:
            file.write(content)
            raise RuntimeError("half-way")
    finally:
        del file
        gc.collect()


class TestFiles:
    def test_written_read_removed(self, files: Files) -> None:
        for content in (b"", b"abc", secrets.token_bytes(200_000)):
            files.write("a/b", content)
            assert files.read("a/b") == content
            assert files.size("a/b") == len(content)
        with files.open("a/b") as file:
            file.seek(10)
            assert file.read(5) == content[10:15]
        assert files.exists("a/b")
        assert files.exists("a")
        assert files.names("") == ["a"]
        assert files.names("a") == ["b"]
        files.remove("a/b")
        files.remove("a/b")
        assert not files.exists("a/b")
        assert files.names("a") == []
        for reading in (files.read, files.size, files.modified):
            with pytest.raises(FileNotFoundError):
                reading("a/b")

    def test_a_block_that_fails_leaves_nothing(self, files: Files) -> None:
        for size in (3, 60 << 20):  # one PUT, and a multipart upload under way
            with pytest.raises(RuntimeError, match="half"):
                fail(files, "half", bytes(size))
            assert not files.exists("half")
            assert files.names("") == []
        if not files.local:
            bucket, _, _ = files.uri.removeprefix("s3://").partition("/")
            assert "Uploads" not in client().list_multipart_uploads(Bucket=bucket)

    def test_a_block_that_fails_keeps_what_was_there(self, files: Files) -> None:
        files.write("a", b"old")
        with pytest.raises(RuntimeError, match="half"):
            fail(files, "a", b"new")
        assert files.read("a") == b"old"

    def test_large_files_are_whole(self, files: Files) -> None:
        content = secrets.token_bytes(1 << 20) * 61
        with files.create("large") as file:
            for start in range(0, len(content), 7 << 20):
                file.write(content[start : start + (7 << 20)])
        assert files.size("large") == len(content)
        assert files.read("large") == content

    def test_folders_go_with_all_that_is_in_them(self, files: Files) -> None:
        for name in ("a/b/c", "a/b/d", "a/e", "ab"):
            files.write(name, b"x")
        files.remove("a")
        assert files.names("") == ["ab"]
        assert not files.exists("a/b/c")

    def test_more_names_than_one_listing_holds(self, files: Files) -> None:
        names = [f"{number:04d}" for number in range(1050)]
        with ThreadPoolExecutor(8) as threads:
            list(threads.map(lambda name: files.write(f"many/{name}", b"x"), names))
        assert files.names("many") == names
        files.remove("many")
        assert files.names("many") == []

    def test_what_others_write_is_seen_at_once(self, files: Files) -> None:
        other = pickle.loads(pickle.dumps(files))
        assert files.names("") == []
        other.write("a", b"1")
        assert files.names("") == ["a"]
        other.write("b", b"2")
        assert files.names("") == ["a", "b"]
        other.write("a", b"longer")
        assert (files.size("a"), files.read("a")) == (6, b"longer")
        other.remove("a")
        assert not files.exists("a")
        assert files.names("") == ["b"]

    def test_another_program_is_seen_too(self, bucket: str) -> None:
        files = Files(f"{bucket}/folder")
        name = bucket.removeprefix("s3://")
        assert files.names("") == []
        client().put_object(Bucket=name, Key="folder/", Body=b"")  # as consoles mark folders
        client().put_object(Bucket=name, Key="folder/a", Body=b"1")
        assert files.names("") == ["a"]
        client().delete_object(Bucket=name, Key="folder/a")
        assert files.names("") == []
        assert not files.exists("a")

    def test_of_several_writers_one_is_first(self, files: Files) -> None:
        with ThreadPoolExecutor(8) as threads:
            contents = [f"{number}".encode() for number in range(8)]
            won = list(threads.map(lambda content: files.write_once("once", content), contents))
        assert won.count(True) == 1
        assert files.read("once") == contents[won.index(True)]
        assert not files.write_once("once", b"late")
        assert files.names("") == ["once"]

    def test_an_answer_that_was_lost_is_no_defeat(self, bucket: str) -> None:
        """The client tries again by itself, and finds its own object."""
        files = Files(bucket)
        files.write("once", b"mine")
        assert files.write_once("once", b"mine")

    @settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(
        name=st.text(
            st.characters(codec="utf-8", exclude_characters="/\0\\*?[]#", categories=["L", "N", "P", "S"]), min_size=1, max_size=20
        )
    )
    def test_any_name(self, files: Files, name: str) -> None:
        if name.startswith("."):
            name = f"x{name}"
        files.write(f"names/{name}", b"x")
        assert name in files.names("names")
        assert files.read(f"names/{name}") == b"x"
        files.remove(f"names/{name}")
        assert name not in files.names("names")


class TestOptions:
    def test_of_lance_in_the_words_of_s3fs(self) -> None:
        options = {"aws_endpoint": "http://here", "AWS_REGION": "eu", "timeout": "60s"}
        assert fsspec_options("s3://b", options) == {
            "client_kwargs": {"endpoint_url": "http://here", "region_name": "eu"},
            "use_listings_cache": False,
        }
        assert fsspec_options("gs://b", options) == {}
        assert fsspec_options("s3://b", {"skip_signature": "true"})["anon"] is True

    def test_plain_http_is_allowed_where_it_is_asked_for(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"):
            monkeypatch.delenv(name, raising=False)
        assert lance_options("s3://b") is None
        assert lance_options("s3://b", {"aws_endpoint": "https://here"}) == {"aws_endpoint": "https://here"}
        assert lance_options("s3://b", {"aws_endpoint": "http://here"}) == {"aws_endpoint": "http://here", "allow_http": "true"}
        assert lance_options("s3://b", {"aws_endpoint": "http://here", "AWS_ALLOW_HTTP": "false"}).get("allow_http") is None  # type: ignore[union-attr]
        monkeypatch.setenv("AWS_ENDPOINT_URL", "http://there")
        assert lance_options("s3://b") == {"allow_http": "true"}
        assert lance_options("gs://b") is None
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://s3")
        assert lance_options("s3://b") == {"allow_http": "true", "aws_endpoint": "http://s3"}

    @pytest.fixture
    def configuration(self, s3: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
        """Credentials and endpoint of the test server in fsspec's configuration, and nowhere else."""
        import os

        found = {
            "key": os.environ["AWS_ACCESS_KEY_ID"],
            "secret": os.environ["AWS_SECRET_ACCESS_KEY"],
            "client_kwargs": {"endpoint_url": s3},
        }
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL"):
            monkeypatch.delenv(name)
        with mock.patch.dict(fsspec.config.conf, {"s3": found}):
            yield found

    def test_fsspecs_configuration_is_lances_too(self, bucket: str, configuration: dict[str, Any]) -> None:
        import pyarrow as pa

        from mtv_core.store.dataset import append_rows, open_dataset

        check_store(bucket)
        Files(bucket).write("a", b"x")
        append_rows(pa.table({"a": [1, 2]}), f"{bucket}/a.lance", 10)
        dataset = open_dataset(f"{bucket}/a.lance")
        assert dataset is not None
        assert dataset.count_rows() == 2

    def test_what_is_given_is_stronger(self) -> None:
        with mock.patch.dict(fsspec.config.conf, {"s3": {"key": "k", "secret": "s", "endpoint_url": "https://configured"}}):
            assert lance_options("s3://b", {"AWS_ENDPOINT": "https://given"}) == {
                "AWS_ENDPOINT": "https://given",
                "aws_access_key_id": "k",
                "aws_secret_access_key": "s",
            }


SECRET = "wJalrXUtnFEMIK7MDENGbPxRfiCYEXAMPLEKEY"


class TestCredentials:
    @pytest.mark.parametrize(
        "uri",
        [
            f"s3://AKIA:{SECRET}@bucket/table",
            f"https://user:{SECRET}@host/x.tar",
            f"https://{SECRET}@host/x.tar",
            f"https://host/x.tar?X-Amz-Algorithm=a&X-Amz-Signature={SECRET}",
            f"https://host/x.tar?x-goog-signature={SECRET}",
            f"https://account.blob.core.windows.net/c/x.tar?sv=2024&sig={SECRET}",
            f"https://host/x.tar?AWSAccessKeyId=a&Signature={SECRET}",
        ],
    )
    def test_in_a_uri_are_refused_and_not_repeated(self, uri: str) -> None:
        for refusing in (check_uri, Files, filesystem, check_store):
            with pytest.raises(ValueError, match="credential") as refused:
                refusing(uri)
            assert SECRET not in str(refused.value)
        for values in ({"table": {"uri": uri}}, {"sources": [{"uri": uri}]}):
            with pytest.raises(ConfigError) as mistake:
                resolve_config("tiny", values)
            assert SECRET not in str(mistake.value)
            with pytest.raises(ValueError, match="credential") as validation:
                PipelineConfig.model_validate(values)
            assert SECRET not in str(validation.value)

    @pytest.mark.parametrize("uri", ["s3://bucket/a@b", "/home/a@b", "https://host/x?page=2", "file:///a@b", "a@b", "s3://b/x?sig"])
    def test_other_uris_are_not(self, uri: str) -> None:
        assert check_uri(uri) == uri

    def test_in_options_are_refused_and_not_repeated(self) -> None:
        for name in ("aws_secret_access_key", "AWS_SESSION_TOKEN", "azure_storage_account_key", "password"):
            for model, values in ((TableConfig, {}), (PipelineConfig, {"sources": [{"uri": "a"}]})):
                options = {"storage_options": {name: SECRET}}
                with pytest.raises(ValueError, match="credential") as refused:
                    model.model_validate(values | (options if model is TableConfig else {"table": options}))
                assert SECRET not in str(refused.value)


class TestStoresThatDoNotAnswer:
    """What every command that only reads meets first."""

    READ = (
        lambda files: files.exists("a"), lambda files: files.read("a"), lambda files: files.names("a"), lambda files: files.size("a"),
        lambda files: files.modified("a"), lambda files: open_dataset(files.uri, storage_options=files.storage_options),
    )  # fmt: skip

    @pytest.fixture(autouse=True)
    def at_once(self, s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("s3fs.S3FileSystem.retries", 1)
        monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")

    @pytest.mark.parametrize("read", READ)
    def test_no_server(self, read: Callable[[Files], Any]) -> None:
        with pytest.raises(StoreError, match=r"^cannot use s3://bucket/t: .*is its endpoint right") as down:
            read(Files("s3://bucket/t", {"aws_endpoint": "http://127.0.0.1:1"}))
        assert ".rs:" not in str(down.value)
        assert "LanceError" not in str(down.value)

    @pytest.mark.parametrize("read", READ)
    def test_no_credentials(self, read: Callable[[Files], Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.delenv(name)
        for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
            monkeypatch.setenv(name, str(tmp_path / "none"))
        # Instances of s3fs live on with the credentials they began with; a region of its own makes another one.
        with pytest.raises(PermissionError, match="no credentials for s3://bucket/t: set AWS_ACCESS_KEY_ID"):
            read(Files("s3://bucket/t", {"aws_region": f"none-{secrets.token_hex(4)}"}))

    @pytest.mark.parametrize("read", READ[1:])
    def test_no_bucket(self, read: Callable[[Files], Any]) -> None:
        with pytest.raises(FileNotFoundError, match="there is no bucket for s3://mtv-nowhere/t: make it"):
            read(Files("s3://mtv-nowhere/t"))

    def test_a_missing_file_or_table_is_no_missing_bucket(self, bucket: str) -> None:
        with pytest.raises(FileNotFoundError) as missing:
            Files(bucket).read("a")
        assert "bucket for" not in str(missing.value)
        assert Files(bucket).names("a") == []
        assert open_dataset(f"{bucket}/t") is None

    @pytest.mark.parametrize(("code", "error"), [("AccessDenied", PermissionError), ("NoSuchBucket", FileNotFoundError)])
    def test_what_lance_says_of_it(self, code: str, error: type[Exception]) -> None:
        text = f"LanceError(IO): Generic S3 error: <Error><Code>{code}</Code></Error>, /home/x/lance-io/src/object_store.rs:1576:42"
        said = of_lance(ValueError(text), "s3://b/t")
        assert isinstance(said, error)
        assert "s3://b/t" in str(said)
        mistake = ValueError("Invalid user input: no field x, /a/b.rs:1")
        assert of_lance(mistake, "s3://b/t") is mistake


class TestPreflight:
    @pytest.fixture(autouse=True)
    def forget(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(preflight, "_passed", set())

    def test_a_store_that_can_leaves_nothing(self, bucket: str) -> None:
        check_store(f"{bucket}/table")
        assert Files(bucket).names("") == []

    def test_once_a_process(self, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
        check_store(f"{bucket}/table")
        monkeypatch.setattr(preflight, "_prove", None)
        check_store(f"{bucket}/table")
        with pytest.raises(StoreError):
            check_store(f"{bucket}/other")

    def test_file_systems_are_not_asked(self, tmp_path: Path) -> None:
        check_store(str(tmp_path / "table"))
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("uri", ["memory://table", "https://host/table"])
    def test_what_no_other_process_sees_is_no_table(self, uri: str) -> None:
        with pytest.raises(StoreError, match="cannot hold a table"):
            check_store(uri)

    def test_no_bucket(self, s3: str) -> None:
        with pytest.raises(FileNotFoundError, match="there is no bucket"):
            check_store("s3://mtv-nowhere/table")

    def test_no_server(self, s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("s3fs.S3FileSystem.retries", 1)
        monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
        with pytest.raises(StoreError, match="cannot use"):
            check_store("s3://bucket/table", {"aws_endpoint": "http://127.0.0.1:1"})

    def test_a_store_that_ignores_the_condition(self, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
        def overwrite(files: Files, name: str, content: bytes) -> bool:
            files.write(name, content)
            return True

        monkeypatch.setattr(Files, "write_once", overwrite)
        with pytest.raises(StoreError, match="ignores conditional writes"):
            check_store(f"{bucket}/table")
        assert Files(bucket).names("") == []
