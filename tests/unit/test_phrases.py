"""Noun phrases of captions."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtv_core.blocks.shards import truth
from mtv_core.experts.phrases import MAX_WORDS, extract


@pytest.mark.parametrize(
    ("caption", "phrases"),
    [
        ("a red sphere left of a small blue cube", ["red sphere", "small blue cube"]),
        ("A photo of an orange cone in front of a white ring, and a purple cross", ["orange cone", "white ring", "purple cross"]),
        ("there is a green cylinder in the picture", ["green cylinder"]),
        ("A man dressed in black is riding a brown horse down the street", ["man", "brown horse", "street"]),
        ("Two dogs playing with a yellow tennis ball on the grass.", ["dogs", "yellow tennis ball", "grass"]),
        ("Woman's hand holding a cup of coffee", ["woman hand", "cup", "coffee"]),
        ("a parked car next to the fire hydrant", ["parked car", "fire hydrant"]),
        ("a dog and a cat and a dog", ["dog", "cat"]),
        ("a picture", []),
        ("IMG_2031.JPG", []),
        ("42", []),
        ("", []),
    ],
)
def test_examples(caption: str, phrases: list[str]) -> None:
    assert extract(caption) == phrases


def test_every_solid_a_blocks_caption_mentions_is_found() -> None:
    for index in range(200):
        sample = truth(5, index)
        solids = [sample.scene.solids[i] for i in sample.caption.mentions]
        found = [phrase for phrase in extract(sample.caption.text) if phrase != "floor"]
        assert [phrase.removeprefix(f"{s.size} ") for phrase, s in zip(found, solids, strict=True)] == [s.name for s in solids]


@given(st.text(max_size=300))
def test_any_text_gives_clean_phrases(text: str) -> None:
    phrases = extract(text)
    assert phrases == extract(text)
    assert len(set(phrases)) == len(phrases)
    for phrase in phrases:
        assert phrase == " ".join(phrase.split()) == phrase.lower()
        assert 1 <= len(phrase.split()) <= MAX_WORDS


def test_limit() -> None:
    assert extract("a dog, a cat, a bird", 2) == ["dog", "cat"]
