"""Noun phrases of a caption: an offline tagger of parts of speech, and a grammar over its tags. The same on every machine.

The tagger is HanTa's hidden Markov model of words and their morphemes (Wartena 2019), trained on the British National Corpus; its tags are
the corpus' own (C5). A phrase is adjectives and nouns that follow each other and end with a noun: `(A (and A)?)* N+`, where a participle in
front of a noun is an adjective ("a parked car"), a number falls off, and what a determiner, an adjective or a possessive leaves waiting is
a noun, whatever else it may be ("a cyan cross"). Words about the picture itself ("a photo of") and colours alone are no phrase. A detector
is asked for every phrase, so one that is not in the picture costs time; one that is missed costs a label.

Chosen on the captions of `tests/unit/phrases_gold.tsv`: alt-texts, product titles, captions people and models wrote, blocks, others. Each
parser's tags under the same grammar; a phrase counts if it is the same word for word. The grammar was written with 138 captions in view and
not changed for the 26 that came afterwards. Captions a second on one core of a busy machine:

| parser | precision, recall, F1 of 138 | of 26 | captions/s |
|---|---|---|---|
| **HanTa 1.2.1**, words remembered | 0.865 0.910 0.887 | 0.915 0.903 0.909 | 3 900 |
| HanTa 1.2.1 as it is called in its manual | the same | the same | 1 400 |
| TextBlob 0.20.1, pattern tagger (Brill's rules) | 0.838 0.904 0.870 | 0.847 0.847 0.847 | 30 000 |
| gruut-lang-en 2.0.1 (conditional random field) | 0.824 0.873 0.848 | 0.897 0.847 0.871 | 2 500 |
| denckring-en-pos 0.6.0 (averaged perceptron) | 0.793 0.828 0.810 | 0.899 0.861 0.879 | 4 200 |
| word lists alone, no tagger (version 1) | 0.760 0.840 0.798 | 0.845 0.833 0.839 | 56 000 |

spaCy, Stanza, Flair and NLTK's own taggers need models that the package index does not have, or only in copies of others. It is made for
English: of a caption in another language it gives words that stand beside each other, or nothing.
"""

from __future__ import annotations

import re

from mtv_core.experts.tagger import tagger

VERSION = 2  # raise it when the same caption gives other phrases: detections of captions become stale
MAX_WORDS = 5  # of a phrase: the last ones, since an English noun phrase ends with its head
MAX_LETTERS = 24  # of a word; longer ones are file names and hashes

_TOKEN = re.compile(r"[^\W_]+(?:[-'’][^\W_]+)*(?:(?<=s)['’])?|\S")  # the last: "girls' shoes"


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Words that are in no phrase, whatever the tagger takes them for.
_STOP = _words(
    """
    a an the this that these those some any each every either neither no none all both half several many much few little more most less
    another other others such same own various multiple numerous different couple pair lots lot bunch i me my mine we us our ours you your
    yours he him his she her hers it its they them their theirs who whom whose which what where when why how there here everything
    something nothing anything everyone someone nobody one's and or but nor so yet if then than because while although though unless until
    since whether as of in on at by for with without within from to into onto upon over under underneath above below beneath beside
    besides between among amongst through throughout across along around about against toward towards behind before after during near
    nearby next off out outside inside up down away back forward via per like unlike plus except past beyond atop amid alongside opposite
    left right front rear side middle center centre bottom top corner foreground background is am are was were be been being isn't aren't
    wasn't has have had having do does did done doing will would shall should can could may might must not don't doesn't very too also
    just only even still again already always never often ever once now today really quite rather almost together apart else maybe perhaps
    please well far you'll it's that's there's let's click buy sale shop free download
    """
)
# They fall off a phrase's beginning, and end one that has begun.
_NUMBERS = _words("one two three four five six seven eight nine ten eleven twelve dozen hundred thousand first second third")
# Words about the picture, not in it.
_META = _words(
    """
    photo photos photograph photographs photography picture pictures image images pic pics snapshot shot shots closeup close-up close
    view views scene scenes rendering render illustration illustrations drawing drawings sketch vector clipart clip wallpaper thumbnail
    screenshot stock type types kind kinds sort variety group groups set number amount part parts piece pieces img jpg jpeg png gif webp
    svg pdf html www http https com
    """
)
# Adjectives, for the tagger often nouns: a phrase of nothing else is dropped ("a man in black").
_ADJECTIVES = _words(
    """
    red orange yellow green cyan blue purple violet pink magenta brown black white gray grey gold golden silver beige tan turquoise teal
    maroon navy colorful colourful colored coloured dark light bright pale vivid deep small large big tiny little huge giant tall short
    long wide narrow thick thin mini massive old new young modern ancient vintage antique beautiful pretty cute nice good great best
    lovely amazing happy sad empty full open closed round square flat high low hot cold wet dry clean dirty fresh real fake soft hard
    heavy
    """
)


