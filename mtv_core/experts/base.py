"""What an expert does, and how its model is loaded."""

from __future__ import annotations

import contextlib
import re
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import pyarrow as pa
import torch
from PIL import Image

from mtv_core.experts.phrase_column import BadPhrases
from mtv_core.experts.source import Source

_launching = threading.Lock()
_UNUSED = re.compile(r"mask_token$|position_ids$")  # of pretraining, or of old checkpoints: labels do not depend on them


class Expert(Protocol):
    """A model with its weights, processing and thresholds, which says something of pictures."""

    name: str  # 'depth', 'detection'; the stored revision is the column `<name>_rev`
    revision: str  # what the stored labels are compared with
    license: str  # of the weights
    schema: pa.Schema  # the columns it writes, without the revision
    extra_columns: tuple[str, ...]  # of the table, that hold the user's own phrases; () for most

    @property
    def counts(self) -> Counter[str]:
        """Of this thread's last successful call, for the stage's report: `detection_filter_<name>` → boxes dropped."""
        ...

    def __call__(
        self, images: Sequence[Image.Image], captions: Sequence[str], phrases: Sequence[Sequence[str] | None] | None = None
    ) -> pa.RecordBatch:
        """Label RGB pictures and their captions: one row each, in order.

        phrases: the user's own for each picture (what `phrases_in` gives of the rows' extra columns), None where he names none;
        without any (None) the expert takes what it is configured to.

        Raises whatever the model raises; the caller finds out which picture it was. An answer that can be no label (`answer.check`) is
        taken as if it had been raised.
        """
        ...

    def phrases_in(self, rows: pa.RecordBatch) -> Sequence[Sequence[str] | BadPhrases] | None:
        """The user's own phrases in rows that have the extra columns, or why a row has none; None if the expert takes none.

        Raises:
            ValueError: a column is missing or of the wrong type, so no row will do better.
        """
        ...


def load_pretrained(auto_class: Any, source: Source, **arguments: Any) -> Any:
    """`auto_class.from_pretrained` of a source, with an error that says what to do.

    Raises:
        FileNotFoundError: files are missing, or the hub cannot be reached and the cache does not have them.
        ValueError: the files are there but are no such model.
    """
    try:
        if source.commit:
            # What is in the cache is asked for first: without a network, transformers would retry for a minute and a half.
            try:
                return auto_class.from_pretrained(source.location, **source.arguments, local_files_only=True, **arguments)
            except OSError:
                _reach(source)
        return auto_class.from_pretrained(source.location, **source.arguments, **arguments)
    except OSError as error:
        hint = "the folder lacks a file" if source.digest else "it is not in the local cache and could not be downloaded"
        raise FileNotFoundError(f"cannot load the expert {source.location}: {hint}. {_first_line(error)}") from error
    except Exception as error:
        raise ValueError(
            f"{source.location} cannot be loaded as {auto_class.__name__}: {type(error).__name__}: {_first_line(error)}"
        ) from error


def _reach(source: Source) -> None:
    """Ask the hub for a model's facts, once.

    Raises:
        OSError: it does not answer, or does not have the model.
    """
    from huggingface_hub import HfApi

    try:
        HfApi().model_info(source.location, revision=source.commit, timeout=20)
    except Exception as error:  # of three libraries
        raise OSError(f"the hub did not give {source.location} at {source.commit}: {type(error).__name__}: {_first_line(error)}") from error


def load_model(auto_class: Any, source: Source, dtype: torch.dtype, device: torch.device) -> Any:
    """Load a model for inference, from safetensors, every weight of which has to be there.

    Channels last: on a CPU the convolutions of a depth head take half the time.

    Raises:
        FileNotFoundError: as `load_pretrained`.
        ValueError: as `load_pretrained`, and when weights are missing: transformers would fill them with random numbers.
    """
    model, info = load_pretrained(auto_class, source, use_safetensors=True, dtype=dtype, output_loading_info=True)
    missing = sorted(key for key in info["missing_keys"] if not _UNUSED.search(key))
    if missing:
        raise ValueError(
            f"the weights of {source.location} lack {len(missing)} tensors of a {type(model).__name__} ({', '.join(missing[:3])}, …); "
            "config.json and the weights do not belong together"
        )
    return model.to(device, memory_format=torch.channels_last).eval().requires_grad_(False)


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), "")[:300]


@contextlib.contextmanager
def launching(device: torch.device) -> Iterator[None]:
    """Around a model's forward: on a GPU one thread at a time launches kernels, so that one batch's intermediate results are in its memory.

    While they run, another thread prepares its batch or reads results. On a CPU each thread computes its own.
    """
    with _launching if device.type == "cuda" else contextlib.nullcontext():
        yield


def pick_device(device: str) -> torch.device:
    """The device a configuration asks for.

    Raises:
        ValueError: there is no such device here.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError:
        raise ValueError(f"{device!r} is not a device; set device: auto, cpu, cuda or cuda:1") from None
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"the expert's device is {device!r}, but torch sees {torch.cuda.device_count()} GPUs here; set device: auto or cpu"
        )
    return chosen
