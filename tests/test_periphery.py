"""What stands around the notebooks calls what exists: CI, containers, hooks, and the pages."""

from __future__ import annotations

import json
import re

import click
import pytest
import yaml

from workshop_lib.cli import main
from workshop_lib.paths import CHECKOUT
from workshop_lib.settings import Settings

MAKEFILE = (CHECKOUT / "Makefile").read_text()
TARGETS = set(re.findall(r"^([a-z]+):", MAKEFILE, re.MULTILINE))
PYTHONS = re.findall(r"python(3\.\d+)", MAKEFILE.split("PYTHON ?=")[1].splitlines()[0])
PAGES = sorted([*CHECKOUT.glob("*.md"), *(CHECKOUT / "docs").glob("*.md")])


def test_ci_runs_make_test_on_the_oldest_and_the_newest_python_and_may_only_read():
    ci = yaml.safe_load((CHECKOUT / ".github" / "workflows" / "ci.yml").read_text())
    job = ci["jobs"]["test"]
    assert ci["permissions"] == {"contents": "read"}
    assert "permissions" not in job
    assert job["strategy"]["matrix"]["python"] == [PYTHONS[-1], PYTHONS[0]]
    (command,) = [step["run"] for step in job["steps"] if "run" in step]
    assert command.split()[:2] == ["make", "test"]
    (cached,) = [step["with"] for step in job["steps"] if "actions/cache" in step.get("uses", "")]
    assert cached["path"] == ".venv"
    assert all((CHECKOUT / name).is_file() for name in re.findall(r"'([^']+)'", cached["key"]))
    assert "make test" in (CHECKOUT / ".ci" / "run").read_text()


def test_the_container_and_the_hooks_call_what_exists():
    container = json.loads((CHECKOUT / ".devcontainer" / "devcontainer.json").read_text())
    assert container["image"].rpartition(":")[2] in PYTHONS
    files = container["customizations"]["codespaces"]["openFiles"]
    assert [name for name in files if not (CHECKOUT / name).is_file()] == []
    hooks = yaml.safe_load((CHECKOUT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    for command in (container["postCreateCommand"], *(hook["entry"] for hook in hooks)):
        make, target, *_ = command.split()
        assert (make, target in TARGETS) == ("make", True)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_names_only_commands_that_exist_and_its_links_lead_somewhere(page):
    text = page.read_text()
    shown = re.findall(r"```.*?```|`[^`\n]+`", text, re.DOTALL)
    code = "\n".join(one for one in shown if not one.startswith("```mermaid"))
    assert set(re.findall(r"(?<![\w-])make ([a-z]+)\b", code)) - TARGETS == set()
    for first, second in re.findall(r"(?<![\w./-])workshop ([a-z]+)(?: ([a-z]+))?", code):
        command = main.commands.get(first)
        assert command, f"workshop {first}"
        if isinstance(command, click.Group) and second:
            assert second in command.commands, f"workshop {first} {second}"
    links = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text)
    assert [link for link in links if "://" not in link and not (page.parent / link).exists()] == []


def test_the_readme_leads_to_every_page_and_names_every_setting():
    text = (CHECKOUT / "README.md").read_text()
    names = [str(page.relative_to(CHECKOUT)) for page in PAGES if page.name != "README.md"]
    assert [name for name in names if f"]({name})" not in text] == []
    assert [name for name in Settings.model_fields if f"`{name.upper()}`" not in text] == []
