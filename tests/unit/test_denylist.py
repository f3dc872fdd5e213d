"""The deny-list refuses exactly what was put on it, says nothing without its key, and fails closed."""

from __future__ import annotations

import hashlib
import hmac
import os
import pickle
import secrets
import stat
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtv_core.store import denylist
from mtv_core.store.denylist import DenyKey, Denylist, normalise_url
from mtv_core.store.table import Table


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Table:
    monkeypatch.delenv(denylist.KEY_VARIABLE, raising=False)
    return Table.create_or_open(str(tmp_path / "table"))


def sha(number: int) -> str:
    return hashlib.sha256(str(number).encode()).hexdigest()


def deny(table: Table, **values: list[str]) -> DenyKey:
    key = denylist.make_key(table)
    denylist.add(table, key, denylist.hashes(key, values))  # type: ignore[arg-type]
    return key


def test_denies_what_is_on_it_and_nothing_else(table: Table) -> None:
    assert not Denylist.load(table).denies(sha(0), "https://example.org/0.jpg", "0" * 32)
    deny(table, image=[sha(n) for n in range(0, 100, 2)], url=["https://example.org/odd.jpg"], uid=["ab" * 16])
    denied = pickle.loads(pickle.dumps(Denylist.load(table)))
    assert len(denied) == 52
    assert [n for n in range(100) if denied.denies(sha(n), None)] == list(range(0, 100, 2))
    assert denied.denies(sha(1), "HTTP://Example.org:80/odd.jpg#top")
    assert not denied.denies(sha(1), "https://example.org/even.jpg")
    assert denied.denies(sha(1), None, "ab" * 16)
    assert not denied.denies(sha(1), "", "cd" * 16)
    assert not denied.denies("https://example.org/odd.jpg", sha(0), sha(0)[:32])  # a value of one kind is none of another


def test_it_grows_and_repeats_change_nothing(table: Table) -> None:
    key = deny(table, image=[sha(1)])
    name = Path(table.files.path(f"_takedowns/denied-{key.id}.bin"))
    before = name.stat().st_mtime_ns
    deny(table, image=[sha(1)])
    assert name.stat().st_mtime_ns == before
    deny(table, image=[sha(2), sha(1)], url=["https://e.org/"])
    assert len(Denylist.load(table)) == 3
    assert denylist.num_new(table, key, denylist.hashes(key, {"image": [sha(1), sha(7)]})) == 1


def test_entries_are_hmac_sha256(table: Table) -> None:
    key = deny(table, image=[sha(1)])
    secret = Path(table.files.path("_takedowns/deny.key")).read_bytes()
    entry = hmac.new(secret, b"image\0" + sha(1).encode(), "sha256").digest()[:16]
    assert Path(table.files.path(f"_takedowns/denied-{key.id}.bin")).read_bytes() == entry


def test_neither_list_nor_repr_says_what_it_is_about(table: Table) -> None:
    deny(table, image=[sha(1)], url=["https://example.org/private.jpg"])
    denied = Denylist.load(table)
    secret = denied.lists[0][0].secret
    for path in Path(table.uri, "_takedowns").iterdir():
        content = path.read_bytes()
        for clear in (sha(1).encode(), bytes.fromhex(sha(1)), b"example"):
            assert clear not in content
        assert (secret in content) == (path.name == "deny.key")
    assert repr(secret) not in repr(denied)
    assert secret.hex() not in repr(denied)


