"""What stands around the notebooks says what is so: CI, containers, hooks, and the pages."""

from __future__ import annotations

import json
import re
import tomllib

import click
import pytest
import yaml

from workshop_lib.cli import main
from workshop_lib.paths import CHECKOUT

MAKEFILE = (CHECKOUT / "Makefile").read_text()
TARGETS = set(re.findall(r"^([a-z]+):", MAKEFILE, re.MULTILINE))
PYTHONS = re.findall(r"python(3\.\d+)", MAKEFILE.split("PYTHON ?=")[1].splitlines()[0])
PAGES = sorted([*CHECKOUT.glob("*.md"), *(CHECKOUT / "docs").glob("*.md")])


@pytest.fixture(scope="module")
def project():
    return tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]


@pytest.fixture(scope="module")
def workflow():
    return yaml.safe_load((CHECKOUT / ".github" / "workflows" / "ci.yml").read_text())


@pytest.fixture(scope="module")
def steps(workflow):
    return workflow["jobs"]["test"]["steps"]


@pytest.fixture(scope="module")
def container():
    return json.loads((CHECKOUT / ".devcontainer" / "devcontainer.json").read_text())


def words_of(command: str) -> list[str]:
    return command.split()


# --- CI ---


def test_ci_runs_on_every_change_and_every_week(workflow):
    when = workflow[True]  # YAML takes "on" for a truth value
    assert {"push", "pull_request", "schedule"} <= set(when)
    assert when["schedule"][0]["cron"].split()[-1] != "*"
    assert workflow["concurrency"]["cancel-in-progress"] is True


def test_ci_may_read_and_nothing_else(workflow):
    assert workflow["permissions"] == {"contents": "read"}
    assert [job for job in workflow["jobs"].values() if "permissions" in job] == []


def test_ci_takes_github_s_own_actions_by_their_major_version(steps):
    used = [step["uses"] for step in steps if "uses" in step]
    assert {name.partition("@")[0] for name in used} == {
        "actions/checkout", "actions/setup-python", "actions/cache", "actions/upload-artifact",
    }  # fmt: skip
    assert [name for name in used if not re.fullmatch(r"actions/[a-z-]+@v\d+", name)] == []


def test_ci_takes_the_oldest_and_the_newest_python_on_both_systems(workflow, project):
    matrix = workflow["jobs"]["test"]["strategy"]["matrix"]
    assert project["requires-python"] == f">={matrix['python'][0]}"
    assert matrix["python"] == [PYTHONS[-1], PYTHONS[0]]
    assert [name.partition("-")[0] for name in matrix["os"]] == ["ubuntu", "macos"]


def test_what_ci_runs_is_make_test(steps):
    (command,) = [step["run"] for step in steps if "run" in step]
    assert words_of(command)[:2] == ["make", "test"]


def test_ci_keeps_the_environment_for_as_long_as_it_is_made_from_the_same(steps):
    (cached,) = [step["with"] for step in steps if "actions/cache" in step.get("uses", "")]
    assert cached["path"] == ".venv"
    named = set(re.findall(r"'([^']+)'", cached["key"]))
    assert named == {"pyproject.toml", "constraints.txt", "scripts/bootstrap.py"}
    assert all((CHECKOUT / name).is_file() for name in named)
    assert "outputs.python-version" in cached["key"]


def test_ci_keeps_no_password_of_a_failed_run(steps):
    (kept,) = [step for step in steps if "upload-artifact" in step.get("uses", "")]
    assert kept["if"] == "failure()"
    patterns = kept["with"]["path"].split("\n")
    assert [p for p in patterns if p.startswith("$") and not p.endswith((".html", ".ipynb", ".log"))
            ] == []  # fmt: skip


# --- containers and hooks ---


def test_the_container_has_a_supported_python_and_makes_the_environment(container):
    assert container["image"].rpartition(":")[2] in PYTHONS
    assert words_of(container["postCreateCommand"])[0] == "make"
    assert words_of(container["postCreateCommand"])[1] in TARGETS
    editor = container["customizations"]["vscode"]["settings"]
    assert editor["python.defaultInterpreterPath"].endswith("/.venv/bin/python")


def test_the_container_opens_files_that_exist_and_forwards_jupyterlab_only(container):
    for name in container["customizations"]["codespaces"]["openFiles"]:
        assert (CHECKOUT / name).is_file()
    assert container["forwardPorts"] == [8888]
    assert container["otherPortsAttributes"] == {"onAutoForward": "ignore"}


def test_hooks_run_what_the_environment_holds():
    found = yaml.safe_load((CHECKOUT / ".pre-commit-config.yaml").read_text())
    assert [repo["repo"] for repo in found["repos"]] == ["local"]
    hooks = found["repos"][0]["hooks"]
    assert {hook["language"] for hook in hooks} == {"system"}
    assert [words_of(hook["entry"])[0] for hook in hooks] == ["make"] * len(hooks)
    assert {words_of(hook["entry"])[1] for hook in hooks} == {"lint", "form"} <= TARGETS


# --- the pages ---


def code_of(text: str) -> str:
    """What a page shows as code: blocks, but no diagrams, and words in back-ticks."""
    found = re.findall(r"```.*?```|`[^`\n]+`", text, re.DOTALL)
    return "\n".join(code for code in found if not code.startswith("```mermaid"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_names_only_commands_that_exist(page):
    code = code_of(page.read_text())
    asked = set(re.findall(r"(?<![\w-])make ([a-z]+)\b", code))
    assert asked - TARGETS == set()
    for first, second in re.findall(r"(?<![\w./-])workshop ([a-z]+)(?: ([a-z]+))?", code):
        command = main.commands.get(first)
        assert command, f"workshop {first}"
        if isinstance(command, click.Group) and second:
            assert second in command.commands, f"workshop {first} {second}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_pages_links_lead_somewhere(page):
    links = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text())
    assert [link for link in links if "://" not in link and not (page.parent / link).exists()] == []


def test_the_readme_leads_to_every_page():
    text = (CHECKOUT / "README.md").read_text()
    names = [str(page.relative_to(CHECKOUT)) for page in PAGES if page.name != "README.md"]
    assert [name for name in names if f"]({name})" not in text] == []
