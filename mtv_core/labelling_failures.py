"""What an expert's error says: of the picture, of the moment, of memory, or of the machine. Each is answered differently.

data        the picture cannot be read                 refused, with a reject row
memory      a batch is too large                       halved; a picture that fails alone stays stale
transient   the network or a service had a moment      tried again a few times; then its rows stay stale
machine     the GPU is lost, a disk is full            nothing is refused: the fragment ends here, its rows stay stale
bug         anything else                              halved down to the picture to blame, which is refused; where most pictures
                                                       fail it is not they who are to blame, and the expert is given up
"""

from __future__ import annotations

import errno
import re
import threading
from collections import deque
from dataclasses import dataclass
from enum import Enum

import torch

from mtv_core.report import RejectClass

MIN_BUGS = 4  # failures from which it is asked whether the expert or the pictures are to blame
_RECENT = 64  # pictures that are remembered for it, over the fragments of a process

_MEMORY = re.compile(
    r"out of memory|can't allocate memory|CUBLAS_STATUS_ALLOC_FAILED|CUDNN_STATUS_ALLOC_FAILED|std::bad_alloc", re.IGNORECASE
)
_DEVICE = re.compile(
    r"\b(CUDA|HIP|NVML|XPU|MPS) (driver )?error|\bCU(BLAS|DNN|SOLVER|FFT)_STATUS_|device-side assert|device kernel image|ECC error"
)
_MACHINE_ERRNO = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EMFILE, errno.ENFILE, errno.EIO}
_NEVER_PASSES = (FileNotFoundError, PermissionError, NotADirectoryError, IsADirectoryError, FileExistsError)


class ExpertUnavailableError(RuntimeError):
    """The expert cannot be loaded, or fails on everything: no fragment will do better."""


class SickMachineError(OSError):
    """The GPU under the expert fails. An OSError, so that whoever spreads the work tries it elsewhere; here it is no use any more."""


class Kind(Enum):
    """What an exception from inside an expert is about."""

    MEMORY = "memory"
    TRANSIENT = "transient"
    MACHINE = "machine"
    BUG = "bug"


@dataclass(frozen=True)
class Failure:
    """Why a row has no label."""

    error: str
    message: str
    reject_class: RejectClass

    @classmethod
    def of(cls, error: Exception, reject_class: RejectClass) -> Failure:
        """By what an expert raised."""
        return cls(type(error).__name__, f"{type(error).__name__}: {str(error)[:500]}", reject_class)


def kind_of(error: Exception) -> Kind:
    """Sort what an expert raised. An OSError is never the picture's fault: what an expert reads is weights and services."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return Kind.MEMORY
    if isinstance(error, OSError):
        passes = not isinstance(error, _NEVER_PASSES) and error.errno not in _MACHINE_ERRNO
        return Kind.TRANSIENT if passes else Kind.MACHINE
    if isinstance(error, RuntimeError):
        text = str(error)
        if _MEMORY.search(text):
            return Kind.MEMORY
        if isinstance(error, torch.AcceleratorError) or _DEVICE.search(text):
            return Kind.MACHINE
    return Kind.BUG


def sick(error: Exception) -> OSError:
    """What to raise where the machine is to blame."""
    if isinstance(error, OSError):
        return error
    said = f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')[:300]}"
    return SickMachineError(
        errno.EIO,
        f"the device fails, not a picture ({said}); its rows stay without labels. A process cannot go on after such an error: restart this "
        "worker, and look at the device (nvidia-smi -q) if it comes again",
    )


class BatchSize:
    """How many pictures an expert gets at once: halved where memory runs out, for good; grown again carefully.

    After a failure it is doubled only when `patience` batches of the present size went well, and never beyond what was asked for. Every
    failure doubles the patience: what just does not fit is tried ever more rarely.
    """

    def __init__(self, limit: int, patience: int = 16) -> None:
        self.limit, self.now = limit, limit
        self._patience, self._good = patience, 0
        self._lock = threading.Lock()

    def worked(self, number: int) -> None:
        """A batch of so many pictures went well."""
        with self._lock:
            if number < self.now or self.now >= self.limit:
                return
            self._good += 1
            if self._good >= self._patience:
                self.now, self._good = min(2 * self.now, self.limit), 0

    def failed(self, number: int) -> None:
        """Memory ran out over a batch of so many."""
        with self._lock:
            if number <= self.now:  # else another thread has halved already
                self.now, self._good, self._patience = max(1, number // 2), 0, 2 * self._patience


class Evidence:
    """Whether the expert or the pictures are to blame: of one fragment, and of the last pictures of a process."""

    def __init__(self) -> None:
        self._recent: deque[bool] = deque(maxlen=_RECENT)  # whether a picture failed by a bug

    def check(self, where: str, bugs: int, tried: int, part_bugs: int, part_tried: int, worst: Failure | None) -> None:
        """Take account of a part of a fragment.

        Args:
            where: what is labelled, for the message.
            bugs, tried: pictures of the fragment so far.
            part_bugs, part_tried: of its last part.
            worst: one of its bugs.

        Raises:
            ExpertUnavailableError: refused for good is for single pictures; a broken expert or a wrong configuration fails on all, and must
                not use them up.
        """
        self._recent.extend([True] * part_bugs + [False] * (part_tried - part_bugs))
        if not part_bugs or worst is None:
            return
        recent = sum(self._recent)
        if bugs >= MIN_BUGS and 2 * bugs > tried:
            said = f"it fails on {bugs} of the first {tried} pictures of {where}"
        elif recent >= MIN_BUGS and 2 * recent > len(self._recent):
            said = f"it failed on {recent} of the last {len(self._recent)} pictures, the last of them in {where}"
        else:
            return
        self._recent.clear()
        raise ExpertUnavailableError(f"{said}: {worst.message}")
