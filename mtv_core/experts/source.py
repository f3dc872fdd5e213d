"""Where an expert's weights come from, and the revision by which its labels are known. Cheap: nothing is loaded."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
import shutil
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mtv_core.experts import licenses
from mtv_core.experts.config import ExpertConfig

LABEL_SCHEMA_VERSION = 1  # raise it when stored labels change their meaning: every expert's labels become stale
BLOCKS = "blocks:"
WEIGHTS = Path(__file__).parent.parent / "blocks" / "weights"

# The files that decide what a local model says. A README or a training log does not.
_HASHED = re.compile(
    r"(.*\.safetensors(\.index\.json)?|config\.json|(pre)?processor_config\.json|tokenizer.*\.json|special_tokens_map\.json"
    r"|added_tokens\.json|vocab\.(json|txt)|merges\.txt|.*\.model)"
)
_COMMIT = re.compile(r"[0-9a-f]{40}")
_keeping = threading.Lock()  # one copy at a time in a process: what bears its id is a leftover
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class Source:
    """Weights that are found: a hub id at a commit, or a folder with the hash of its contents."""

    location: str
    commit: str | None
    digest: str | None
    license: str

    @property
    def identity(self) -> dict[str, str]:
        """What of the source goes into the revision: not where a folder is, only what is in it."""
        if self.digest is not None:
            return {"folder_sha256": self.digest}
        assert self.commit is not None
        return {"hub": self.location, "commit": self.commit}

    @property
    def arguments(self) -> dict[str, Any]:
        """Keyword arguments of every `from_pretrained`: pinned, no code of the repository is run."""
        pinned = {"revision": self.commit} if self.commit else {"local_files_only": True}
        return {"trust_remote_code": False, **pinned}


def label_revision(name: str, source: Source, parameters: Mapping[str, Any]) -> str:
    """The first 16 hex digits of sha256 over the canonical JSON (sorted keys, no spaces, ASCII) of what labels depend on.

    Library versions are left out: they are recorded with the run, and a new torch is no reason to label 100 M rows again.
    """
    document = {"schema": LABEL_SCHEMA_VERSION, "expert": name, "source": source.identity, "parameters": dict(parameters)}
    canonical = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def resolve(config: ExpertConfig) -> Source:
    """Find the weights a configuration names.

    Raises:
        FileNotFoundError: no such folder or embedded expert, no weights in it, or a branch of the hub that cannot be looked up.
        ValueError: the name is neither, or the licence has to be accepted first.
    """
    model = config.model
    # A folder wins over a hub id of the same spelling, as in `from_pretrained`.
    if model.startswith(BLOCKS):
        source = _embedded(model.removeprefix(BLOCKS))
    elif Path(model).expanduser().is_dir():
        source = _folder(Path(model).expanduser())
    elif Path(model).expanduser().exists():
        raise ValueError(
            f"the expert model {model!r} is a file; give the folder it lies in, which has config.json and the processor's files too"
        )
    elif _HUB_ID.fullmatch(model) and not model.startswith("."):
        commit = _resolve_commit(model, config.revision)
        source = Source(model, commit, None, licenses.of_hub(model, commit))
    else:
        raise FileNotFoundError(
            f"there is no folder {model!r} for the expert; give an existing folder, a hub id (owner/name) or 'blocks:NAME'"
        )
    refused = None if config.accept_license else licenses.refusal(model, source.license, of_the_hub=source.commit is not None)
    if refused:
        raise ValueError(refused)
    return source


def keep(source: Source, folder: Path) -> str:
    """Copy a folder's files to `folder/<digest>`, whole or not at all, and return where they are; a hub id is returned as it is.

    The folder a configuration watches may change tomorrow; labels of today's weights must be completed with today's weights.

    Raises:
        ValueError: the files changed while they were copied.
        OSError: the target is full or read-only.
    """
    if source.digest is None:
        return source.location
    with _keeping:
        return _keep(source, folder / source.digest)


def _keep(source: Source, kept: Path) -> str:
    folder = kept.parent
    if kept.is_dir():
        return str(kept)
    _sweep(folder)
    partial = folder / f".{kept.name}.{os.uname().nodename}.{os.getpid()}.partial"
    partial.mkdir(parents=True)
    try:
        origin = Path(source.location)
        for path in [*hashed_files(origin), *filter(Path.is_file, [origin / "README.md"])]:  # the card states the licence
            try:
                shutil.copyfile(path, partial / path.name)
            except OSError as error:  # it names the source, which is not what is full
                raise OSError(error.errno, f"cannot keep a copy of the expert in {folder}: {error.strerror}") from error
        if _folder(partial).digest != source.digest:
            raise ValueError(f"{origin} changed while it was read; run again when the new weights are complete")
        try:
            partial.rename(kept)
        except OSError:
            if not kept.is_dir():  # else another run kept the same files a moment earlier
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return str(kept)


def _sweep(folder: Path) -> None:
    """Remove what killed copies of this host left; also one of an earlier process with this one's id, as in a container started again."""
    for partial in folder.glob(f".*.{os.uname().nodename}.*.partial"):
        process = int(partial.name.split(".")[-2])
        if process == os.getpid():
            shutil.rmtree(partial, ignore_errors=True)
            continue
        try:
            os.kill(process, 0)
        except ProcessLookupError:
            shutil.rmtree(partial, ignore_errors=True)
        except PermissionError:  # it lives, and is somebody else's
            continue


