"""The same content in every format gives the same samples; counts agree with readers of others."""

from __future__ import annotations

import json
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from source_files import WRITERS, contents

from mtv_core.data.schema import sample_uid
from mtv_core.data.sources import RawSample, SourceConfig, expand, read
from mtv_core.report import Reject

LIMIT = 1 << 20
MANY = contents(40)


def everything(uri: str, **config: object) -> list[RawSample | Reject]:
    return [found for shard in expand(SourceConfig(uri=uri, **config)) for found in read(shard, LIMIT)]  # type: ignore[arg-type]


def uid(one: RawSample | Reject) -> str:
    assert isinstance(one, RawSample), one
    assert one.image is not None
    return sample_uid(one.image, one.captions[0].text.decode())


@pytest.fixture(scope="module", params=WRITERS)
def written(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    _, write = WRITERS[request.param]
    return request.param, write(tmp_path_factory.mktemp(request.param) / "in", MANY)


def test_the_same_uids(written: tuple[str, str]) -> None:
    assert sorted(uid(one) for one in everything(written[1])) == sorted(sample_uid(one.image, one.captions[0]) for one in MANY)


def test_urls_and_licences(written: tuple[str, str]) -> None:
    found = {uid(one): one for one in everything(written[1]) if isinstance(one, RawSample)}
    for one in MANY:
        sample = found[sample_uid(one.image, one.captions[0])]
        assert sample.url == one.url
        if "saved" not in written[0]:
            assert sample.license == one.license
        if sample.meta is not None:
            json.loads(sample.meta)


def test_recognised(written: tuple[str, str]) -> None:
    form = WRITERS[written[0]][0]
    shards = expand(SourceConfig(uri=written[1]))
    assert {shard.format for shard in shards} == {form}
    assert shards == expand(SourceConfig(uri=written[1], format=form))  # type: ignore[arg-type]
    assert [shard.uri for shard in shards] == sorted({shard.uri for shard in shards})
    assert {shard.source for shard in shards} == {"in"}


def test_keys_are_unique_in_a_shard(written: tuple[str, str]) -> None:
    for shard in expand(SourceConfig(uri=written[1])):
        keys = [one.key for one in read(shard, LIMIT)]
        assert len(set(keys)) == len(keys)


class TestCounts:
    """By readers that are not ours."""

    def test_tars(self, tmp_path: Path) -> None:
        uri = WRITERS["img2dataset"][1](tmp_path / "in", MANY)
        count = 0
        for path in Path(uri).glob("*.tar"):
            with tarfile.open(path) as file:
                count += sum(name.endswith(".jpg") for name in file.getnames())
        assert len(everything(uri)) == count == len(MANY)

    def test_webdataset(self, tmp_path: Path) -> None:
        uri = WRITERS["webdataset"][1](tmp_path / "in", MANY)
        for path in sorted(Path(uri).glob("*.tar")):
            theirs = elsewhere(
                f"import webdataset as w; print(json.dumps([[one['__key__'], len(one['jpg']), one['txt'].decode()]"
                f" for one in w.WebDataset({str(path)!r}, shardshuffle=False, empty_check=False)]))"
            )
            ours = [[one.key, len(one.image or b""), one.captions[0].text.decode()] for one in samples(str(path))]
            assert ours == theirs

    def test_parquet(self, tmp_path: Path) -> None:
        uri = WRITERS["parquet"][1](tmp_path / "in", MANY)
        assert len(everything(uri)) == pq.ParquetDataset(uri).read().num_rows

    @pytest.mark.parametrize("name", ["folder_jsonl", "folder_csv", "folder_parquet"])
    def test_image_folders(self, tmp_path: Path, name: str) -> None:
        uri = WRITERS[name][1](tmp_path / "in", MANY[:7])
        theirs = elsewhere(
            f"import datasets as d; l = d.load_dataset('imagefolder', data_dir={uri!r}, cache_dir={str(tmp_path / 'cache')!r});"
            "print(json.dumps([text for split in l.values() for text in split['text']]))"
        )
        assert sorted(one.captions[0].text.decode() for one in samples(uri)) == sorted(theirs)

    def test_saved_datasets(self, tmp_path: Path) -> None:
        uri = WRITERS["saved_dataset_dict"][1](tmp_path / "in", MANY)
        theirs = elsewhere(f"import datasets as d; print(json.dumps([s.num_rows for s in d.load_from_disk({uri!r}).values()]))")
        assert len(samples(uri)) == sum(theirs)


def samples(uri: str) -> list[RawSample]:
    return [one for one in everything(uri) if isinstance(one, RawSample)]


def elsewhere(code: str) -> list[Any]:
    """What a library says in a process of its own, which keeps what it leaves open."""
    done = subprocess.run([sys.executable, "-c", f"import json\n{code}"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found: list[Any] = json.loads(done.stdout.splitlines()[-1])
    return found
