"""Build the load worker as AWS Lambda wants it: one zip with all that its handler imports."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from workshop_lib.errors import WorkshopError
from workshop_lib.paths import CHECKOUT

Architecture: TypeAlias = Literal["x86_64", "arm64"]
HANDLER = "workshop_lib.load.worker.handler"
"""What the function's Handler is set to."""
RUNNING = f"{sys.version_info.major}.{sys.version_info.minor}"
MOST_ZIPPED = 50 * 2**20
MOST_UNZIPPED = 250 * 2**20
"""Lambda's limits for a direct upload, bytes (Developer Guide, "Lambda quotas")."""
HOUSE = "workshop_lib"
TASK_ROOT = "/var/task"
"""Where Lambda unpacks it."""

# What the handler imports, and what that imports in its turn; a test imports it from nothing else.
# boto3 is on Lambda already, but older or newer than the one that all else was tested with.
DISTRIBUTIONS = (
    "annotated-types",
    "boto3",
    "botocore",
    "certifi",
    "filelock",
    "hiredis",
    "jmespath",
    "lazy-loader",
    "msgspec",
    "platformdirs",
    "psutil",
    "psycopg2-binary",
    "pydantic",
    "pydantic-core",
    "pydantic-settings",
    "python-dateutil",
    "python-dotenv",
    "redis",
    "s3transfer",
    "six",
    "sqlalchemy",
    "tenacity",
    "typing-extensions",
    "typing-inspection",
    "urllib3",
)
FOR_OLD_PYTHONS = 'async-timeout ; python_full_version < "3.11.3"'
"""What redis needs there. Lambda's own Pythons are newer; it is for trying a package out here."""
# botocore describes each of 400 services in a folder of its own, which it reads when a client for
# that service is made and at no other time. These are ours, and those that give credentials.
AWS_SERVICES = frozenset(
    {"cloudwatch", "dsql", "lambda", "s3", "signin", "sqs", "sso", "sso-oidc", "sts"}
)
# Lambda's Python 3.11 runs on Amazon Linux 2, later ones on Amazon Linux 2023.
GLIBC = {"3.11": 26}
GLIBC_SINCE = 34
MACHINES = {"x86_64": "x86_64", "arm64": "aarch64"}
THE_EPOCH = (1980, 1, 1, 0, 0, 0)
FILE_MODE = 0o100644


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
            f"{_mb(MOST_ZIPPED)} and {_mb(MOST_UNZIPPED)}). Its largest parts: {parts}."
        )


def build_package(
    out: Path, *, architecture: Architecture = "x86_64", python: str = RUNNING
) -> Package:
    """Build the package of the load worker; the same input gives the same bytes.

    The wheels come from where pip is configured to find them. For the Python that runs this,
    compiled code is put in as well: a function cannot store it where it runs, and would compile
    everything anew at each cold start.

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
        tree = Path(folder) / "task"
        _install(tree, architecture, python)
        _slim(tree)
        _copy_rooms(tree)
        if python == RUNNING:
            _compile(tree)
        files = sorted(path for path in tree.rglob("*") if path.is_file())
        sizes = {path.relative_to(tree).as_posix(): path.stat().st_size for path in files}
        parts = Counter[str]()
        for name, size in sizes.items():
            parts[name.split("/", maxsplit=1)[0]] += size
        _refuse_above(MOST_UNZIPPED, sum(sizes.values()), "unzipped", parts)
        packed = _zip(tree, sizes, Path(folder) / "package.zip")
        _refuse_above(MOST_ZIPPED, packed.stat().st_size, "zipped", parts)
        package = Package(
            path=out,
            architecture=architecture,
            python=python,
            zipped=packed.stat().st_size,
            unzipped=sum(sizes.values()),
            files=len(sizes),
            largest=dict(parts.most_common(6)),
        )
        _put(packed, out)
    return package


def find_rooms(start: str = "workshop_lib.load.worker") -> set[str]:
    """The modules of `workshop_lib` that a module imports, wherever in it, and they in their turn.

    Lazy names, those in the stubs of `workshop_lib` and `workshop_lib.load`, are not followed.
    """
    found: set[str] = set()
    ahead = [start]
    while ahead:
        name = ahead.pop()
        if name in found or (source := _source(name)) is None:
            continue
        found.add(name)
        ahead += [name.rpartition(".")[0], *_imports(source)]
    return found


def _source(name: str) -> Path | None:
    """The file of a module of ours; None if it is not one, but for example a name in one."""
    if name.split(".", maxsplit=1)[0] != HOUSE:
        return None
    base = CHECKOUT / name.replace(".", "/")
    return next((p for p in (base.with_suffix(".py"), base / "__init__.py") if p.exists()), None)


def _imports(source: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _install(tree: Path, architecture: str, python: str) -> None:
    """Have pip unpack the wheels for Lambda's platform, in the versions of constraints.txt."""
    wanted = tree.with_name("requirements.txt")
    wanted.write_text("\n".join([*DISTRIBUTIONS, FOR_OLD_PYTHONS]))
    platforms = [f"--platform={tag}" for tag in _tags(MACHINES[architecture], python)]
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check",
               "--no-input", "--no-compile", "--no-deps", "--only-binary=:all:",
               "--implementation=cp", f"--python-version={python}", *platforms,
               f"--target={tree}", f"--requirement={wanted}",
               f"--constraint={CHECKOUT / 'constraints.txt'}"]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = done.stderr.splitlines() or ["nothing"]
        said = next((s for s in lines if s.startswith("ERROR: ")), lines[-1])
        raise WorkshopError(
            f"The wheels for Python {python} on Linux, {architecture}, could not be had. pip says: "
            f"{said.removeprefix('ERROR: ')} Is the package index that pip is configured for "
            f"reachable, and has it got wheels for {architecture}?"
        )


