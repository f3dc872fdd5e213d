"""The search for the best tags gives what HanTa's own search gives."""

from __future__ import annotations

from pathlib import Path

import pytest
from HanTa.HanoverTagger import HanoverTagger
from hypothesis import given, settings
from hypothesis import strategies as st

from mtv_core.experts.phrases import _TOKEN
from mtv_core.experts.tagger import tagger

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def hanta() -> HanoverTagger:
    return HanoverTagger("morphmodel_en.pgz")


def sentences() -> list[list[str]]:
    """Captions, and the prose of the documentation."""
    lines = (ROOT / "tests/unit/phrases_gold.tsv").read_text().splitlines()
    lines += [line for page in sorted((ROOT / "docs").glob("*.md")) for line in page.read_text().splitlines()[:60]]
    return [words for line in lines if (words := _TOKEN.findall(line))]


def test_the_same_tags_as_hanta(hanta: HanoverTagger) -> None:
    found = sentences()
    assert len(found) > 500
    for words in found:
        assert tagger()(words) == hanta.tag_sent(words, taglevel=0), words


WORDS = [*{word for words in sentences() for word in words}, "漢字", "naïve", "😀", "IMG_1", "x" * 60]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from(WORDS), max_size=25))
def test_the_same_tags_of_words_in_any_order(hanta: HanoverTagger, words: list[str]) -> None:
    assert tagger()(words) == hanta.tag_sent(words, taglevel=0)
