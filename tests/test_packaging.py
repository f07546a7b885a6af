"""Installing: the lists agree, pip's settings reach uv, and a long wait says what it waits for."""

from __future__ import annotations

import fcntl
import importlib.util
import itertools
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from workshop_lib.paths import CHECKOUT

OURS = ("pyproject.toml", "constraints.txt", "Makefile", "scripts/bootstrap.py")


@pytest.fixture(scope="module")
def project():
    return tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]


@pytest.fixture
def clone(tmp_path) -> Path:
    """What installing needs of a fresh clone, in a folder with a space in its name."""
    clone = tmp_path / "a clone"
    for name in OURS:
        (clone / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(CHECKOUT / name, clone / name)
    return clone


@pytest.fixture
def bootstrap(clone) -> ModuleType:
    """The clone's bootstrap script."""
    spec = importlib.util.spec_from_file_location("bootstrap", clone / "scripts" / "bootstrap.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _name(requirement: str) -> str:
    return re.split(r"[\[=<>;! ]", requirement, maxsplit=1)[0].lower().replace("_", "-")


def test_everything_is_pinned_and_every_pin_is_exact(project):
    lines = (CHECKOUT / "constraints.txt").read_text().splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert [line for line in pins if not re.match(r"[\w.-]+==\S+", line)] == []
    extras = itertools.chain(*project["optional-dependencies"].values())
    asked = [*project["dependencies"], *extras, "uv"]
    assert {_name(one) for one in asked} - {_name(one) for one in pins} == set()


def test_conda_installs_the_same_packages_with_the_same_pins(project):
    environment = yaml.safe_load((CHECKOUT / "environment.yml").read_text())
    plain = [entry for entry in environment["dependencies"] if isinstance(entry, str)]
    (pip,) = [entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict)]
    assert plain == ["python>=3.11", "pip"]
    assert pip == ["-c constraints.txt", *project["dependencies"], "-e .[test]"]
    assert project["requires-python"] == ">=3.11"


def test_no_file_names_a_package_registrys_host_or_a_machines_own_path():
    # Put together here, so that this file does not name them either.
    hosts = ["pypi" + ".org", "python" + "hosted.org", "npm" + "js.org"]
    paths = [rf"(^|[\s\"'=(])/{folder}/" for folder in ("work", "root", "home")]
    pattern = re.compile("|".join([*map(re.escape, hosts), *paths]), re.MULTILINE)
    done = subprocess.run(
        ["git", "ls-files", "-z"], cwd=CHECKOUT, capture_output=True, text=True, check=True
    )
    files = [CHECKOUT / name for name in done.stdout.split("\0") if not name.endswith(".png")]
    texts = {file.name: file.read_text(encoding="utf-8") for file in files if file.is_file()}
    assert [name for name, text in texts.items() if pattern.search(text)] == []


# --- the environment ---


def test_of_pips_settings_those_count_that_say_how_packages_are_reached_and_uv_gets_them(
    bootstrap, tmp_path, monkeypatch
):
    for name in [name for name in os.environ if name.startswith(("PIP_", "UV_"))]:
        monkeypatch.delenv(name)
    (tmp_path / "pip.conf").write_text(
        "[global]\nuser = true\nrequire-virtualenv = true\nindex-url = https://one\n"
        "trusted-host =\n  a\n  b\n[install]\ntarget = /x\nindex-url = https://two\n"
    )
    hostile = "USER TARGET PREFIX ROOT DRY_RUN REPORT REQUIRE_VIRTUALENV NO_BUILD_ISOLATION SRC"
    for name in hostile.split():
        monkeypatch.setenv(f"PIP_{name}", "1")
        monkeypatch.setenv(f"UV_{name}", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", str(tmp_path / "pip.conf"))
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "https://three https://four")
    monkeypatch.setenv("PIP_FIND_LINKS", "/wheels /more")
    monkeypatch.setenv("PIP_CERT", "/certificates.pem")
    monkeypatch.setenv("UV_CACHE_DIR", "/cache")
    monkeypatch.setenv("PYTHONHOME", "/nowhere")
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy")
    for_pip = bootstrap.pip_settings(Path(sys.executable), bootstrap.plain(os.environ))
    for_uv = bootstrap.uv_settings(for_pip)
    assert for_pip["PIP_INDEX_URL"] == "https://two"
    assert for_pip["PIP_TRUSTED_HOST"].split() == ["a", "b"]
    assert {name: value for name, value in for_uv.items() if name.startswith(("UV_", "SSL_C"))} == {
        "UV_NO_CONFIG": "1",
        "UV_INDEX_STRATEGY": "unsafe-best-match",
        "UV_DEFAULT_INDEX": "https://two",
        "UV_INDEX": "https://three https://four",
        "UV_FIND_LINKS": "/wheels,/more",
        "UV_INSECURE_HOST": "a b",
        "UV_CACHE_DIR": "/cache",
        "SSL_CERT_FILE": "/certificates.pem",
    } | {name: os.environ[name] for name in ("SSL_CERT_DIR",) if name in os.environ}
    for environment in (for_pip, for_uv):
        assert environment["HTTPS_PROXY"] == "http://proxy"
        assert not {f"PIP_{name}" for name in hostile.split()} & environment.keys()
        assert "PYTHONHOME" not in environment
    effective = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"],
        env=for_pip, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert all(line.startswith(":env:.") for line in effective.splitlines())


@pytest.mark.parametrize(
    ("broken", "installers"),
    [("", ["uv"]), ("fetching uv", ["pip"]), ("installing", ["uv", "pip"])],
)
def test_uv_installs_and_where_it_cannot_pip_does(bootstrap, monkeypatch, broken, installers):
    ran = []

    def run(doing, command, environment):
        bootstrap.VENV.mkdir(exist_ok=True)
        if "--editable" in command:
            ran.append("pip" if "-m" in command else "uv")
        return "no" if doing == broken and ran != ["uv", "pip"] else ""

    monkeypatch.setattr(bootstrap, "run", run)
    monkeypatch.setattr(bootstrap, "PYTHON", Path(sys.executable))  # whose pip is configured
    bootstrap.main()
    assert ran == installers
    bootstrap.main()  # it is there: nothing is done again
    assert ran == installers


def test_while_a_program_runs_there_is_a_line_now_and_then_and_a_failure_is_told(
    bootstrap, capsys, monkeypatch
):
    monkeypatch.setattr(bootstrap, "PROGRESS_S", 0.2)
    wait = "import time; time.sleep(1); print('no room'); raise SystemExit(1)"
    assert bootstrap.run("waiting", [sys.executable, "-c", wait], dict(os.environ)) == "no room"
    assert capsys.readouterr().out.startswith("  waiting: 0 s …\n")


def test_a_second_make_says_what_it_waits_for(bootstrap, clone):
    bootstrap.VENV.mkdir()
    bootstrap.STAMP.write_text(bootstrap.wanted())
    with (clone / ".venv.lock").open("w") as lock:
        lock.write("4711")
        lock.flush()
        fcntl.flock(lock, fcntl.LOCK_EX)
        process = subprocess.Popen(
            [sys.executable, "scripts/bootstrap.py"], cwd=clone, stdout=subprocess.PIPE, text=True
        )
        assert process.stdout
        assert "Waiting for process 4711" in process.stdout.readline()
    assert process.communicate(timeout=60) == ("", None)
    assert process.returncode == 0


def test_stop_reset_and_clean_install_nothing_and_leave_the_results(clone):
    (clone / "results").mkdir()
    for target in ("stop", "reset", "clean"):
        done = subprocess.run(
            ["make", "--no-print-directory", target],
            cwd=clone,
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.startswith("Nothing is installed in .venv")
    missing = ["make", "PYTHON=python3.99", "check"]
    done = subprocess.run(missing, cwd=clone, capture_output=True, text=True, check=False)
    assert done.stderr.startswith("No Python 3.11 or newer was found as 'python3.99'. Install")
    assert {path.name for path in clone.iterdir()} == {
        "Makefile", "constraints.txt", "pyproject.toml", "results", "scripts",
    }  # fmt: skip
