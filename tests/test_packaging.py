"""pyproject.toml, environment.yml and constraints.txt agree, and the repository is clean."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml

from workshop_lib.paths import CHECKOUT
from workshop_lib.settings import Settings


@pytest.fixture(scope="module")
def project():
    return tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]


@pytest.fixture(scope="module")
def pins():
    text = (CHECKOUT / "constraints.txt").read_text()
    return {_name(line) for line in text.splitlines() if line and not line.startswith("#")}


@pytest.fixture(scope="module")
def tracked():
    done = subprocess.run(
        ["git", "ls-files", "-z"], cwd=CHECKOUT, capture_output=True, text=True, check=True
    )
    return [CHECKOUT / name for name in done.stdout.split("\0") if name]


def _name(requirement: str) -> str:
    return re.split(r"[\[=<>;! ]", requirement, maxsplit=1)[0].lower().replace("_", "-")


def test_every_dependency_is_pinned(project, pins):
    asked = [*project["dependencies"], *project["optional-dependencies"]["test"]]
    assert {_name(requirement) for requirement in asked} - pins == set()


def test_every_pin_is_exact():
    lines = (CHECKOUT / "constraints.txt").read_text().splitlines()
    loose = [s for s in lines if s and not s.startswith("#") and not re.match(r"[\w.-]+==\S+", s)]
    assert loose == []


def test_conda_installs_the_same_packages_with_the_same_pins(project):
    environment = yaml.safe_load((CHECKOUT / "environment.yml").read_text())
    plain = [entry for entry in environment["dependencies"] if isinstance(entry, str)]
    (pip,) = [entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict)]
    assert plain == ["python>=3.11", "pip"]
    assert pip == ["-c constraints.txt", *project["dependencies"], "-e .[test]"]
    assert project["requires-python"] == ">=3.11"


def test_what_ci_calls_is_make_test():
    text = (CHECKOUT / ".ci" / "run").read_text()
    assert "set -euo pipefail" in text
    assert "make test" in text
    assert (CHECKOUT / ".ci" / "run").stat().st_mode & 0o111


def test_the_readme_begins_with_the_two_commands():
    text = (CHECKOUT / "README.md").read_text()
    assert text.index("make run") < text.index("make test") < 900
    assert "![" in text[:2_000]


def test_the_readme_names_every_setting():
    text = (CHECKOUT / "README.md").read_text()
    assert [name for name in Settings.model_fields if f"`{name.upper()}`" not in text] == []


def test_no_file_names_a_package_registrys_host_or_a_machines_own_path(tracked):
    # Put together here, so that this file does not name them either.
    hosts = ["pypi" + ".org", "python" + "hosted.org", "npm" + "js.org"]
    paths = [rf"(^|[\s\"'=(])/{folder}/" for folder in ("work", "root", "home")]
    pattern = re.compile("|".join([*map(re.escape, hosts), *paths]), re.MULTILINE)
    found = [path.name for path in tracked if pattern.search(_text(path))]
    assert found == []


def _text(path: Path) -> str:
    return "" if path.suffix == ".png" else path.read_text(encoding="utf-8")