def extract(caption: str, limit: int | None = None) -> list[str]:
    """The noun phrases of a caption: lower case, in order, each once, at most `limit`.

    >>> extract("A photo of a red sphere left of a small blue cube")
    ['red sphere', 'small blue cube']
    """
    words = [match.group().replace("’", "'") for match in _TOKEN.finditer(caption.lower() if caption.isupper() else caption)]
    found: dict[str, None] = {}
    phrase: list[str] = []
    head = 0  # words up to the last noun of the phrase
    for word, kind in zip([*words, "."], [*_kinds(words), "|"], strict=True):
        if kind in "AN":
            phrase.append(word.lower().removesuffix("'s").removesuffix("'"))
            head = len(phrase) if kind == "N" else head
        else:  # a number falls off the beginning of the next phrase, since it ends this one
            found.update(dict.fromkeys(_cleaned(phrase[:head])))
            phrase, head = [], 0
    return list(found)[:limit]


def _kinds(words: list[str]) -> list[str]:
    """Of each word: A adjective, N noun, | neither."""
    if not words:
        return []
    # Of a long word its end, which decides its tag: it is in no phrase, and the time a word takes grows with the square of its length.
    tags = tagger()([word[-MAX_LETTERS:] for word in words])
    kinds: list[str] = []
    for i, (word, tag) in enumerate(zip(words, tags, strict=True)):
        before, lower = kinds[-1] if kinds else "|", word.lower()
        after = tags[i + 1] if i + 1 < len(words) and words[i + 1].lower() not in _STOP else ""
        if not word[0].isalnum() or lower.isdecimal() or len(word) > MAX_LETTERS or lower in _NUMBERS or lower in _STOP:
            kinds.append("|")
        elif lower in _ADJECTIVES or tag.startswith("AJ"):
            kinds.append("A")
        elif tag.startswith(("NN", "NP")):
            kinds.append("N")
        elif tag in ("VVN", "VVG", "VVD"):
            kinds.append("A" if before != "N" and after.startswith(("NN", "NP", "AJ")) else "|")
        else:  # "a stop", "a cyan cross", "a child's drive": it has to be a noun there
            kinds.append("N" if before == "A" or (i > 0 and (tags[i - 1] == "AT0" or words[i - 1].endswith("'s"))) else "|")
    for i in range(1, len(words) - 2):
        if words[i].lower() in ("and", "or") and kinds[i - 1] == "A" and kinds[i + 1] == "A" and kinds[i + 2] in "AN":
            kinds[i] = "A"  # "a black and white cat"
    return kinds


def _cleaned(words: list[str]) -> list[str]:
    """The phrase that words make, or nothing."""
    while words and words[0] in _META:
        words = words[1:]
    words = words[-MAX_WORDS:]
    if not words or words[-1] in _META or all(word in _ADJECTIVES for word in words):
        return []
    phrase = " ".join(words)
    return [phrase] if sum(letter.isalpha() for letter in phrase) > 1 else []
