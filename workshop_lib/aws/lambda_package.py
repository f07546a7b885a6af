"""The load worker packed for AWS Lambda: one zip with everything its handler imports."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from workshop_lib.errors import WorkshopError
from workshop_lib.paths import FILES, PACKAGE
from workshop_lib.results import ready_folder

HANDLER = "workshop_lib.load.worker.handler"
"""What the function's Handler is set to."""
RUNNING = f"{sys.version_info.major}.{sys.version_info.minor}"
MACHINES = {"x86_64": "x86_64", "arm64": "aarch64"}
# What the handler imports. Lambda has boto3 already, but not the tested version.
REQUIREMENTS = (
    "boto3", "certifi", "filelock", "lazy-loader", "msgspec", "platformdirs", "psutil",
    "psycopg2-binary", "pydantic", "redis[hiredis]",
)  # fmt: skip
LEFT_OUT = ("/bin/", "/__pycache__/", ".dist-info/", "/tests/", "workshop_lib/files/")


def build_package(out: Path, *, architecture: str = "x86_64", python: str = RUNNING) -> Path:
    """Build the load worker's package; the same input gives the same bytes.

    pip finds the wheels as it is configured to, in the versions of constraints.txt.

    Args:
        out: the zip to write.
        architecture: of the function, "arm64" or "x86_64".
        python: of the function's runtime, "3.11" or later.

    Returns:
        The zip.

    Raises:
        WorkshopError: pip found no wheel for that platform, or the folder is not writable.

    """
    ready_folder(out.parent)
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder)
        _install(tree, architecture, python)
        files = {p.relative_to(tree).as_posix(): p for p in tree.rglob("*") if p.is_file()}
        ours = PACKAGE.rglob("*")
        files |= {p.relative_to(PACKAGE.parent).as_posix(): p for p in ours if p.is_file()}
        with zipfile.ZipFile(out, "w") as archive:
            for name in sorted(files):
                if not any(part in f"/{name}" for part in LEFT_OUT):
                    entry = zipfile.ZipInfo(name)  # without the time at which it was unpacked
                    entry.create_system = 3  # Unix, whatever this is: else the mode is not heeded
                    entry.external_attr = 0o100644 << 16
                    archive.writestr(entry, files[name].read_bytes(), zipfile.ZIP_DEFLATED)
    return out


def _install(tree: Path, architecture: str, python: str) -> None:
    """Have pip unpack the wheels for Lambda's platform."""
    # Lambda's Python 3.11 runs on Amazon Linux 2 with glibc 2.26, later ones on 2023 with 2.34.
    newest, machine = 26 if python == "3.11" else 34, MACHINES[architecture]
    tags = [*(f"manylinux_2_{minor}" for minor in range(newest, 16, -1)), "manylinux2014"]
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check",
               "--no-input", "--no-compile", "--only-binary=:all:", "--implementation=cp",
               f"--python-version={python}", f"--target={tree}",
               *(f"--platform={tag}_{machine}" for tag in tags),
               f"--constraint={FILES / 'constraints.txt'}", *REQUIREMENTS]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        *_, said = ("nothing", *done.stderr.splitlines())
        raise WorkshopError(
            f"The wheels for Python {python} on Linux, {architecture}, could not be had. Is pip's "
            f"package index reachable? It says: {said}. "
            "`workshop aws deploy --no-function` does without the load worker."
        )