def _tags(machine: str, python: str) -> Iterator[str]:
    """The platforms whose wheels Lambda's runtime for this Python runs, the newest first."""
    for minor in range(GLIBC.get(python, GLIBC_SINCE), 16, -1):
        yield f"manylinux_2_{minor}_{machine}"
    yield f"manylinux2014_{machine}"
    if machine == "x86_64":
        yield from (f"manylinux2010_{machine}", f"manylinux1_{machine}")


def _slim(tree: Path) -> None:
    """Take away what no import needs: what pip notes, commands, tests, other services' data."""
    data = tree.glob("botocore/data/*")
    services = (path for path in data if path.is_dir() and path.name not in AWS_SERVICES)
    for path in [
        *tree.glob("*.dist-info"),
        tree / "bin",
        *tree.glob("*/tests"),
        tree / "boto3" / "examples",
        *services,
    ]:
        shutil.rmtree(path, ignore_errors=True)


def _copy_rooms(tree: Path) -> None:
    """Copy our own modules, and what lies beside them: lists of lazy names, SQL, advice."""
    sources = [source for name in find_rooms() if (source := _source(name))]
    folders = {source.parent for source in sources if source.name == "__init__.py"}
    endings = ("*.pyi", "*.sql", "*.toml")
    beside = (path for folder in folders for ending in endings for path in folder.glob(ending))
    for path in [*sources, *beside]:
        target = tree / path.relative_to(CHECKOUT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)


def _compile(tree: Path) -> None:
    """Compile everything for the place where Lambda unpacks it, without times of files in it."""
    subprocess.run(
        [sys.executable, "-I", "-m", "compileall", "-qq", "--invalidation-mode", "unchecked-hash",
         "-s", str(tree), "-p", TASK_ROOT, str(tree)],
        check=False,  # a file that does not compile is one that nobody imports
        stdout=subprocess.DEVNULL,
    )  # fmt: skip


def _refuse_above(limit: int, size: int, how: str, parts: Counter[str]) -> None:
    if size > limit:
        largest = ", ".join(f"{name} {_mb(bytes_)}" for name, bytes_ in parts.most_common(3))
        raise WorkshopError(
            f"The package has {_mb(size)} {how}; Lambda takes {_mb(limit)}. Its largest parts: "
            f"{largest}. Has a room that the worker does not need found its way into its imports?"
        )


def _zip(tree: Path, names: Iterable[str], packed: Path) -> Path:
    """Pack files in order, without the times at which they were unpacked here."""
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in sorted(names):
            entry = zipfile.ZipInfo(name, THE_EPOCH)
            entry.create_system = 3  # Unix, whatever this is: else the file mode is not heeded
            entry.external_attr = FILE_MODE << 16
            archive.writestr(entry, (tree / name).read_bytes(), zipfile.ZIP_DEFLATED)
    return packed


def _put(packed: Path, out: Path) -> None:
    """Move the finished package to its place: what stands there is always a whole one."""
    beside = out.with_name(f"{out.name}.part-{os.getpid()}")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(packed, beside)
        beside.replace(out)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise WorkshopError(f"The package cannot be written to {out}: {error}.") from None


def _mb(size: int) -> str:
    return f"{size / 2**20:.1f} MB"
