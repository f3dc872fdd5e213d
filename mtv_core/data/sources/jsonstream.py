"""A JSON object that is mostly long arrays, read element by element: a file of any size, never there as a whole."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from typing import Any

from mtv_core.data.sources.access import Opened

_BLOCK = 1 << 20  # bytes
_MAX_VALUE = 64 << 20  # letters of one element
_WHOLE = (str, list, dict)  # end with a letter of their own
_NUMBER = "0123456789.eE+-"
_SPACE = " \t\r\n"


def items(file: Opened, keys: set[str] | None = None) -> Iterator[tuple[str, Any]]:
    """(key, element) for every element of the arrays of the object, (key, value) for what is no array.

    `keys` takes the keys that were met, those of empty arrays too. Bytes that are not UTF-8 become lone surrogates ("surrogateescape").

    Raises:
        ValueError: it is no JSON object, or ends before it should.
        OSError: it cannot be read now.
    """
    scanner = _Scanner(file)
    scanner.expect("{")
    if scanner.take("}"):
        return
    while True:
        key = scanner.value()
        if not isinstance(key, str):
            raise ValueError(f"expected a key, not {key!r:.40}")
        if keys is not None:
            keys.add(key)
        scanner.expect(":")
        if scanner.take("["):
            if not scanner.take("]"):
                yield key, scanner.value()
                while scanner.take(","):
                    yield key, scanner.value()
                scanner.expect("]")
        else:
            yield key, scanner.value()
        if not scanner.take(","):
            scanner.expect("}")
            return


class _Scanner:
    def __init__(self, file: Opened) -> None:
        self.file = file
        self.decoder = json.JSONDecoder()
        self.text = codecs.getincrementaldecoder("utf-8-sig")(errors="surrogateescape")
        self.buffer, self.position, self.ended = "", 0, False

    def _fill(self, letters: int) -> None:
        self.buffer, self.position = self.buffer[self.position :], 0
        block = self.file.read(max(_BLOCK, letters))
        self.ended = not block
        self.buffer += self.text.decode(block, final=self.ended)

    def _next(self) -> str:
        """The next letter that is not space, not taken; empty at the end."""
        while True:
            while self.position < len(self.buffer):
                letter = self.buffer[self.position]
                if letter not in _SPACE:
                    return letter
                self.position += 1
            if self.ended:
                return ""
            self._fill(0)

    def take(self, letter: str) -> bool:
        """Go past a letter, if it is the next."""
        if self._next() != letter:
            return False
        self.position += 1
        return True

    def expect(self, letter: str) -> None:
        """Go past a letter that has to be there."""
        if not self.take(letter):
            raise ValueError(f"expected {letter!r}, found {self._next() or 'the end'!r}: is the file cut?")

    def value(self) -> Any:
        """Go past a value. It is whole only if something follows: `12` may be the begin of `123`."""
        self._next()
        while True:
            try:
                value, end = self.decoder.raw_decode(self.buffer, self.position)
                if self.ended or (end < len(self.buffer) and (isinstance(value, _WHOLE) or self.buffer[end] not in _NUMBER)):
                    self.position = end
                    return value
            except RecursionError:
                raise ValueError("it is nested too deeply") from None
            except ValueError:
                if self.ended:
                    raise
            have = len(self.buffer) - self.position
            if have > _MAX_VALUE:
                raise ValueError(f"one value has more than {_MAX_VALUE} letters, or is no JSON")
            self._fill(have)  # twice as much each time, so that a long value is not parsed over and over
