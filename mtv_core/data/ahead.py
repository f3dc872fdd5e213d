"""Read ahead: a thread takes items from an iterator while the caller works on those before.

A shard in an object store is waited for while pictures are decoded, and not after it. On this machine, what reading and hashing cost
runs beside the decoder, which lets go of the interpreter.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Generic, TypeVar

T = TypeVar("T")
_LIMIT = 8 << 20  # bytes that wait, or one item
_PIECE, _ITEMS = 1 << 20, 64  # bytes or items that are handed over together, since every handing over costs a switch of threads


@dataclass
class _Piece(Generic[T]):
    """Items with what came after them, if that is not another piece."""

    items: list[T] = field(default_factory=list)
    num_bytes: int = 0
    last: bool = False
    error: BaseException | None = None


class Ahead(Generic[T]):
    """An iterator over the same items in the same order; what the one below raises comes where it was raised.

    Leave the block, and the thread ends as soon as the item it is at is read.

    Args:
        items: read in a thread, from the first to the last.
        weigh: bytes of an item. Called in the thread, so it may compute what the caller will ask the item for.
        limit: bytes that may wait to be taken. While more wait, by one piece at most, none is read: of items larger than that, one waits.
    """

    def __init__(self, items: Iterator[T], weigh: Callable[[T], int], limit: int = _LIMIT) -> None:
        self._items, self._weigh, self._limit = items, weigh, limit
        self._changed = threading.Condition()
        self._waiting: list[_Piece[T]] = []
        self._held = 0  # bytes of what waits
        self._left = False
        self.seconds = 0.0  # the thread spent reading
        self._thread = threading.Thread(target=self._run, name="read-ahead", daemon=True)

    def __enter__(self) -> Iterator[T]:
        self._thread.start()
        return self._taken()

    def __exit__(self, *exception: object) -> None:
        with self._changed:
            self._left = True
            self._changed.notify_all()
        self._thread.join()

    def _run(self) -> None:
        piece: _Piece[T] = _Piece()
        try:
            while self._room():
                clock = time.perf_counter()
                for item in self._items:
                    piece.items.append(item)
                    piece.num_bytes += self._weigh(item)
                    if self._left or piece.num_bytes >= min(_PIECE, self._limit) or len(piece.items) >= _ITEMS:
                        break
                else:
                    piece.last = True
                self.seconds += time.perf_counter() - clock
                self._hand_over(piece)
                if piece.last:
                    return
                piece = _Piece()
        except BaseException as error:  # raised again in the caller's thread
            piece.error = error
            self._hand_over(piece)
        finally:
            close = getattr(self._items, "close", None)  # of a generator: its files are closed here, where they were opened
            if close is not None:
                close()

    def _room(self) -> bool:
        """Wait until there is room; False if the caller has left."""
        with self._changed:
            self._changed.wait_for(lambda: self._left or self._held < self._limit)
            return not self._left

    def _hand_over(self, piece: _Piece[T]) -> None:
        with self._changed:
            self._held += piece.num_bytes
            self._waiting.append(piece)
            self._changed.notify_all()

    def _taken(self) -> Iterator[T]:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting)
                piece = self._waiting.pop(0)
                self._held -= piece.num_bytes
                self._changed.notify_all()
            yield from piece.items
            if piece.error is not None:
                raise piece.error
            if piece.last:
                return
