"""A learner's copies of the notebooks: laid out once, brought up to date, never written over."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import time
from contextlib import suppress
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

    A file that is as it was copied gives way to a newer one. A file that was changed stays. The
    mark comes first and each file whole, so that after a kill the next call goes on.

    Returns:
        The names of the files that were copied, and of changed ones that have a newer version.

    Raises:
        WorkshopError: the folder cannot be written, or is in other use.

    """
    if IN_CHECKOUT:
        return [], []
    new, kept = list[str](), list[str]()
    try:
        HOME.mkdir(parents=True, exist_ok=True)
        mark = HOME / MARK
        if not mark.exists() and {path.name for path in HOME.iterdir()} - OWN:
            raise WorkshopError(
                f"The folder {HOME} is not empty and was not made by the workshop. Go to another "
                "folder and run the command there."
            )
        mark.touch()
        copied = _copied()
        for source in sorted(path for pattern in DELIVERED for path in FILES.glob(pattern)):
            if source.is_dir() or "__pycache__" in source.parts:
                continue
            name = source.relative_to(FILES).as_posix()
            place, content = HOME / name, source.read_bytes()
            present, delivered = _read(place), _digest(content)
            if present is not None and _digest(present) not in {delivered, copied.get(name)}:
                kept += [name] if copied.get(name) != delivered else []
                continue
            if present is None:
                _put(place, content)
            elif present != content:
                replace_file(place, content.decode())
            new += [name] if present != content else []
            copied[name] = delivered
        replace_file(mark, json.dumps(copied, indent=1))
    except OSError as error:
        raise WorkshopError(f"The notebooks cannot be copied to {HOME}: {error}.") from None
    return new, kept


def missing_notebooks() -> list[Path]:
    """Where delivered notebooks would be that are not in the learner's folder."""
    try:
        names = _names()
    except (OSError, WorkshopError):  # a clone without git's history
        return []
    places = [HOME / name for name in names if name.endswith(".ipynb")]
    return [place for place in places if not place.exists()]


def reset_notebook(path: Path) -> Path | None:
    """Put a notebook back as it was delivered, and keep the present one under another name.

    Args:
        path: of the notebook, in the learner's folder; it may be missing there.

    Returns:
        Where the present one is now; None if it is as delivered, or missing.

    Raises:
        WorkshopError: what was delivered cannot be had, or the folder not be written.

    """
    try:
        delivered = _delivered(path)
        if _read(path) == delivered:
            return None
        aside = _move_aside(path)
        _put(path, delivered)
        # Another reset at the same time may have been first.
        if aside and _read(aside) == delivered:
            aside.unlink()
            return None
    except OSError as error:
        raise WorkshopError(f"{path} cannot be put back: {error}.") from None
    return aside


def _move_aside(path: Path) -> Path | None:
    """Give a file, whatever is in it by now, a name that no other has; None if it is missing."""
    if not os.path.lexists(path):
        return None
    # A name that does not begin with a number: it is no notebook of the course.
    name = f"my_{path.stem}-{time.strftime('%Y%m%d-%H%M%S')}-"
    handle, aside = tempfile.mkstemp(".ipynb", name, path.parent)
    os.close(handle)
    try:
        return path.rename(aside)
    except FileNotFoundError:  # another reset has just moved it
        Path(aside).unlink()
        return None


def _put(path: Path, content: bytes) -> None:
    """Write a file whole; one that is there by now stays."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".", dir=path.parent) as folder:
        draft = Path(folder, path.name)
        draft.write_bytes(content)
        try:
            path.hardlink_to(draft)  # unlike a rename, it replaces nothing
        except FileExistsError:
            return
        except OSError:  # not every file system has links
            if not path.exists():
                draft.rename(path)


def _names() -> list[str]:
    """The names of the files that were delivered with the notebooks."""
    if IN_CHECKOUT:
        listed = _git("ls-tree", "-r", "-z", "--name-only", "HEAD", "notebooks/")
        return listed.decode().split("\0")
    return [path.relative_to(FILES).as_posix() for path in FILES.glob("notebooks/**/*.*")]


def _delivered(path: Path) -> bytes:
    name = path.relative_to(HOME).as_posix()
    return _git("show", f"HEAD:./{name}") if IN_CHECKOUT else (FILES / name).read_bytes()


def _git(*words: str) -> bytes:
    command = ["git", *words]
    done = subprocess.run(command, cwd=HOME, capture_output=True, check=False)
    if done.returncode:
        raise WorkshopError(
            f"git does not have what was delivered: {done.stderr.decode(errors='replace').strip()}"
        )
    return done.stdout


def _copied() -> dict[str, str]:
    """What was copied, and the digest that it had; empty where the mark is new or damaged."""
    try:
        return msgspec.json.decode((HOME / MARK).read_bytes(), type=dict[str, str])
    except (OSError, ValueError, RecursionError):
        return {}


def _read(path: Path) -> bytes | None:
    with suppress(FileNotFoundError):
        return path.read_bytes()
    return None


def _digest(content: bytes) -> str:
    return sha256(content).hexdigest()
