"""What a notebook host without internet fetches from the bucket: the workshop and its wheels."""

from __future__ import annotations

import gzip
import hashlib
import io
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from workshop_lib.aws.code import SETUP
from workshop_lib.aws.plain import plainly
from workshop_lib.aws.wheels import download_wheels, requirements
from workshop_lib.errors import AwsError
from workshop_lib.paths import CHECKOUT

ARCHIVE = f"{SETUP}workshop.tar.gz"
WHEELS = f"{SETUP}wheels/"
MADE_FROM = f"{SETUP}wheels-made-from.txt"
"""Written last: the wheels are all there, and what they were chosen from."""
# Where there is no git: what somebody works with, and nothing that a run has left.
PARTS = (
    "CONTRIBUTING.md", "LICENSE", "Makefile", "README.md", "cloudformation", "constraints.txt",
    "data", "docs", "environment.yml", "notebooks", "pyproject.toml", "scripts", "tests",
    "workshop_lib",
)  # fmt: skip
LEFT_BY_RUNS = {"__pycache__", ".ipynb_checkpoints"}
UPLOADS_AT_ONCE = 8
Download = Callable[[Path, str, str], None]
"""Puts the wheels for an architecture and a Python into a folder."""


def pack_workshop(folder: Path = CHECKOUT) -> bytes:
    """The workshop as a .tar.gz: what git has committed, or without git the files there are.

    The same input gives the same bytes.

    Raises:
        AwsError: it cannot be packed.

    """
    if committed := _git(folder, "archive", "--format=tar.gz", "HEAD"):
        return committed
    packed = io.BytesIO()
    try:
        # Without the time of packing, which gzip would note.
        with tarfile.open(fileobj=packed, mode="w:") as archive:
            for part in PARTS:
                if (folder / part).exists():
                    archive.add(folder / part, part, filter=_plain)
    except OSError as error:
        raise AwsError(f"The workshop in {folder} cannot be packed: {error}.") from None
    return gzip.compress(packed.getvalue(), mtime=0)


def uncommitted(folder: Path = CHECKOUT) -> bool:
    """Whether git would leave something out that is in the folder."""
    return bool(_git(folder, "status", "--porcelain"))


def put_workshop(s3: Any, bucket: str, packed: bytes) -> bool:
    """Put the packed workshop into the bucket. Returns whether that was needed.

    Raises:
        AwsError: S3 does not answer, or refuses.

    """
    with plainly(f"put the workshop into the bucket {bucket}"):
        if _etags(s3, bucket, ARCHIVE).get(ARCHIVE) == _md5(packed):
            return False
        s3.put_object(Bucket=bucket, Key=ARCHIVE, Body=packed)
        return True


def put_wheels(
    s3: Any, bucket: str, architecture: str, python: str, download: Download = download_wheels
) -> int:
    """Put the host's wheels into the bucket, and take those away that it needs no more.

    Nothing is fetched if the bucket has what the pins of today ask for.

    Returns:
        How many were put there.

    Raises:
        AwsError: a wheel could not be had, or S3 does not answer or refuses.

    """
    recipe = "\n".join([architecture, python, *requirements(), _pins()])
    mark = hashlib.sha256(recipe.encode()).hexdigest().encode()
    with plainly(f"look for wheels in the bucket {bucket}"):
        made_from = _etags(s3, bucket, MADE_FROM).get(MADE_FROM)
    if made_from == _md5(mark):
        return 0
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "wheels"
        folder.mkdir()
        download(folder, architecture, python)
        with plainly(f"put wheels into the bucket {bucket}"):
            return _bring(s3, bucket, {WHEELS + p.name: p for p in folder.iterdir()}, mark)


def _bring(s3: Any, bucket: str, wanted: Mapping[str, Path], mark: bytes) -> int:
    present = _sizes(s3, bucket, WHEELS)
    # A wheel's name has its version and platform, and what has a name never changes.
    missing = [key for key, path in wanted.items() if present.get(key) != path.stat().st_size]
    with ThreadPoolExecutor(UPLOADS_AT_ONCE) as pool:
        list(pool.map(lambda key: s3.upload_file(str(wanted[key]), bucket, key), missing))
        surplus = present.keys() - wanted.keys()
        list(pool.map(lambda key: s3.delete_object(Bucket=bucket, Key=key), surplus))
    s3.put_object(Bucket=bucket, Key=MADE_FROM, Body=mark)
    return len(missing)


def _git(folder: Path, *words: str) -> bytes:
    """What git says of a checkout; nothing where there is none, or no git."""
    if not (folder / ".git").exists():
        return b""
    command = ["git", "-C", str(folder), *words]
    try:
        return subprocess.run(command, capture_output=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return b""


def _pins() -> str:
    return (CHECKOUT / "constraints.txt").read_text(encoding="utf-8")


def _listed(s3: Any, bucket: str, prefix: str) -> list[Mapping[str, Any]]:
    pages = s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
    return [found for page in pages for found in page.get("Contents", ())]


def _sizes(s3: Any, bucket: str, prefix: str) -> dict[str, int]:
    return {found["Key"]: found["Size"] for found in _listed(s3, bucket, prefix)}


def _etags(s3: Any, bucket: str, prefix: str) -> dict[str, str]:
    """Of an object that was put in one piece and has the service's encryption: its MD5."""
    return {found["Key"]: found["ETag"].strip('"') for found in _listed(s3, bucket, prefix)}


def _md5(body: bytes) -> str:
    return hashlib.md5(body, usedforsecurity=False).hexdigest()


def _plain(entry: tarfile.TarInfo) -> tarfile.TarInfo | None:
    """Leave out what runs have left, and who owns a file."""
    if Path(entry.name).name in LEFT_BY_RUNS:
        return None
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = ""
    return entry
