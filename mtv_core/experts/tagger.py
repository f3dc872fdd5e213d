"""Words of a sentence → their parts of speech: HanTa's hidden Markov model of words and morphemes, searched word by word.

HanTa's own search (`HanoverTagger.tag_sent_viterbi`, HanTa 1.2.1) goes over all 64 tags after every state, and finds out anew what a word
may be; this one goes over the few tags that a word may have, and remembers them. Its tags are the same, about three times as fast.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Sequence
from typing import Any

REMEMBERED_WORDS = 200_000  # what each may be; some 200 MB if all places are taken
_MODEL = "morphmodel_en.pgz"
_LEAST = -1e6  # log probability below which HanTa has no path
_BEAM, _MARGIN = 5, 1.0  # HanTa goes on from the best states, and from those that are not much worse than the last of them
_loading = threading.Lock()

State = tuple[int, int]  # a word's tag, and that of the word before
Path = tuple[int, Any] | None  # a word's tag and the path to it, from the last word to the first


class Tagger:
    """The English model of HanTa, whose tags are those of the British National Corpus (C5)."""

    def __init__(self) -> None:
        from HanTa.HanoverTagger import EMPTY, END, START, UNKNOWN, HanoverTagger

        self._start: State = (EMPTY, START)
        self._unknown, self._end = UNKNOWN, END
        model: Any = HanoverTagger(_MODEL)
        self._names: dict[int, str] = model.int2tag
        self._following: dict[State, dict[int, float]] = model.LP_trans_word
        self._tag_word: Any = model._tag_word
        self._possible = functools.lru_cache(maxsize=REMEMBERED_WORDS)(self._find)

    def __call__(self, words: Sequence[str]) -> list[str]:
        """The tag of each word: the most probable sequence under a trigram model, as `HanoverTagger.tag_sent(words, taglevel=0)`."""
        if not words:
            return []
        states: dict[State, tuple[float, Path]] = {self._start: (0.0, None)}
        for i, word in enumerate(words):
            possible = self._possible(word, i == 0)
            states = self._step(states, possible) or self._step(states, None)
        best = max(states, key=lambda state: states[state][0] + self._following[state].get(self._end, -float("inf")))
        found, path = [], states[best][1]
        while path is not None:
            tag, path = path
            found.append(self._names[tag])
        return found[::-1]

    def _find(self, word: str, is_first: bool) -> Sequence[tuple[int, float]] | None:
        """The tags a word may have, with their log probabilities; None: any. The first of a sentence may be in capitals for that alone."""
        possible = self._tag_word(word, cutoff=5, casesensitive=not is_first, conditional=True)
        return None if all(tag == self._unknown for tag, _ in possible) else possible

    def _step(
        self, states: dict[State, tuple[float, Path]], possible: Sequence[tuple[int, float]] | None
    ) -> dict[State, tuple[float, Path]]:
        """The best path to every state of the next word, which may have the tags given, or any."""
        bound = _LEAST
        if len(states) > _BEAM:
            bound = sorted((probability for probability, _ in states.values()), reverse=True)[_BEAM] - _MARGIN
        reached: dict[State, tuple[float, Path]] = {}
        end = self._end
        for state, (before, path) in states.items():
            if before < bound:
                continue
            following, last = self._following[state], state[1]
            for tag, emission in possible if possible is not None else [(tag, 0.0) for tag in following]:
                transition = following.get(tag)
                if transition is None or tag == end:
                    continue
                probability = before + transition + emission
                key = (last, tag)
                known = reached.get(key)
                if probability > _LEAST and (known is None or probability > known[0]):
                    reached[key] = (probability, (tag, path))
        return reached


def tagger() -> Tagger:
    """The one of this process, loaded once, by one thread."""
    with _loading:
        return _load()


@functools.cache
def _load() -> Tagger:
    return Tagger()