class TestKey:
    def test_a_file_only_its_owner_reads(self, table: Table) -> None:
        old = os.umask(0)
        try:
            key = denylist.make_key(table)
        finally:
            os.umask(old)
        path = Path(table.uri, "_takedowns", "deny.key")
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert denylist.make_key(table) == key
        assert denylist.make_key(Table.create_or_open(table.uri + "2")) != key

    def test_of_the_environment_leaves_no_file(self, table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv(denylist.KEY_VARIABLE, "a key from the vault")
        deny(table, image=[sha(1)])
        assert not Path(table.uri, "_takedowns", "deny.key").exists()
        assert Denylist.load(table).denies(sha(1), None)

    def test_a_missing_key_stops_the_ingest(self, table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv(denylist.KEY_VARIABLE, "a key from the vault")
        deny(table, image=[sha(1)])
        for other in (None, "another key, quite long"):
            monkeypatch.delenv(denylist.KEY_VARIABLE) if other is None else monkeypatch.setenv(denylist.KEY_VARIABLE, other)
            with pytest.raises(ValueError, match="set MTV_DENY_KEY to the value it had"):
                Denylist.load(table)

    def test_a_key_that_came_later_adds_to_the_first(self, table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
        first = deny(table, image=[sha(1)])
        monkeypatch.setenv(denylist.KEY_VARIABLE, "a key from the vault")
        assert deny(table, image=[sha(2)]) != first
        denied = Denylist.load(table)
        assert denied.denies(sha(1), None)
        assert denied.denies(sha(2), None)
        assert not denied.denies(sha(3), None)

    def test_too_short(self, table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv(denylist.KEY_VARIABLE, "secret")
        with pytest.raises(ValueError, match="at least 16 characters"):
            denylist.make_key(table)

    @pytest.mark.skipif(os.geteuid() == 0, reason="root reads every file")
    def test_of_another_user(self, table: Table) -> None:
        deny(table, image=[sha(1)])
        Path(table.uri, "_takedowns", "deny.key").chmod(0)
        with pytest.raises(PermissionError, match="belongs to another user"):
            Denylist.load(table)


@given(st.lists(st.binary(min_size=16, max_size=16)), st.binary(min_size=16, max_size=16))
def test_packed_entries_are_a_set(entries: list[bytes], other: bytes) -> None:
    packed = denylist.pack(entries)
    assert denylist.unpack(packed) == set(entries)
    for entry in [*entries, other]:
        assert denylist.contains(packed, entry) == (entry in entries)


def test_a_million_entries_are_asked_in_microseconds(table: Table) -> None:
    key = denylist.make_key(table)
    denylist.add(table, key, denylist.pack(secrets.token_bytes(16) for _ in range(1_000_000)))
    denied = Denylist.load(table)
    assert len(denied) == 1_000_000
    began = time.perf_counter()
    assert not any(denied.denies(sha(n), f"https://example.org/{n}.jpg", sha(n)[:32]) for n in range(1000))
    assert (time.perf_counter() - began) / 1000 < 1e-3  # a decode takes longer


class TestUrl:
    @pytest.mark.parametrize(
        ("one", "other"),
        [
            ("http://example.org/a.jpg", "https://example.org/a.jpg"),
            ("https://EXAMPLE.org/a.jpg", "https://example.org:443/a.jpg"),
            ("http://example.org:80", "http://example.org/#top"),
            ("https://example.org/%7euser/%e4", "https://example.org/~user/%E4"),
            ("https://example.org/ü b.jpg", "https://example.org/%C3%BC%20b.jpg"),
            ("https://bücher.example/a", "https://xn--bcher-kva.example/a"),
            ("  https://example.org./a?b=1&c \n", "https://example.org/a?b=1&c"),
            ("https://example.org/%41?%42", "https://example.org/A?B"),
        ],
    )
    def test_one_place_one_spelling(self, one: str, other: str) -> None:
        assert normalise_url(one) == normalise_url(other)

    @pytest.mark.parametrize(
        ("one", "other"),
        [
            ("https://example.org/a.jpg", "https://example.org/A.jpg"),
            ("https://example.org/a.jpg", "https://example.org/a.jpg?size=2"),
            ("https://example.org/a%2Fb", "https://example.org/a/b"),
            ("https://example.org/a", "https://www.example.org/a"),
            ("https://example.org:8443/a", "https://example.org/a"),
            ("https://example.org/a?x=1&y=2", "https://example.org/a?y=2&x=1"),
            ("https://example.org/%2541", "https://example.org/%41"),
            ("s3://bucket/a", "gs://bucket/a"),
        ],
    )
    def test_two_places_two_spellings(self, one: str, other: str) -> None:
        assert normalise_url(one) != normalise_url(other)

    @given(st.from_regex(denylist._NORMAL, fullmatch=True))
    def test_the_short_way_is_the_long_one(self, url: str) -> None:
        assert normalise_url(url) == denylist._normalised(url)

    @given(st.text() | st.from_regex(r"https?://[^\s/]{1,20}(:[0-9]{0,6})?/[^\s]{0,30}", fullmatch=True))
    def test_again_changes_nothing_and_nothing_breaks(self, url: str) -> None:
        assert normalise_url(normalise_url(url)) == normalise_url(url)
