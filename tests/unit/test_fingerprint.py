"""A fingerprint is that of what the samples say: it changes with any of it, and with nothing else."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from source_files import WRITERS, contents, fingerprint
from tars import sample, tar

from mtv_core import ingest
from mtv_core.data.fingerprint import Fingerprint
from mtv_core.data.sources import RawCaption, RawSample, SourceConfig, expand, read
from mtv_core.executor import SerialExecutor
from mtv_core.ingest_config import IngestConfig
from mtv_core.report import Reject
from mtv_core.store.table import Table

LIMIT = 1 << 20
# Few letters, so that equal ones are met often; lone surrogates, which JSON can spell, and what stands for them elsewhere.
TEXTS = st.text("ab=\\\0?\udc80", max_size=3) | st.sampled_from(["\\udc80", "none 0", "refused"])
BYTES = st.binary(max_size=2) | st.sampled_from([b"ab", b"a", b"b", b"", b"=", b"web"])
CAPTIONS = st.lists(st.builds(RawCaption, BYTES, st.sampled_from(["web", "synthetic"])), max_size=3)
PROBLEMS = st.none() | st.tuples(st.sampled_from(["BadRow", "UnsafePath"]), st.text(max_size=2))
SAMPLES = st.builds(
    RawSample, TEXTS, st.none() | BYTES, CAPTIONS, st.none() | BYTES, st.none() | TEXTS, st.none() | TEXTS,
    st.sampled_from(["", "here"]), st.sampled_from([0, 5]), PROBLEMS,
)  # fmt: skip
REJECTS = st.builds(
    Reject,
    shard=st.just("s"),
    key=TEXTS,
    location=st.sampled_from(["", "here"]),
    stage=st.just("ingest"),
    error=st.sampled_from(["TruncatedShard", "BadRow"]),
    message=st.text(max_size=2),
)
FOUND = st.lists(SAMPLES | REJECTS, max_size=3)


def of(found: Iterable[RawSample | Reject]) -> str:
    taken = Fingerprint()
    for one in found:
        taken.add(one)
    return taken.value


def said(one: RawSample | Reject) -> tuple[object, ...]:
    """What is to be told apart: not where it is, and of what is wrong with it only the kind, since words change with versions of MTV."""
    if isinstance(one, Reject):
        return one.key, one.error
    captions = tuple((caption.text, caption.kind) for caption in one.captions)
    image = one.too_large if one.image is None else one.image
    return one.key, image, captions, one.meta, one.url, one.license, one.problem and one.problem[0]


@settings(max_examples=1000, deadline=None)
@given(FOUND, FOUND)
def test_it_is_the_same_where_the_samples_are(first: list[RawSample | Reject], second: list[RawSample | Reject]) -> None:
    assert (of(first) == of(second)) == (list(map(said, first)) == list(map(said, second)))


@settings(max_examples=300, deadline=None)
@given(st.lists(SAMPLES, min_size=1, max_size=4), st.data())
def test_any_change_changes_it(samples: list[RawSample], data: st.DataObject) -> None:
    """One field of one sample; with two lists drawn apart from each other, such a change would be rare."""
    place = data.draw(st.integers(0, len(samples) - 1))
    fields: dict[str, st.SearchStrategy[Any]] = {
        "key": TEXTS, "image": st.none() | BYTES, "captions": CAPTIONS, "meta": st.none() | BYTES, "url": st.none() | TEXTS,
        "license": st.none() | TEXTS, "problem": PROBLEMS,
    }  # fmt: skip
    for field, values in fields.items():
        changed = replace(samples[place], **{field: data.draw(values)})
        assert (of([*samples[:place], changed, *samples[place + 1 :]]) == of(samples)) == (said(changed) == said(samples[place])), field


@given(st.lists(SAMPLES | REJECTS, min_size=2, max_size=4))
def test_order(found: list[RawSample | Reject]) -> None:
    orders = list(itertools.permutations(found))
    assert len({of(order) for order in orders}) == len({tuple(map(said, order)) for order in orders})


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ([b"ab", b"c"], [b"a", b"bc"]),
        ([b"abc"], [b"ab", b"c"]),
        ([b"a", b"b"], [b"b", b"a"]),
        ([b"a"], [b"a", b""]),
        ([b"a", b"web"], [b"a"]),
        ([], [b""]),
    ],
)
def test_boundaries_of_captions(first: list[bytes], second: list[bytes]) -> None:
    one, other = (of([RawSample("k", b"i", [RawCaption(text) for text in texts])]) for texts in (first, second))
    assert one != other


def test_kind_of_a_caption() -> None:
    assert of([RawSample("k", b"i", [RawCaption(b"a")])]) != of([RawSample("k", b"i", [RawCaption(b"a", "synthetic")])])


@pytest.fixture(params=WRITERS)
def written(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return WRITERS[request.param][1](tmp_path / "in", contents(16))


def test_two_readings(written: str) -> None:
    shards = expand(SourceConfig(uri=written))
    taken = [fingerprint(shard) for shard in shards]
    assert taken == [fingerprint(shard) for shard in expand(SourceConfig(uri=written))]
    assert len(set(taken)) == len(shards)
    assert taken == [of(read(shard, LIMIT)) for shard in shards]


def contents_of_ledger(table: Path) -> dict[str, str]:
    return {entry.uri: entry.content or "" for entry in Table.open(str(table)).ledger.latest().values()}


def compared(uri: str, limit: int = IngestConfig().max_bytes) -> dict[str, str]:
    return {shard.uri: ingest.hash_shard(ingest.HashJob(shard, limit, {})) for shard in expand(SourceConfig(uri=uri))}


def bring(uri: str, table: Path, **config: Any) -> ingest.IngestResult:
    return ingest.run([SourceConfig(uri=uri)], str(table), IngestConfig(**config), SerialExecutor())


def test_an_ingest_keeps_what_a_comparison_finds(written: str, tmp_path: Path) -> None:
    bring(written, tmp_path / "table")
    kept = contents_of_ledger(tmp_path / "table")
    assert kept == compared(written)
    assert all(len(value) == 64 for value in kept.values())
    again = bring(written, tmp_path / "table", verify="content")
    assert (again.report.rows_in, again.notes) == (0, [])


def test_an_ingest_keeps_what_a_comparison_finds_of_what_it_refused(tmp_path: Path) -> None:
    """Refused by the reader, the image, the captions, a filter and as a copy; and a shard that stops in the middle."""
    members = [
        *sample(1), ("broken.jpg", b"no image"), ("broken.txt", b"a caption"), ("alone.jpg", sample(2)[0][1]), ("../out.jpg", b"i"),
        ("large.jpg", bytes(5000)), ("large.txt", b"a caption"), ("copy.jpg", sample(1)[0][1]), ("copy.txt", b"picture 1"),
        *sample(3), *sample(4),
    ]  # fmt: skip
    path = tar(tmp_path / "in" / "0.tar", members)
    path.write_bytes(path.read_bytes()[:-11_000])
    bring(str(tmp_path / "in"), tmp_path / "table", max_bytes=4000)
    table = Table.open(str(tmp_path / "table"))
    assert len(set(table.rejects.counts("ingest"))) >= 6
    assert contents_of_ledger(tmp_path / "table") == compared(str(tmp_path / "in"), 4000)


def test_a_change_behind_the_same_size_and_time(tmp_path: Path) -> None:
    """Of a sample and of a refusal; what the reader skips may change."""
    refused = [("a.jpg", sample(2)[0][1]), ("a.json", b'{"caption": 12}')]
    path = tar(tmp_path / "in" / "0.tar", [*sample(1), *refused, *sample(3)])
    facts = path.stat()

    def read_again(data: bytes) -> int:
        assert len(data) == facts.st_size
        path.write_bytes(data)
        os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))
        return bring(str(path), tmp_path / "table", verify="content").report.rows_in

    first = path.read_bytes()
    bring(str(path), tmp_path / "table")
    assert read_again(first) == 0
    assert read_again(tar(tmp_path / "later.tar", [*sample(1), *refused, *sample(3)], mtime=10**9).read_bytes()) == 0
    changed = first.replace(b"picture 3", b"picture 4")
    assert changed != first
    assert read_again(changed) == 3
    assert read_again(changed.replace(b'{"caption": 12}', b'{"caption":"b"}')) == 3
