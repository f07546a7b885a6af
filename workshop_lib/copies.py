"""A learner's copies of the notebooks: laid out once, brought up to date, never written over."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from hashlib import sha256
from pathlib import Path

import msgspec

from workshop_lib.errors import WorkshopError
from workshop_lib.paths import FILES, HOME, IN_CHECKOUT, MARK, replace_file

DELIVERED = (
    "notebooks/**/*.*", "docs/*.md", "data/prices.toml", "data/traffic.toml", "data/scenarios/*",
    "constraints.txt", "SECURITY.md",
)  # fmt: skip
"""What a learner's folder gets: the notebooks, and what they, the pages and errors lead to."""
OWN = {"build", "results", "workshop.toml"}
"""What commands write into the learner's folder, perhaps before the notebooks are in it."""


def lay_out() -> tuple[list[str], list[str]]:
    """Copy what was delivered into the learner's folder; in a clone there is nothing to do.

    A file that is as it was copied gives way to a newer one. A file that was changed stays.

    Returns:
        The names of the files that were copied, and of changed ones that have a newer version.

    Raises:
        WorkshopError: the folder cannot be written, or is in other use.

    """
    if IN_CHECKOUT:
        return [], []
    copied, new, kept = _copied(), list[str](), list[str]()
    if not copied and HOME.exists() and {path.name for path in HOME.iterdir()} - OWN:
        raise WorkshopError(
            f"The folder {HOME} is not empty and was not made by the workshop. Go to another "
            "folder and run the command there."
        )
    try:
        for source in sorted(path for pattern in DELIVERED for path in FILES.glob(pattern)):
            if source.is_dir() or "__pycache__" in source.parts:
                continue
            name = source.relative_to(FILES).as_posix()
            place, delivered = HOME / name, _digest(source)
            present = _digest(place) if place.exists() else None
            if present not in {None, delivered, copied.get(name)}:
                kept += [name] if copied.get(name) != delivered else []
                continue
            if present != delivered:
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, place)
                new.append(name)
            copied[name] = delivered
        replace_file(HOME / MARK, json.dumps(copied, indent=1))
    except OSError as error:
        raise WorkshopError(f"The notebooks cannot be copied to {HOME}: {error}.") from None
    return new, kept


def reset_notebook(path: Path) -> Path | None:
    """Put a notebook back as it was delivered, and keep the present one under another name.

    Args:
        path: of the notebook, in the learner's folder.

    Returns:
        Where the present one is now; None if it is as delivered.

    Raises:
        WorkshopError: what was delivered cannot be had, or the folder not be written.

    """
    try:
        delivered = _delivered(path)
        if path.read_bytes() == delivered:
            return None
        # A name that does not begin with a number: it is no notebook of the course.
        aside = path.with_name(f"my_{path.stem}-{time.strftime('%Y%m%d-%H%M%S')}.ipynb")
        path.rename(aside)
        path.write_bytes(delivered)
    except OSError as error:
        raise WorkshopError(f"{path} cannot be put back: {error}.") from None
    return aside


def _delivered(path: Path) -> bytes:
    name = path.relative_to(HOME).as_posix()
    if not IN_CHECKOUT:
        return (FILES / name).read_bytes()
    git = ["git", "show", f"HEAD:./{name}"]
    found = subprocess.run(git, cwd=HOME, capture_output=True, check=False)
    if found.returncode:
        raise WorkshopError(
            f"git has no committed version of {name}: {found.stderr.decode().strip()}"
        )
    return found.stdout


def _copied() -> dict[str, str]:
    """What was copied, and the digest that it had; empty where the mark is missing or damaged."""
    try:
        return msgspec.json.decode((HOME / MARK).read_bytes(), type=dict[str, str])
    except (OSError, ValueError):
        return {}


def _digest(path: Path) -> str:
    return sha256(path.read_bytes()).hexdigest()
