"""Make `.venv` ready: a virtual environment with the pinned packages, built once, by one builder.

Needs the standard library only, because it runs before anything is installed.
Run by the Makefile: `python3 scripts/bootstrap.py`.
"""

from __future__ import annotations

import ast
import contextlib
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TextIO

OLDEST = (3, 11)
INTERRUPTED = 130
PROGRESS_S = 5.0
ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
STAMP = VENV / "ready"
PINS = "constraints.txt"

REACH = {
    "cache-dir": "",
    "cert": "SSL_CERT_FILE",
    "client-cert": "SSL_CLIENT_CERT",
    "default-timeout": "UV_HTTP_TIMEOUT",
    "extra-index-url": "UV_INDEX",
    "find-links": "UV_FIND_LINKS",
    "index-url": "UV_DEFAULT_INDEX",
    "keyring-provider": "",
    "no-index": "UV_OFFLINE",
    "proxy": "ALL_PROXY",
    "retries": "",
    "timeout": "UV_HTTP_TIMEOUT",
    "trusted-host": "UV_INSECURE_HOST",
}
"""pip's settings that say where packages come from, and how to get there; what uv calls them."""

KEPT_FOR_UV = {"UV_CACHE_DIR", "UV_HTTP_TIMEOUT", "UV_NATIVE_TLS", "UV_SYSTEM_CERTS"}


say = partial(print, flush=True)


def main() -> None:
    """Build the environment unless it is already what the pinned files ask for.

    Raises:
        SystemExit: it cannot be made; the text says why, and what to do.

    """
    if sys.version_info < OLDEST:
        sys.exit(
            f"Python {sys.version.split()[0]} is too old: the workshop needs 3.11 or newer. "
            "Name a newer one: make PYTHON=/path/to/python3.12 run"
        )
    try:
        with (ROOT / ".venv.lock").open("a+") as lock:
            wait_for_turn(lock)
            if not (STAMP.is_file() and STAMP.read_text() == wanted()):
                build()
    except OSError as error:
        sys.exit(f"{ROOT} cannot be written ({error}). Clone into a folder of your own.")
    except KeyboardInterrupt:
        print("Interrupted. The next make starts the installation afresh.", file=sys.stderr)
        sys.exit(INTERRUPTED)


def wait_for_turn(lock: TextIO) -> None:
    """Let one builder in at a time: two would write into the same folder."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.seek(0)
        say(f"Waiting for process {lock.read() or '?'}, which is setting up {VENV.name} …")
        fcntl.flock(lock, fcntl.LOCK_EX)
    lock.truncate(0)
    lock.write(str(os.getpid()))
    lock.flush()


def wanted() -> str:
    """What the environment was made from: it changes with a pin, the Python or the place."""
    made_from = b"".join((ROOT / name).read_bytes() for name in ("pyproject.toml", PINS))
    return f"{hashlib.sha256(made_from).hexdigest()} {sys.version_info[:3]} {VENV}\n"


def build() -> None:
    """Create the environment and install into it: by uv, or by pip where uv cannot.

    Raises:
        SystemExit: neither could.

    """
    say(f"Setting up {VENV.name} with Python {sys.version.split()[0]} (once; about 900 MB) …")
    shutil.rmtree(VENV, ignore_errors=True)
    environment = plain(os.environ)
    create = [sys.executable, "-m", "venv", "--without-pip", str(VENV)]
    add_pip = [str(PYTHON), "-m", "ensurepip", "--default-pip"]
    if said := run("creating", create, environment) or run("adding pip", add_pip, environment):
        sys.exit(
            f"{said}\nPython could not create a virtual environment. Where venv or ensurepip is "
            "missing: on Debian and Ubuntu it is in a package of its own, apt install python3-venv"
        )
    for_pip = pip_settings(PYTHON, environment)
    pip = [str(PYTHON), "-m", "pip", "--disable-pip-version-check", "install", "-qq"]
    uv = [str(VENV / "bin" / "uv"), "pip", "install", "--python", str(PYTHON)]
    pins = ["--constraints", PINS, "--build-constraints", PINS]
    # By a relative path, because characters like # and [ in a path have a meaning there.
    package = ["--editable", ".[test]"]
    if run("fetching uv", [*pip, "uv"], for_pip) or run(
        "installing", [*uv, *pins, *package], uv_settings(for_pip)
    ):
        say("uv could not install the packages. pip takes its place, and some minutes …")
        if said := run("installing", [*pip, *package], for_pip):
            sys.exit(f"{said}\npip could not install the packages. Is there a network?")
    STAMP.write_text(wanted())
    say(f"{VENV.name} is ready.")


def run(doing: str, command: list[str], environment: Mapping[str, str]) -> str:
    """Run a program, with a line every few seconds. Returns what it said, if it failed."""
    started = time.monotonic()
    with subprocess.Popen(
        command, env=environment, cwd=ROOT, stdout=-1, stderr=subprocess.STDOUT, errors="replace"
    ) as process:
        try:
            while True:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    said, _ = process.communicate(timeout=PROGRESS_S)
                    return (said.strip() or "It failed.") if process.returncode else ""
                say(f"  {doing}: {time.monotonic() - started:.0f} s …")
        finally:  # it got the same Ctrl-C, and may clean up
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(PROGRESS_S)
            process.kill()


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
        The environment in which pip reads nothing else, and keeps to the pins.

    """
    ask = [str(python), "-m", "pip", "config", "list"]
    # `user = true` in a file would be taken for the option of this command: list that file alone.
    every_file = {**environment, "PIP_GLOBAL": "0", "PIP_USER": "0", "PIP_SITE": "0"}
    done = subprocess.run(ask, env=every_file, capture_output=True, text=True, check=False)
    lines = done.stdout.splitlines()
    found = {name: value for name, value in environment.items() if not name.startswith("PIP_")}
    found["PIP_CONFIG_FILE"] = os.devnull
    # As a URL, because pip splits a variable at blanks.
    found["PIP_CONSTRAINT"] = found["PIP_BUILD_CONSTRAINT"] = (ROOT / PINS).as_uri()
    for section in ("global", "install", ":env:"):  # a later one wins
        for line in lines:
            place, _, value = line.partition("=")
            name = place.removeprefix(f"{section}.")
            if name in REACH:
                found[f"PIP_{name.upper().replace('-', '_')}"] = str(ast.literal_eval(value))
    return found


def uv_settings(for_pip: Mapping[str, str]) -> dict[str, str]:
    """The environment in which uv reaches packages as pip does, and reads nothing else."""
    ours = {"UV_NO_CONFIG": "1", "UV_INDEX_STRATEGY": "unsafe-best-match"}  # pip's strategy
    for name, value in for_pip.items():
        if not name.startswith(("PIP_", "UV_")) or name in KEPT_FOR_UV:
            ours.setdefault(name, value)
    for setting, for_uv in REACH.items():
        value = for_pip.get(f"PIP_{setting.upper().replace('-', '_')}")
        if for_uv and value:
            ours[for_uv] = ("," if setting == "find-links" else " ").join(value.split())
    return ours


if __name__ == "__main__":
    main()
