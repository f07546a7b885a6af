"""Build the load worker as AWS Lambda wants it: one zip with all that its handler imports."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from workshop_lib.errors import WorkshopError
from workshop_lib.paths import CHECKOUT

Architecture: TypeAlias = Literal["x86_64", "arm64"]
HANDLER = "workshop_lib.load.worker.handler"
"""What the function's Handler is set to."""
RUNNING = f"{sys.version_info.major}.{sys.version_info.minor}"
MAX_ZIPPED = 50 * 2**20
MAX_UNZIPPED = 250 * 2**20
"""Lambda's limits for a direct upload, bytes (Developer Guide, "Lambda quotas")."""
MACHINES = {"x86_64": "x86_64", "arm64": "aarch64"}
# What the handler imports, and what that imports in its turn; a test imports it from nothing else.
# boto3 is on Lambda already, but older or newer than the one that all else was tested with.
DISTRIBUTIONS = """
annotated-types boto3 botocore certifi filelock hiredis jmespath lazy-loader msgspec platformdirs
psutil psycopg2-binary pydantic pydantic-core pydantic-settings python-dateutil python-dotenv redis
s3transfer six tenacity typing-extensions typing-inspection urllib3
"""
FOR_OLD_PYTHONS = 'async-timeout ; python_full_version < "3.11.3"'
"""What redis needs there. Lambda's own Pythons are newer; it is for trying a package out here."""
# botocore describes each of 400 services in a folder of its own, which it reads when a client for
# that service is made and at no other time. These are ours, and those that give credentials.
AWS_SERVICES = {"cloudwatch", "dsql", "lambda", "s3", "signin", "sqs", "sso", "sso-oidc", "sts"}
LEFT_OUT = ("*.dist-info", "bin", "*/tests", "boto3/examples")
EPOCH = (1980, 1, 1, 0, 0, 0)
FILE_MODE = 0o100644 << 16


@dataclass(frozen=True, slots=True)
class Package:
    """A package that was built.

    Attributes:
        path: the zip.
        architecture: for which it is.
        python: for which Python, such as "3.11".
        zipped, unzipped: its size, bytes.
        files: how many it holds.
        largest: the largest parts, by their name at the top of the zip; unzipped bytes.

    """

    path: Path
    architecture: Architecture
    python: str
    zipped: int
    unzipped: int
    files: int
    largest: dict[str, int]

    def __str__(self) -> str:
        parts = ", ".join(f"{name} {_mb(size)}" for name, size in self.largest.items())
        return (
            f"{self.path} for Python {self.python} on {self.architecture}: {_mb(self.zipped)}, "
            f"unzipped {_mb(self.unzipped)} in {self.files:,} files (Lambda takes "
            f"{_mb(MAX_ZIPPED)} and {_mb(MAX_UNZIPPED)}). Its largest parts: {parts}."
        )


def build_package(
    out: Path, *, architecture: Architecture = "x86_64", python: str = RUNNING
) -> Package:
    """Build the package of the load worker; the same input gives the same bytes.

    The wheels come from where pip is configured to find them, in the versions of constraints.txt.

    Args:
        out: the zip to write.
        architecture: of the function.
        python: of the function's runtime, "3.11" or later.

    Raises:
        WorkshopError: a wheel for that platform could not be had, the package is larger than
            Lambda takes, or it could not be written.

    """
    if architecture not in MACHINES:
        raise WorkshopError(
            f"There is no architecture {architecture!r}. There are: {', '.join(MACHINES)}."
        )
    with tempfile.TemporaryDirectory() as folder:
        tree, packed = Path(folder) / "task", Path(folder) / "package.zip"
        _install(tree, architecture, python)
        for pattern in LEFT_OUT:
            for path in tree.glob(pattern):
                shutil.rmtree(path, ignore_errors=True)
        for path in tree.glob("botocore/data/*/"):
            if path.name not in AWS_SERVICES:
                shutil.rmtree(path)
        shutil.copytree(CHECKOUT / "workshop_lib", tree / "workshop_lib",
                        ignore=shutil.ignore_patterns("__pycache__"))  # fmt: skip
        names = sorted(p.relative_to(tree).as_posix() for p in tree.rglob("*") if p.is_file())
        with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
            for name in names:  # in order, and without the times at which they were unpacked here
                entry = zipfile.ZipInfo(name, EPOCH)
                entry.create_system = 3  # Unix, whatever this is: else the mode is not heeded
                entry.external_attr = FILE_MODE
                archive.writestr(entry, (tree / name).read_bytes(), zipfile.ZIP_DEFLATED)
        zipped = packed.stat().st_size
        parts = Counter[str]()
        for name in names:
            parts[name.split("/", maxsplit=1)[0]] += (tree / name).stat().st_size
        unzipped, largest = parts.total(), dict(parts.most_common(6))
        for limit, size, how in ((MAX_ZIPPED, zipped, "zipped"),
                                 (MAX_UNZIPPED, unzipped, "unzipped")):  # fmt: skip
            if size > limit:
                raise WorkshopError(f"The package has {_mb(size)} {how}; Lambda takes {_mb(limit)}")
        try:  # moved when it is finished: what stands there is always a whole one
            out.parent.mkdir(parents=True, exist_ok=True)
            shutil.move(packed, out.with_name(f"{out.name}.part"))
            out.with_name(f"{out.name}.part").replace(out)
        except OSError as error:
            raise WorkshopError(f"The package cannot be written to {out}: {error}.") from None
    return Package(out, architecture, python, zipped, unzipped, len(names), largest)


def _install(tree: Path, architecture: Architecture, python: str) -> None:
    """Have pip unpack the wheels for Lambda's platform."""
    machine = MACHINES[architecture]
    # Lambda's Python 3.11 runs on Amazon Linux 2 with glibc 2.26, later ones on 2023 with 2.34.
    newest = 26 if python == "3.11" else 34
    tags = [f"manylinux_2_{minor}_{machine}" for minor in range(newest, 16, -1)]
    tags += [f"manylinux2014_{machine}"]
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check",
               "--no-input", "--no-compile", "--no-deps", "--only-binary=:all:",
               "--implementation=cp", f"--python-version={python}", f"--target={tree}",
               *(f"--platform={tag}" for tag in tags),
               f"--constraint={CHECKOUT / 'constraints.txt'}",
               *DISTRIBUTIONS.split(), FOR_OLD_PYTHONS]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = done.stderr.splitlines() or ["nothing"]
        said = next((s for s in lines if s.startswith("ERROR: ")), lines[-1])
        raise WorkshopError(
            f"The wheels for Python {python} on Linux, {architecture}, could not be had. pip says: "
            f"{said.removeprefix('ERROR: ')} Is the package index that pip is configured for "
            f"reachable, and has it got wheels for {architecture}?"
        )


def _mb(size: int) -> str:
    return f"{size / 2**20:.1f} MB"
