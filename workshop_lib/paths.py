"""Where the workshop's files are and where a learner works; how files are named and written."""

from __future__ import annotations

import os
import tempfile
from functools import cache
from pathlib import Path

APPLICATION = "cache-aside-workshop"
PACKAGE = Path(__file__).resolve().parent
CHECKOUT = PACKAGE.parent
"""The clone that the package is imported from; of an installed package, `site-packages`."""
IN_CHECKOUT = (CHECKOUT / "pyproject.toml").is_file()
FILES = CHECKOUT if IN_CHECKOUT else PACKAGE / "files"
"""Notebooks, data and templates as delivered: in the clone, or in the installed package."""
MARK = ".cache-aside-workshop.json"
"""The file that marks a learner's folder outside a clone: which notebooks were copied into it."""


def _home() -> Path:
    """The clone; else the marked folder around the current one, or a new one in it."""
    if IN_CHECKOUT:
        return CHECKOUT
    here = Path.cwd()
    marked = (folder for folder in (here, *here.parents) if (folder / MARK).is_file())
    return next(marked, here / APPLICATION)


HOME = _home()
"""The folder with `notebooks/`, `results/` and `workshop.toml`; each has its own local engines."""
NOTEBOOKS = HOME / "notebooks"
RESULTS = HOME / "results"


def display_path(path: Path) -> str:
    """A path as it is written from the current folder, if that is `HOME` and it lies in there."""
    here = path.is_relative_to(HOME) and Path.cwd() == HOME
    return str(path.relative_to(HOME) if here else path)


def cache_folder(name: str) -> Path:
    """A folder for files that only save time, shared by all checkouts of this user; made."""
    import platformdirs  # noqa: PLC0415 -- a lesson on paper, in a browser, does without

    folder = platformdirs.user_cache_path(APPLICATION) / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:  # no home, or a read-only one
        # Not at a fixed path, where another user could have put a folder first.
        return Path(_temporary_cache().name)
    return folder


@cache
def _temporary_cache() -> tempfile.TemporaryDirectory[str]:
    """One folder that ends with this process."""
    return tempfile.TemporaryDirectory(prefix=f"{APPLICATION}-", ignore_cleanup_errors=True)


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
