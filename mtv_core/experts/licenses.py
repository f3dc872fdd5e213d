"""Under which licence an expert's weights are, and whether a person has to say that it suits what they do. Nothing heavy is imported."""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import Any

UNKNOWN = "unknown"

# As the models' cards on the hub state them, so that the usual experts are known without a network.
_KNOWN: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"depth-anything/depth-anything-v2-(base|large)", re.IGNORECASE), "cc-by-nc-4.0"),
    (re.compile(r"depth-anything/depth-anything-v2-small", re.IGNORECASE), "apache-2.0"),
    (re.compile(r"google/owlv2-", re.IGNORECASE), "apache-2.0"),
    (re.compile(r"idea-research/grounding-dino-(tiny|base)", re.IGNORECASE), "apache-2.0"),
)
_NON_COMMERCIAL = re.compile(r"(^|[-_ ])nc([-_ ]|$)", re.IGNORECASE)


def of_hub(model: str, commit: str) -> str:
    """The licence of a hub model: of the list above, else of its card at this commit, from the cache or through the network."""
    for pattern, name in _KNOWN:
        if pattern.match(model):
            return name
    try:
        return _of_card(_hub_card(model, commit))
    except Exception:  # no card, or no network, which shows as one of a dozen exceptions of three libraries
        return UNKNOWN


def of_folder(folder: Path) -> str:
    """The licence of the model card in a folder, if it came with one."""
    card = folder / "README.md"
    return _of_card(card.read_text(errors="replace")) if card.is_file() else UNKNOWN


def refusal(model: str, license_name: str, of_the_hub: bool) -> str | None:
    """Why the weights may not be used before a person accepts their licence, or None if they may.

    A folder without a card is taken for the user's own; a hub model whose licence is not known is somebody else's.
    """
    if _NON_COMMERCIAL.search(license_name):
        why = f"are under {license_name}, which forbids commercial use"
    elif license_name.startswith("other"):
        why = f"are under a licence of their own ({license_name}), which only its text explains"
    elif license_name == UNKNOWN and of_the_hub:
        why = "are under a licence that is not known: the model's card names none, or the hub could not be asked for it"
    else:
        return None
    return (
        f"the weights of {model} {why}; if that suits what you do, set accept_license: true for this expert, else take another model "
        "(Depth-Anything-V2-Small and OWLv2 are Apache-2.0)"
    )


@functools.lru_cache(maxsize=64)  # what it raises is not remembered: the network may be back
def _hub_card(model: str, commit: str) -> str:
    """The text of a card. What was read once is in the hub's cache on disk.

    Raises whatever the hub's client raises.
    """
    from huggingface_hub import HfApi, hf_hub_download, try_to_load_from_cache

    found = try_to_load_from_cache(model, "README.md", revision=commit)
    if not isinstance(found, str):
        HfApi().model_info(model, revision=commit, timeout=20)  # says soon that it cannot be reached; a download tries for long
        found = hf_hub_download(model, "README.md", revision=commit)
    return Path(found).read_text(errors="replace")


def _of_card(text: str) -> str:
    """The `license:` of a card's front matter; of several, all; of 'other', its name too."""
    import yaml

    front = re.match(r"---\s*\n(.*?)\n---\s*(\n|$)", text, re.DOTALL)
    try:
        facts: Any = yaml.safe_load(front[1]) if front else None
    except yaml.YAMLError:
        return UNKNOWN
    said = facts.get("license") if isinstance(facts, dict) else None
    names = [str(name).lower() for name in (said if isinstance(said, list) else [said]) if name]
    if not names:
        return UNKNOWN
    if names == ["other"] and facts.get("license_name"):
        return f"other: {facts['license_name']}"
    return ", ".join(names)
