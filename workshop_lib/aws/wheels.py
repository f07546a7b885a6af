"""The wheels that the workshop needs on another machine, with another processor and Python.

pip can fetch wheels for elsewhere, but it decides what is needed by the Python that runs it. So
what is needed is found out here, and pip fetches just that.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterable, Mapping
from email.parser import HeaderParser
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name, parse_wheel_filename

from workshop_lib.errors import AwsError, redact
from workshop_lib.load.package import MACHINES
from workshop_lib.paths import CHECKOUT

NEWEST_GLIBC = 34
"""Amazon Linux 2023 has 2.34 (its release notes)."""


def requirements() -> list[str]:
    """What the workshop needs, and what pip needs to install it from its folder."""
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text(encoding="utf-8"))
    return [*project["project"]["dependencies"], *project["build-system"]["requires"]]


def download_wheels(folder: Path, architecture: str, python: str) -> None:
    """Fetch the wheels of the workshop, and all that they need, in the pinned versions.

    Args:
        folder: where they go.
        architecture: of the other machine, "arm64" or "x86_64".
        python: of the other machine, such as "3.12".

    Raises:
        AwsError: one could not be had, or has no pin.

    """
    there = _environment(MACHINES[architecture], python)
    pins = _pins(there)
    # What each was asked for with: redis[hiredis] needs more than redis.
    ahead = _by_name(map(Requirement, requirements()), there, {""})
    told: dict[str, set[str]] = {}
    while ahead:
        _fetch([pins[name] for name in _pinned(ahead, pins) if name not in told], folder, there)
        wheels = {str(parse_wheel_filename(path.name)[0]): path for path in folder.glob("*.whl")}
        found: dict[str, set[str]] = {}
        for name, extras in ahead.items():
            told[name] = told.get(name, set()) | extras
            for other, more in _by_name(_needs(wheels[name]), there, told[name]).items():
                found[other] = found.get(other, set()) | more
        ahead = {name: more for name, more in found.items() if not _is_told(name, more, told)}


def _is_told(name: str, extras: set[str], told: Mapping[str, set[str]]) -> bool:
    return name in told and extras <= told[name]


def _environment(machine: str, python: str) -> dict[str, str]:
    """What markers ask for (PyPA, "Dependency specifiers"), as it is there."""
    return {
        "implementation_name": "cpython",
        "implementation_version": f"{python}.9",
        "os_name": "posix",
        "platform_machine": machine,
        "platform_python_implementation": "CPython",
        "platform_release": "",
        "platform_system": "Linux",
        "platform_version": "",
        # A late one, as the host has it: 3.11 alone would be 3.11.0, for which not all can be had.
        "python_full_version": f"{python}.9",
        "python_version": python,
        "sys_platform": "linux",
    }


def _pins(there: Mapping[str, str]) -> dict[str, str]:
    """The versions of constraints.txt that hold there, by name."""
    text = (CHECKOUT / "constraints.txt").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    found = map(Requirement, lines)
    return {
        canonicalize_name(one.name): f"{one.name}{one.specifier}"
        for one in found
        if one.marker is None or one.marker.evaluate(dict(there))
    }


def _pinned(names: Iterable[str], pins: Mapping[str, str]) -> list[str]:
    names = list(names)
    if missing := sorted(name for name in names if name not in pins):
        raise AwsError(
            f"constraints.txt has no version of {', '.join(missing)}, which is needed there. "
            "CONTRIBUTING.md says how the pins are made anew."
        )
    return names


def _by_name(
    needs: Iterable[Requirement], there: Mapping[str, str], extras: set[str]
) -> dict[str, set[str]]:
    """Which of these hold there, each with what it is asked for with; the empty word is for none.

    Args:
        needs: what something needs.
        there: what markers ask for.
        extras: what that something was asked for with.

    """
    found: dict[str, set[str]] = {}
    for one in needs:
        marker = one.marker
        if marker is None or any(marker.evaluate({**there, "extra": extra}) for extra in extras):
            found.setdefault(canonicalize_name(one.name), {""}).update(one.extras)
    return found


def _needs(wheel: Path) -> list[Requirement]:
    """What a wheel says that it needs."""
    with zipfile.ZipFile(wheel) as archive:
        # Some wheels carry others along, a folder further down.
        notes_of = re.compile(r"[^/]+\.dist-info/METADATA")
        (name,) = filter(notes_of.fullmatch, archive.namelist())
        notes = HeaderParser().parsestr(archive.read(name).decode("utf-8"))
    return [Requirement(line) for line in notes.get_all("Requires-Dist") or []]


def _fetch(pins: list[str], folder: Path, there: Mapping[str, str]) -> None:
    if not pins:
        return
    machine, python = there["platform_machine"], there["python_version"]
    newest_first = range(NEWEST_GLIBC, 16, -1)
    platforms = [f"--platform=manylinux_2_{minor}_{machine}" for minor in newest_first]
    done = subprocess.run(
        [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check",
         "--no-input", "--no-deps", "--only-binary=:all:", "--implementation=cp",
         f"--python-version={there['python_full_version']}", *platforms,
         f"--platform=manylinux2014_{machine}", f"--dest={folder}", *pins],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        lines = done.stderr.splitlines() or ["nothing"]
        said = next((s for s in reversed(lines) if s.startswith("ERROR: ")), lines[-1])
        raise AwsError(
            f"The wheels for Python {python} on Linux, {machine}, could not be had. pip says: "
            f"{redact(said.removeprefix('ERROR: ')).rstrip('.')}. Is the package index that pip "
            f"is configured for reachable, and has it got wheels for {machine}?"
        )
