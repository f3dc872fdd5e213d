"""Text embeddings of phrases, each computed once while it is in use. Captions name the same few thousand things over and over."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

CACHED_PHRASES = 100_000  # kept; 200 MB for the base model's 512 floats


class PhraseEmbeddings:
    """Embeddings by phrase; of more than `limit` those that were asked for least recently are forgotten. Threads may share it."""

    def __init__(self, embed: Callable[[Sequence[str]], Tensor], limit: int = CACHED_PHRASES) -> None:
        """embed: texts → [len(texts), D]."""
        self._embed, self._limit = embed, limit
        self._kept: OrderedDict[str, Tensor] = OrderedDict()
        self._lock = threading.Lock()

    def __call__(self, phrases: Sequence[str]) -> Tensor:
        """[len(phrases), D]. Phrases are different and at least one. Raises what `embed` raises."""
        with self._lock:
            new = [phrase for phrase in phrases if phrase not in self._kept]
            if new:
                # Rows of one tensor would keep all of it in memory for as long as one of them is kept.
                self._kept.update((phrase, row.clone()) for phrase, row in zip(new, self._embed(new), strict=True))
            for phrase in phrases:
                self._kept.move_to_end(phrase)
            found = torch.stack([self._kept[phrase] for phrase in phrases])
            while len(self._kept) > self._limit:
                self._kept.popitem(last=False)
            return found
