"""`prefect.toml` at the project's root, which tells plain `prefect` commands where the local server is."""

from __future__ import annotations

import re
from pathlib import Path

from infra.local.state import ServiceError
from mtv_core.runs import write_atomic

_MARK = "# Written by `mtv up` for "


def check(project: Path) -> None:
    """See that there is no `prefect.toml` of the user's.

    Raises:
        ServiceError: there is.
    """
    path = project / "prefect.toml"
    if path.exists() and owner(project) is None:
        raise ServiceError(
            f"{path} was not written by mtv, so it is left alone: move it away, "
            "or run `prefect config set` with what it says, then try `mtv up` again"
        )


def owner(project: Path) -> Path | None:
    """The `MTV_HOME` whose services the file points at; None if there is no file of ours."""
    path = project / "prefect.toml"
    try:
        first = path.read_text().partition("\n")[0]
    except (OSError, UnicodeDecodeError):
        return None
    found = re.match(re.escape(_MARK) + r"MTV_HOME=(.*); `mtv down` removes it\.$", first)
    return Path(found[1]) if found else None


def write(project: Path, home: Path, api_url: str) -> None:
    """Point plain `prefect` commands, typed in the project's folder, at the server."""
    text = f'{_MARK}MTV_HOME={home}; `mtv down` removes it.\n[api]\nurl = "{api_url}"\n'
    path = project / "prefect.toml"
    if not path.exists() or path.read_text() != text:
        write_atomic(path, text)


def remove(project: Path, home: Path) -> None:
    """Take away what `write` wrote for this home; anything else stays."""
    if owner(project) == home:
        (project / "prefect.toml").unlink()