def _embedded(name: str) -> Source:
    known = sorted(p.name for p in WEIGHTS.glob("*") if any(p.glob("*.safetensors")))
    if name not in known:
        raise FileNotFoundError(
            f"there is no embedded expert 'blocks:{name}'; there are {', '.join(f'blocks:{k}' for k in known) or 'none'}"
        )
    return _folder(WEIGHTS / name)


def _folder(folder: Path) -> Source:
    folder = folder.resolve()
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"the expert folder {folder} has no config.json; it must be what `model.save_pretrained(folder)` writes")
    if not any(folder.glob("*.safetensors")):
        raise FileNotFoundError(
            f"the expert folder {folder} has no weights (*.safetensors); save the model there with `model.save_pretrained(folder)` "
            "(other weight formats are not read, since they can run code)"
        )
    found = [(str(path), path.stat()) for path in hashed_files(folder)]
    states = tuple((path, (of.st_ino, of.st_size, of.st_mtime_ns, of.st_ctime_ns)) for path, of in found)
    return Source(str(folder), None, _digest(states), licenses.of_folder(folder))


@functools.lru_cache(maxsize=64)
def _digest(states: tuple[tuple[str, tuple[int, ...]], ...]) -> str:
    """sha256 over names and contents. Cached by size, times and inode, since a large model takes seconds to hash."""
    total = hashlib.sha256()
    for path, _ in states:
        with Path(path).open("rb") as file:
            total.update(f"{Path(path).name}\0{hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return total.hexdigest()


def hashed_files(folder: Path) -> list[Path]:
    """The files of a model folder that decide its labels: what has to be kept to load it again."""
    return sorted(p for p in folder.iterdir() if p.is_file() and _HASHED.fullmatch(p.name))


def _resolve_commit(model: str, revision: str) -> str:
    if _COMMIT.fullmatch(revision):
        return revision
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    try:
        commit = HfApi().model_info(model, revision=revision, timeout=20).sha
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise FileNotFoundError(
            f"there is no folder {model!r}, and the hub has no such model with a revision {revision!r} (or it needs a login)"
        ) from error
    except Exception as error:  # no network shows as one of a dozen exceptions of three libraries
        raise FileNotFoundError(
            f"there is no folder {model!r}, and its revision {revision!r} cannot be looked up on the hub ({type(error).__name__}); "
            "without a network give a local folder, or the full commit (40 hex digits) of a model that is in the local cache"
        ) from error
    assert commit is not None
    return commit
