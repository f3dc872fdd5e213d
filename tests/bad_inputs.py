"""The corpus of bad input. `python tests/bad_inputs.py OUT` writes each kind into a folder of its own; `kinds.json` says what is due."""

from __future__ import annotations

import argparse
import importlib
import json
from pathlib import Path

from malformed.kinds import KINDS, Kind

MODULES = ("images", "captions", "tars", "tables", "folders", "sources")
for module in MODULES:
    importlib.import_module(f"malformed.{module}")

__all__ = ["KINDS", "Kind"]


def write(out: Path) -> list[dict[str, object]]:
    """All kinds, and the list of them."""
    listing = []
    for kind in KINDS.values():
        folder = out / kind.name
        folder.mkdir(parents=True)
        uri = kind.make(folder)
        listing.append(
            {
                "name": kind.name,
                "format": kind.format,
                "uri": str(uri),
                "good": len(kind.good),
                "kept": kind.kept,
                "rejects": kind.rejects,
                "refusal": kind.refusal and [kind.refusal[0].__name__, kind.refusal[1]],
                "ingest": kind.config,
                "source": kind.source,
            }
        )
    return listing


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, help="a folder that is not there yet")
    listing = write(parser.parse_args().out)
    (parser.parse_args().out / "kinds.json").write_text(json.dumps(listing, indent=1))
    print(f"{len(listing)} kinds of bad input")
