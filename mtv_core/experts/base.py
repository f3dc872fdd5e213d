"""What an expert is, where its weights come from, and the revision by which its labels are known."""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import pyarrow as pa
import torch
from PIL import Image
from pydantic import BaseModel, Field

LABEL_SCHEMA_VERSION = 1  # raise it when stored labels change their meaning: every expert's labels become stale
BLOCKS = "blocks:"
WEIGHTS = Path(__file__).parent.parent / "blocks" / "weights"

Dtype = Literal["float32", "bfloat16", "float16"]

# The files that decide what a local model says. A README or a training log does not.
_HASHED = re.compile(
    r"(.*\.safetensors(\.index\.json)?|config\.json|(pre)?processor_config\.json|tokenizer.*\.json|special_tokens_map\.json"
    r"|added_tokens\.json|vocab\.(json|txt)|merges\.txt|.*\.model)"
)
_COMMIT = re.compile(r"[0-9a-f]{40}")
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
# Licences as the models' cards on the hub state them.
_LICENSES: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"depth-anything/depth-anything-v2-(base|large)", re.IGNORECASE), "cc-by-nc-4.0"),
    (re.compile(r"depth-anything/depth-anything-v2-small", re.IGNORECASE), "apache-2.0"),
    (re.compile(r"google/owlv2-", re.IGNORECASE), "apache-2.0"),
)


class Expert(Protocol):
    """A model with its weights, processing and thresholds, which says something of pictures."""

    name: str  # 'depth', 'detection'; the stored revision is the column `<name>_rev`
    revision: str  # what the stored labels are compared with
    schema: pa.Schema  # the columns it writes, without the revision

    def __call__(self, images: Sequence[Image.Image], captions: Sequence[str]) -> pa.RecordBatch:
        """Label RGB pictures and their captions: one row each, in order.

        Raises whatever the model raises; the caller finds out which picture it was.
        """
        ...


class ExpertConfig(BaseModel, frozen=True, extra="forbid"):
    """What all experts have in common. Path, device and batch size do not change labels, so they are not in the revision."""

    model: str = Field(description="hub id (owner/name), folder with safetensors and processor files, or 'blocks:NAME' for an embedded one")
    revision: str = Field(
        "main", description="hub only: commit (40 hex) or branch to track; a branch is resolved to its commit through the network"
    )
    accept_license: bool = Field(False, description="set it if you may use weights under a non-commercial licence for what you do")
    dtype: Dtype = Field("float32", description="arithmetic of the model; it changes labels a little, so it is part of their revision")
    device: str = Field("auto", description="'auto' (the GPU if there is one), 'cpu', 'cuda', 'cuda:1'")

    def label_parameters(self) -> dict[str, Any]:
        """Every setting that changes labels, for the revision."""
        return self.model_dump(mode="json", exclude={"model", "revision", "accept_license", "device"})


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
    """Find the weights a configuration names; cheap, loads nothing.

    Raises:
        FileNotFoundError: no such folder or embedded expert, no weights in it, or a branch of the hub that cannot be looked up.
        ValueError: the name is neither, or the licence has to be accepted first.
    """
    model = config.model
    # A folder wins over a hub id of the same spelling, as in `from_pretrained`.
    if model.startswith(BLOCKS):
        source = _embedded(model.removeprefix(BLOCKS))
    elif Path(model).is_dir():
        source = _folder(Path(model))
    elif _HUB_ID.fullmatch(model) and not model.startswith("."):
        source = Source(model, _resolve_commit(model, config.revision), None, _hub_license(model))
    elif Path(model).exists():
        raise ValueError(f"the expert model {model!r} is a file; give the folder it lies in, which has config.json and the processor's files too")
    else:
        raise FileNotFoundError(f"there is no folder {model!r} for the expert; give an existing folder, a hub id (owner/name) or 'blocks:NAME'")
    if re.search(r"(^|[-_ ])nc([-_ ]|$)", source.license.lower()) and not config.accept_license:
        raise ValueError(
            f"the weights of {model} are under {source.license}, which forbids commercial use; if that suits what you do, set "
            "accept_license: true for this expert, else take another model (Depth-Anything-V2-Small is Apache-2.0)"
        )
    return source


def _embedded(name: str) -> Source:
    folder = WEIGHTS / name
    known = sorted(p.name for p in WEIGHTS.glob("*") if any(p.glob("*.safetensors")))
    if not re.fullmatch(r"[\w-]+", name) or name not in known:
        raise FileNotFoundError(f"there is no embedded expert 'blocks:{name}'; there are {', '.join(f'blocks:{k}' for k in known) or 'none'}")
    return _folder(folder)


def _folder(folder: Path) -> Source:
    folder = folder.resolve()
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"the expert folder {folder} has no config.json; it must be what `model.save_pretrained(folder)` writes")
    if not any(folder.glob("*.safetensors")):
        raise FileNotFoundError(
            f"the expert folder {folder} has no weights (*.safetensors); save the model there with `model.save_pretrained(folder)` "
            "(other weight formats are not read, since they can run code)"
        )
    files = sorted(p for p in folder.iterdir() if p.is_file() and _HASHED.fullmatch(p.name))
    states = tuple((str(p), p.stat().st_size, p.stat().st_mtime_ns) for p in files)
    return Source(str(folder), None, _digest(states), _card_license(folder))


@functools.lru_cache(maxsize=64)
def _digest(states: tuple[tuple[str, int, int], ...]) -> str:
    """sha256 over names and contents. Cached by size and time of change, since a large model takes seconds to hash."""
    total = hashlib.sha256()
    for path, _, _ in states:
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
            f"the hub has no model {model!r} with a revision {revision!r} (or it needs a login); if you mean a folder, it is not there: {error}"
        ) from error
    except Exception as error:  # no network shows as one of a dozen exceptions of three libraries
        raise FileNotFoundError(
            f"cannot look up revision {revision!r} of {model!r} on the hub ({type(error).__name__}); without a network give the full commit "
            "(40 hex digits) of a model that is in the local cache, or a local folder"
        ) from error
    assert commit is not None
    return commit


def _hub_license(model: str) -> str:
    return next((name for pattern, name in _LICENSES if pattern.match(model)), "unknown")


def _card_license(folder: Path) -> str:
    """The `license:` of the model card, if a folder came with one."""
    card = folder / "README.md"
    found = re.search(r"^license:\s*(\S+)", card.read_text(errors="replace"), re.MULTILINE) if card.is_file() else None
    return found[1].strip("'\"") if found else "unknown"


def load_pretrained(auto_class: Any, source: Source, **arguments: Any) -> Any:
    """`auto_class.from_pretrained` of a source, with an error that says what to do.

    Raises:
        FileNotFoundError: files are missing, or the hub cannot be reached and the cache does not have them.
        ValueError: the files are there but are no such model.
    """
    try:
        return auto_class.from_pretrained(source.location, **source.arguments, **arguments)
    except OSError as error:
        hint = "the folder lacks a file" if source.digest else "it is not in the local cache and could not be downloaded"
        raise FileNotFoundError(f"cannot load {source.location}: {hint}. {_first_line(error)}") from error
    except Exception as error:
        raise ValueError(f"{source.location} cannot be loaded as {auto_class.__name__}: {type(error).__name__}: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), "")[:300]


def pick_device(device: str) -> torch.device:
    """The device a configuration asks for.

    Raises:
        ValueError: it asks for a GPU and there is none.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    chosen = torch.device(device)
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"the expert's device is {device!r}, but torch sees no GPU here; set device: auto or cpu")
    return chosen
