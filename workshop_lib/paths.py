"""Where this checkout is; how its files are named to a reader, and written whole."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parent.parent
"""The folder that holds `notebooks/`; results and the state folder's name derive from it."""
RESULTS = CHECKOUT / "results"


def display_path(path: Path) -> str:
    """A path as it is written from the checkout, if it lies in there."""
    return str(path.relative_to(CHECKOUT) if path.is_relative_to(CHECKOUT) else path)


def replace_file(path: Path, text: str, mode: int = 0o644) -> None:
    """Write a file whole or not at all: a reader never meets half of it. A link stays a link."""
    place = path.resolve()
    handle, name = tempfile.mkstemp(dir=place.parent, prefix=f".{place.name}")
    draft = Path(name)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            stream.write(text)
        draft.chmod(mode)
        draft.replace(place)
    finally:
        draft.unlink(missing_ok=True)
