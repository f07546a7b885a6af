"""Make `.venv` ready: a virtual environment with the pinned packages, built once, by one builder.

Needs the standard library only, because it runs before anything is installed.
Run by the Makefile: `python3 scripts/bootstrap.py`.
"""

from __future__ import annotations

import ast
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

OLDEST = (3, 11)
ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
STAMP = VENV / "ready"
REACH = frozenset(
    {"cache-dir", "cert", "client-cert", "default-timeout", "extra-index-url", "find-links"}
    | {"index-url", "keyring-provider", "no-index", "proxy", "retries", "timeout"}
    | {"trusted-host", "use-deprecated", "use-feature"}
)
"""pip's settings that say where packages come from, and how to get there."""


def main() -> int:
    """Build the environment unless it is already what the pinned files ask for.

    Returns an exit code.
    """
    if sys.version_info < OLDEST:
        return fail(
            f"Python {sys.version.split()[0]} is too old: the workshop needs 3.11 or newer. "
            "Name a newer one: make PYTHON=/path/to/python3.12 run"
        )
    try:
        with (ROOT / ".venv.lock").open("w") as lock:
            # Two commands in a fresh clone would otherwise build the same folder at the same time.
            fcntl.flock(lock, fcntl.LOCK_EX)
            return 0 if STAMP.is_file() and STAMP.read_text() == wanted() else build()
    except OSError as error:
        return fail(
            f"The folder {ROOT} cannot be written ({error}). Clone into a folder of your own."
        )


def wanted() -> str:
    """What the environment was made from: it changes with a pin, the Python or the place."""
    digest = hashlib.sha256()
    for name in ("pyproject.toml", "constraints.txt"):
        digest.update((ROOT / name).read_bytes())
    return f"{digest.hexdigest()} {sys.version_info[:3]} {VENV}\n"


def build() -> int:
    """Create the environment and install into it. Returns an exit code."""
    print(
        f"Setting up {VENV.name} with Python {sys.version.split()[0]} (once; a few minutes) …",
        flush=True,
    )
    shutil.rmtree(VENV, ignore_errors=True)
    environment = plain(os.environ)
    create = [sys.executable, "-m", "venv", str(VENV)]
    if subprocess.run(create, env=environment, check=False).returncode != 0:
        return fail(
            "Python could not create a virtual environment. On Debian and Ubuntu the venv module "
            "is a package of its own: apt install python3-venv"
        )
    pip = [str(PYTHON), "-m", "pip", "--disable-pip-version-check", "install", "-qq"]
    environment = pip_settings(PYTHON, environment)
    # In the environment, so that the pins hold for the build of this package as well; as a URL,
    # because pip splits the variable at blanks.
    environment["PIP_CONSTRAINT"] = (ROOT / "constraints.txt").as_uri()
    # By a relative path, because pip gives characters like # and [ in a path a meaning.
    install = [*pip, "--editable", ".[test]"]
    if subprocess.run(install, env=environment, cwd=ROOT, check=False).returncode != 0:
        return fail(
            "pip could not install the packages (its message is above). Is there a network?"
        )
    STAMP.write_text(wanted())
    return 0


def plain(environment: Mapping[str, str]) -> dict[str, str]:
    """What the programs that build the environment get: nothing that changes what they do."""
    foreign = ("PYTHON", "SETUPTOOLS_")
    return {name: value for name, value in environment.items() if not name.startswith(foreign)}


def pip_settings(python: Path, environment: Mapping[str, str]) -> dict[str, str]:
    """Of what is configured for pip only how it reaches packages, not where it puts them.

    Args:
        python: the one whose pip is asked for what its files and variables say.
        environment: the variables.

    Returns:
        The environment in which pip reads nothing else.

    """
    ask = [str(python), "-m", "pip", "config", "list"]
    # `user = true` in a file would be taken for the option of this command: list that file alone.
    every_file = {**environment, "PIP_GLOBAL": "0", "PIP_USER": "0", "PIP_SITE": "0"}
    done = subprocess.run(ask, env=every_file, capture_output=True, text=True, check=False)
    lines = done.stdout.splitlines()
    found = {name: value for name, value in environment.items() if not name.startswith("PIP_")}
    found["PIP_CONFIG_FILE"] = os.devnull
    for section in ("global", "install", ":env:"):  # a later one wins
        for line in lines:
            place, _, value = line.partition("=")
            name = place.removeprefix(f"{section}.")
            if name in REACH:
                found[f"PIP_{name.upper().replace('-', '_')}"] = str(ast.literal_eval(value))
    return found


def fail(message: str) -> int:
    """Say what went wrong. Returns the exit code for it."""
    print(message, file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
