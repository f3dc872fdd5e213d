"""Noun phrases of a caption, by rules alone: no model, no network, the same on every machine.

The idea of RAKE (Rose et al. 2010): words that carry no content cut a text into pieces, and the pieces are the phrases. What nouns need on
top: participles and common verbs cut too, determiners and numbers fall off, and words about the picture itself ("a photo of") or adjectives
alone are no phrase. OWLv2 is asked for every phrase, so one that is not in the picture costs time; one that is missed costs a label.

It is made for English. A caption in another script gives its words, or nothing.
"""

from __future__ import annotations

import re

VERSION = 1  # raise it when the same caption gives other phrases: detections of captions become stale
MAX_WORDS = 5  # of a phrase: the last ones, since an English noun phrase ends with its head
MAX_LETTERS = 24  # of a word; longer ones are file names and hashes

_WORD = re.compile(r"[^\W_]+(?:[-'’][^\W_]+)*")
_BREAK = re.compile(r"[^\w\s'’-]|_|\s[-–—]+\s")


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Words that end a phrase and are in none.
_STOP = _words(
    """
    a an the this that these those some any each every either neither no none all both half several many much few little more most less
    another other others such same own various multiple numerous different couple pair lots lot bunch i me my mine we us our ours you
    your yours he him his she her hers it its they them their theirs who whom whose which what where when why how there here everything
    something nothing anything everyone someone nobody one's and or but nor so yet if then than because while although though unless
    until since whether as of in on at by for with without within from to into onto upon over under underneath above below beneath
    beside besides between among amongst through throughout across along around about against toward towards behind before after during
    near nearby next off out outside inside up down away back forward via per like unlike plus except past beyond atop amid alongside
    opposite left right front rear side middle center centre bottom top corner foreground background is am are was were be been being
    isn't aren't wasn't has have had having do does did done doing will would shall should can could may might must not don't doesn't
    very too also just only even still again already always never often ever once now today really quite rather almost together apart
    else maybe perhaps please well far sits sit sat stands stand stood lies lie lay lays laid rests hangs hang hung leans goes go went
    gone comes come came gets get got looks look looked shows show showed shown depicts depict depicted features contains contain
    includes include wears wear wore worn holds hold held rides ride rode ridden walks walk walked runs run ran plays played eats eat
    ate drinks flies fly flew swims swim jumps jump jumped takes take took taken makes make made puts put uses use used says say said
    sees see saw seen gives give gave given keeps keep kept carries carry carried pulls pushes throws throw threw hits hit catches catch
    caught reads waits wait waited poses pose posed smiles smiled covers covered surrounds surrounded fills filled overlooks faces
    appears seems becomes remains stays moves moved turns turned opens opened you'll it's that's there's let's click buy sale shop free
    download
    """
)
# Determiners that are numbers: they fall off a phrase's beginning, and cut nothing elsewhere ("number two pencil").
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
# Adjectives: a phrase of nothing else is dropped ("a man in black").
_ADJECTIVES = _words(
    """
    red orange yellow green cyan blue purple violet pink magenta brown black white gray grey gold golden silver beige tan turquoise teal
    maroon navy colorful colourful colored coloured dark light bright pale vivid deep small large big tiny little huge giant tall short
    long wide narrow thick thin mini massive old new young modern ancient vintage antique beautiful pretty cute nice good great best
    lovely amazing happy sad empty full open closed round square flat high low hot cold wet dry clean dirty fresh real fake soft hard
    heavy
    """
)
# Nouns that end like a participle or an adverb.
_ING_NOUNS = _words(
    """
    ring rings king wing wings string spring building buildings ceiling painting paintings clothing railing awning swing earring
    earrings sling lightning pudding wedding evening morning stocking stockings crossing dressing frosting icing siding sibling duckling
    dumpling dumplings fencing opening landing parking dining living sewing washing boxing viking herring sterling bearing engraving
    carving lettering thing things sting wiring tubing roofing flooring bedding housing shipping
    swimming cutting cooking
    """
)
_LY_NOUNS = _words("fly butterfly dragonfly family belly jelly lily ally bully holly assembly supply reply italy july monopoly anomaly")
_ED_WORDS = _words("red bed beds shed sled seed weed reed breed feed steed speed bobsled moped biped quadruped hundred")


def extract(caption: str, limit: int | None = None) -> list[str]:
    """The noun phrases of a caption: lower case, in order, each once, at most `limit`.

    >>> extract("A photo of a red sphere left of a small blue cube")
    ['red sphere', 'small blue cube']
    """
    phrases: dict[str, None] = {}
    for piece in _BREAK.split(caption.lower()):
        words: list[str] = []
        for word in [match.group().replace("’", "'") for match in _WORD.finditer(piece)] + ["the"]:
            if _cuts(word):
                phrases.update(dict.fromkeys(_phrase(words)))
                words = []
            else:
                words.append(word.removesuffix("'s"))
    return list(phrases)[:limit]


def _cuts(word: str) -> bool:
    if word in _STOP or len(word) > MAX_LETTERS:
        return True
    if word.endswith("ing") and len(word) > 4:
        return word.split("-")[-1] not in _ING_NOUNS
    return word.endswith("ly") and len(word) > 4 and word not in _LY_NOUNS


def _phrase(words: list[str]) -> list[str]:
    """The phrase that words between two cuts make, or nothing."""
    while words and (words[0] in _NUMBERS or words[0] in _META or words[0].isdecimal()):
        words = words[1:]
    # "a man dressed in black": a participle at the end belongs to what follows; "a parked car" keeps its own.
    while words and (words[-1].isdecimal() or (words[-1].endswith("ed") and words[-1] not in _ED_WORDS and len(words) > 1)):
        words = words[:-1]
    words = words[-MAX_WORDS:]
    if not words or words[-1] in _META or all(word in _ADJECTIVES or word in _NUMBERS for word in words):
        return []
    phrase = " ".join(words)
    return [phrase] if sum(letter.isalpha() for letter in phrase) > 1 else []
