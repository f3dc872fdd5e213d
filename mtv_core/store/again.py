"""Commits that are made again where somebody else's came between."""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable
from typing import TypeVar

from lance.commit import CommitConflictError

Result = TypeVar("Result")

ATTEMPTS = 20
_WAIT = 0.02  # s at most before the second attempt, twice as much before each further one
_LONGEST_WAIT = 1.0  # s
_BETWEEN = re.compile("incompatible transaction", re.IGNORECASE)  # two changes of one key of a configuration; no class of its own


def until_alone(uri: str, attempt: Callable[[], Result]) -> Result:
    """Call what opens the latest version and commits to it, until nobody commits in between; where all is done it has to do nothing.

    Raises:
        OSError: others were quicker every time.
    """
    for number in range(ATTEMPTS):
        try:
            return attempt()
        except OSError as error:
            if not isinstance(error, CommitConflictError) and not _BETWEEN.search(str(error)):
                raise
        time.sleep(random.uniform(0, min(_WAIT * 2**number, _LONGEST_WAIT)))
    raise OSError(f"others write to {uri} all the time; run again")
